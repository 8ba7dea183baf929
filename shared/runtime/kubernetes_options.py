"""What a workflow may ask of the cluster: the operator's choice, and how it is written in settings. Pure.

`HUBFLOW_KUBERNETES_ALLOW` lists options, each with the values that are allowed, or none for any:

    runtime_class=kata|gvisor, node_selector=pool|zone, tolerations=pool, ephemeral_storage

For `node_selector` and `tolerations` the values are keys. Anything that is not listed is refused by name (T89).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import PermanentError
from shared.states import Reason

TYPES: Mapping[str, type] = {
    "node_selector": dict,
    "tolerations": list,
    "priority_class": str,
    "runtime_class": str,
    "ephemeral_storage": str,
    "read_only_root": bool,
}
"""Options that this runtime knows."""
FREE = frozenset({"read_only_root"})
"""They take nothing from anybody: always allowed."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Option -> values (or keys) that workflows may use; empty: any."""

    values: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """Raises ValueError for an option that does not exist."""
        values = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            name, _, given = entry.partition("=")
            if name.strip() not in TYPES:
                raise ValueError(f"{name.strip()!r} is no option; there are: {', '.join(sorted(TYPES))}")
            values[name.strip()] = frozenset(each.strip() for each in given.split("|") if each.strip())
        return cls(values)

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises PermanentError(Unsupported, or BadInput) for what a workflow may not ask for."""
        for option, value in options.items():
            if option not in TYPES:
                known = ", ".join(sorted(TYPES))
                raise PermanentError(f"kubernetes does not offer {option!r}, only: {known}", reason=Reason.UNSUPPORTED)
            if not isinstance(value, TYPES[option]):
                raise PermanentError(
                    f"option {option!r} must be a {_WORDS[TYPES[option]]}, not {value!r}", reason=Reason.BAD_INPUT
                )
            if option not in FREE:
                self._check_values(option, value)

    def _check_values(self, option: str, value: Any) -> None:
        if option not in self.values:
            raise PermanentError(
                f"option {option!r} is not allowed here: the operator lists what is in HUBFLOW_KUBERNETES_ALLOW",
                reason=Reason.UNSUPPORTED,
            )
        allowed = self.values[option]
        for each in _asked(option, value):
            if allowed and each not in allowed:
                raise PermanentError(
                    f"{option} {each!r} is not allowed here, only: {', '.join(sorted(allowed))}",
                    reason=Reason.UNSUPPORTED,
                )


_WORDS = {dict: "map", list: "list", str: "text", bool: "true or false"}


def _asked(option: str, value: Any) -> list[str]:
    if option == "node_selector":
        return [str(key) for key in value]
    if option == "tolerations":
        # One without a key tolerates everything; it is allowed only where anything is.
        return [str(each.get("key", "")) if isinstance(each, dict) else str(each) for each in value]
    return [str(value)]


def words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def pairs(text: str) -> dict[str, str]:
    """key=value, separated by commas. Raises ValueError."""
    found = {}
    for part in words(text):
        key, sign, value = part.partition("=")
        if not (sign and key.strip()):
            raise ValueError(f"{part!r} is not key=value")
        found[key.strip()] = value.strip()
    return found


def json_map(text: str) -> dict[str, Any]:
    """A JSON object, or nothing. Raises ValueError."""
    found: dict[str, Any] = _json(text, dict)
    return found


def json_list(text: str) -> list[dict[str, Any]]:
    """A JSON list of objects, or nothing. Raises ValueError."""
    found: list[dict[str, Any]] = _json(text, list)
    if not all(isinstance(each, dict) for each in found):
        raise ValueError("expected a JSON list of objects")
    return found


def _json(text: str, kind: type) -> Any:
    if not text.strip():
        return kind()
    found = json.loads(text)
    if not isinstance(found, kind):
        raise ValueError(f"expected a JSON {'object' if kind is dict else 'list'}")  # noqa: TRY004 - a setting's value
    return found
