"""What a workflow may ask of a runtime in `options`: the operator's choice, and how it is written in settings. Pure.

A setting lists options, each with the values that are allowed, or none for any:

    runtime_class=kata|gvisor, node_selector=pool|zone, tolerations=pool, ephemeral_storage

For `node_selector` and `tolerations` the values are keys. Anything that is not listed is refused by name (T89).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import PermanentError
from shared.states import Reason

_WORDS = {dict: "map", list: "list", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Offer:
    """The options that a runtime knows."""

    runtime: str
    setting: str
    """Where the operator lists what is allowed."""
    types: Mapping[str, type]
    free: Mapping[str, frozenset[str]]
    """Values that take nothing from anybody, so that they are always allowed; empty: any value."""
    checks: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    """Raise ValueError for a value of the right type that can be none."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Option -> values (or keys) that workflows may use; empty: any."""

    offer: Offer
    values: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, text: str, offer: Offer) -> Allowed:
        """Raises ValueError for an option that does not exist."""
        values = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            name, _, given = entry.partition("=")
            if name.strip() not in offer.types:
                raise ValueError(f"{name.strip()!r} is no option; there are: {', '.join(sorted(offer.types))}")
            values[name.strip()] = frozenset(each.strip() for each in given.split("|") if each.strip())
        return cls(offer, values)

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises PermanentError(Unsupported, or BadInput) for what a workflow may not ask for."""
        for option, value in options.items():
            kind = self.offer.types.get(option)
            if kind is None:
                known = ", ".join(sorted(self.offer.types))
                text = f"{self.offer.runtime} does not offer {option!r}, only: {known}"
                raise PermanentError(text, reason=Reason.UNSUPPORTED)
            if not isinstance(value, kind):
                text = f"option {option!r} must be a {_WORDS[kind]}, not {value!r}"
                raise PermanentError(text, reason=Reason.BAD_INPUT)
            if check := self.offer.checks.get(option):
                try:
                    check(value)
                except ValueError as error:
                    raise PermanentError(f"option {option!r}: {error}", reason=Reason.BAD_INPUT) from error
            self._check_values(option, _asked(option, value))

    def _check_values(self, option: str, asked: list[str]) -> None:
        free = self.offer.free.get(option)
        if free is not None and (not free or free.issuperset(asked)):
            return
        if option not in self.values:
            but = f", but for {', '.join(sorted(free))}" if free else ""
            raise PermanentError(
                f"option {option!r} is not allowed here{but}: the operator lists what is in {self.offer.setting}",
                reason=Reason.UNSUPPORTED,
            )
        allowed = self.values[option]
        for each in asked:
            if allowed and each not in allowed | (free or frozenset()):
                raise PermanentError(
                    f"{option} {each!r} is not allowed here, only: {', '.join(sorted(allowed))}",
                    reason=Reason.UNSUPPORTED,
                )


def _asked(option: str, value: Any) -> list[str]:
    if option == "node_selector":
        return [str(key) for key in value]
    if option == "tolerations":
        # One without a key tolerates everything; it is allowed only where anything is.
        return [str(each.get("key", "")) if isinstance(each, dict) else str(each) for each in value]
    return [str(value)]
