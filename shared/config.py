"""Settings from environment variables `HUBFLOW_*`, read once into frozen dataclasses.

Each `config.py` declares a dataclass whose fields carry `setting(...)`: a default and what it means. The variable of a
field is `HUBFLOW_` + the dataclass's PREFIX + its name. `load` reads them and reports every problem at once. Nothing else
reads the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from shared.errors import ConfigurationError

Settings = TypeVar("Settings")

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


def setting(default: Any, help: str, *, secret: bool = False) -> Any:
    """A field of a settings dataclass. `help` tells unit and reason; `secret` keeps the value out of listings and of `repr`."""
    return dataclasses.field(default=default, repr=not secret, metadata={"help": help, "secret": secret})


def variable(cls: type, field: dataclasses.Field[Any]) -> str:
    """The environment variable of a field: HUBFLOW_[PREFIX_]NAME."""
    prefix = getattr(cls, "PREFIX", "")
    return f"HUBFLOW_{prefix}{'_' if prefix else ''}{field.name}".upper()


def load(environment: Mapping[str, str], *classes: type[Any]) -> tuple[Any, ...]:
    """One instance of each class from the environment. Raises ConfigurationError that lists every problem."""
    problems: list[str] = []
    instances = []
    for cls in classes:
        values: dict[str, Any] = {}
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            name = variable(cls, field)
            if name in environment:
                try:
                    values[field.name] = _convert(environment[name], hints[field.name])
                except ValueError as error:
                    problems.append(f"{name}={environment[name]!r}: {error}. It means: {field.metadata['help']}")
        try:
            instances.append(cls(**values))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return tuple(instances)


def unknown_variables(environment: Mapping[str, str], classes: Sequence[type]) -> list[str]:
    """A warning for each HUBFLOW_ variable that no setting reads, with the nearest that one does."""
    known = {variable(cls, field) for cls in classes for field in dataclasses.fields(cls)}
    warnings = []
    for name in sorted(environment):
        if name.startswith("HUBFLOW_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            warnings.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    return warnings


def truth(text: str) -> bool:
    """What a setting says that is true or false. Raises ValueError."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("expected true or false")


def _convert(text: str, kind: Any) -> Any:
    if kind is bool:
        return truth(text)
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError("expected a whole number") from None
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError("expected a number") from None
    return text
