"""The label `TencentHubComponent`: what a component says of its inputs and outputs. Pure, and lenient.

Real labels differ from their documentation (`description` for `desc`, defaults of any type, broken JSON), and an image whose
label is broken can still be run: so nothing here raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LABEL = "TencentHubComponent"
_LIMIT = 256 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTIONAL = ("非必填", "非必须", "可选", "选填", "optional")
_REQUIRED = ("必填", "必要", "必须", "required")


@dataclass(frozen=True, slots=True)
class Declared:
    """An input or output. `required`: what its description begins with says so; a hint, never a check."""

    name: str
    description: str = ""
    default: str | None = None
    required: bool | None = None


@dataclass(frozen=True, slots=True)
class ComponentLabel:
    """What the label says. `warnings`: what is wrong with it; `raw`: its text, if it could not be read."""

    description: str = ""
    inputs: tuple[Declared, ...] = ()
    outputs: tuple[Declared, ...] = ()
    warnings: tuple[str, ...] = ()
    raw: str = ""

    @property
    def defaults(self) -> dict[str, str]:
        """Input -> default, of those that have one."""
        return {each.name: each.default for each in self.inputs if each.default is not None}


@dataclass(slots=True)
class _Reading:
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def read_label(labels: Mapping[str, Any] | None) -> ComponentLabel | None:
    """The component's label, or None if the image has none."""
    text = (labels or {}).get(LABEL)
    if text is None:
        return None
    text = str(text)
    try:
        document = json.loads(text[:_LIMIT], strict=False)
    except (ValueError, RecursionError) as error:
        return ComponentLabel(warnings=(f"the label {LABEL} is not JSON: {error}",), raw=text[:_LIMIT])
    if not isinstance(document, dict):
        return ComponentLabel(warnings=(f"the label {LABEL} is not a JSON object",), raw=text[:_LIMIT])
    reading = _Reading()
    inputs = _declared(document.get("input"), "input", reading)
    outputs = _declared(document.get("output"), "output", reading)
    return ComponentLabel(_text(document, "description", "desc"), inputs, outputs, tuple(reading.warnings))


def _declared(items: Any, kind: str, reading: _Reading) -> tuple[Declared, ...]:
    if items is None:
        return ()
    if not isinstance(items, list):
        reading.warn(f"`{kind}` is not a list")
        return ()
    found: dict[str, Declared] = {}
    for item in items:
        name = item.get("name") if isinstance(item, dict) else item
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            reading.warn(f"an {kind} has no usable name: {str(name)[:60]!r}")
            continue
        facts = item if isinstance(item, dict) else {}
        description = _text(facts, "desc", "description")
        found[name] = Declared(name, description, _default(facts.get("default")), _required(description))
    return tuple(found.values())


def _text(document: Mapping[str, Any], *keys: str) -> str:
    return next((" ".join(value.split()) for key in keys if isinstance(value := document.get(key), str)), "")


def _default(value: Any) -> str | None:
    """As text; of a list the first. None: there is none."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    return None


def _required(description: str) -> bool | None:
    start = description.lstrip("[( \N{FULLWIDTH LEFT PARENTHESIS}\N{LEFT BLACK LENTICULAR BRACKET}").lower()
    if start.startswith(_OPTIONAL):
        return False
    return True if start.startswith(_REQUIRED) else None
