"""Durations, cpu and memory as people write them, and the texts and names of the workflow file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from shared.workflow.faults import bad, nearest, shorten, told

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,6})?(?:ms|[smhdw]))+\Z")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|[smhdw])")
_NUMBER = re.compile(r"[-+]?[0-9]{1,15}(?:\.[0-9]{0,9})?\Z")
_CPU = re.compile(r"([0-9]{1,9})m\Z|([0-9]{1,6}(?:\.[0-9]{1,9})?)\Z")
_MEMORY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([KMGTkmgt]i?|)[Bb]?\Z")
_SHORT_FORMS = "a duration such as 90s, 30m, 1h30m or 7d"

MAX_DURATION_S = 366 * 86400.0
MAX_NAME = 200
MIN_MEMORY_BYTES = 4 * 1024 * 1024


def parse_duration(value: Any, *, plain_unit: str = "") -> float:
    """Seconds from `90s`, `30m`, `1h30m`, `7d`, `1.5h`. Zero, negative and unitless values are refused.

    `plain_unit` (TencentHub's workflow timeout: `m`) lets a number without unit be read in that unit.
    """
    text = str(value).strip()
    if isinstance(value, (dict, list, tuple, bool)) or value is None:
        raise bad("this is not a duration", expected=_SHORT_FORMS)
    if _NUMBER.match(text):
        if float(text) <= 0:
            raise bad(f"a duration must be more than zero, not {shorten(text)}", expected=_SHORT_FORMS)
        if not plain_unit:
            raise bad(f"`{shorten(text)}` lacks a unit", expected=_SHORT_FORMS, suggestion=f"{text}m")
        text += plain_unit
    if not _DURATION.match(text):
        if text.startswith("-"):
            raise bad(f"a duration must be more than zero, not {shorten(text)}", expected=_SHORT_FORMS)
        raise bad(f"`{shorten(text)}` is not a duration", expected=_SHORT_FORMS)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds <= 0:
        raise bad(f"a duration must be more than zero, not {shorten(text)}", expected=_SHORT_FORMS)
    if seconds > MAX_DURATION_S:
        raise bad(f"{shorten(text)} is longer than a year", expected=_SHORT_FORMS)
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest form that `parse_duration` reads back exactly: `30m`, `1h30m`, `90s`, `1.5s`."""
    if seconds != int(seconds):
        return f"{seconds:.6f}".rstrip("0") + "s"
    rest, parts = int(seconds), ""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_UNITS[unit]))
        parts += f"{count}{unit}" if count else ""
    return parts or "0s"


def parse_cpu(value: Any) -> int:
    """Thousandths of a core from `500m`, `1`, `1.5`."""
    found = _CPU.match(str(value).strip())
    if not found or isinstance(value, bool):
        raise bad(f"{told(value)} is not an amount of cpu", expected="cores such as 1, 0.5 or 500m")
    millis = int(found[1]) if found[1] else round(float(found[2]) * 1000)
    if not 1 <= millis <= 1_000_000:
        raise bad(f"`{shorten(value)}` cores are not possible", expected="between 1m and 1000")
    return millis


def parse_memory(value: Any) -> int:
    """Bytes from `512Mi`, `1Gi`, `4G` (binary with i, decimal without), or a plain number of bytes."""
    text = str(value).strip()
    found = _MEMORY.match(text)
    if not found or isinstance(value, bool):
        raise bad(f"{told(value)} is not an amount of memory", expected="an amount such as 512Mi or 2Gi")
    unit = found[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    amount = int(float(found[1]) * base ** (" kmgt".index(unit[0]) if unit else 0))
    if amount < MIN_MEMORY_BYTES:
        meant = f"{found[1]}Mi" if not unit else ""
        raise bad(f"{shorten(text)} of memory is too little for any program", expected="4Mi or more", suggestion=meant)
    if amount > 2**50:
        raise bad(f"{shorten(text)} of memory is more than any machine has", expected="an amount such as 512Mi or 2Gi")
    return amount


def as_text(value: Any) -> str:
    """A scalar as it was written; maps, lists and nothing are refused."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    what = "a map" if isinstance(value, dict) else "nothing" if value is None else "a list"
    raise bad(f"a text is needed here, but this is {what}", expected="a text or a number")


def as_text_or_empty(value: Any) -> str:
    """The same, where nothing means the empty text (environment variables)."""
    return "" if value is None else as_text(value)


def check_name(name: str) -> str:
    """Names of workflows, stages and jobs: any script, 1 to 200 characters, printable, without `/`."""
    if not name.strip():
        raise bad("a name cannot be empty", expected="a short name")
    if len(name) > MAX_NAME:
        raise bad(f"a name may have {MAX_NAME} characters, this one has {len(name)}", expected="a shorter name")
    if name != name.strip():
        raise bad("a name cannot begin or end with a space", suggestion=name.strip())
    if name in {".", ".."} or "/" in name or not name.isprintable():
        raise bad(
            f"`{shorten(ascii(name)[1:-1])}` cannot be a name", expected="a name without `/` and control characters"
        )
    return name


def check_variable(name: str) -> str:
    """Names of environment variables, inputs and outputs: letters, digits, underscore."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
        fixed = re.sub(r"\W", "_", name, flags=re.ASCII)[:100]
        meant = fixed if re.fullmatch(r"[A-Za-z_]\w*", fixed, re.ASCII) and fixed.strip("_") else ""
        raise bad(
            f"`{shorten(name)}` cannot be a name of a variable", expected="letters, digits, `_`", suggestion=meant
        )
    return name


def check_environment_name(name: str) -> str:
    """A variable that a workflow may set: names of our own are ours."""
    if name.upper().startswith("HUBFLOW_"):
        raise bad(
            f"`{shorten(name)}`: names that begin with HUBFLOW_ are set by Hubflow itself", expected="another name"
        )
    return check_variable(name)


def word_list(value: Any) -> Any:
    """A list where one text stands for a list of one."""
    return [value] if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


def choice(*words: str, synonyms: dict[str, str] | None = None) -> BeforeValidator:
    """One of `words`; other spellings are translated, unknown ones refused with the nearest."""
    table = {word: word for word in words} | (synonyms or {})

    def pick(value: Any) -> str:
        found = table.get(value) if isinstance(value, str) else None
        if found is None:
            expected = ", ".join(words[:-1]) + f" or {words[-1]}"
            raise bad(f"{told(value)} is not possible here", expected=expected, suggestion=nearest(str(value), words))
        return found

    if not synonyms:
        return BeforeValidator(pick)
    spelled: Any = Literal.__getitem__(tuple(table))
    return BeforeValidator(pick, json_schema_input_type=spelled)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    suggestion = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}
    raise bad(f"{told(value)} is neither true nor false", expected="true or false",
              suggestion=suggestion.get(str(value).lower(), ""))  # fmt: skip


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,15}", value):
        return int(value)
    raise bad(f"{told(value)} is not a whole number", expected="a whole number")


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and _NUMBER.match(value):
        return float(value)
    raise bad(f"{told(value)} is not a number", expected="a number")


_TextInput = str | int | float | bool
_DurationInput = Annotated[
    str, Field(pattern=r"^([0-9]+(\.[0-9]+)?(ms|[smhdw]))+$", examples=["90s", "30m", "1h30m", "7d"])
]
_CpuInput = Annotated[str, Field(pattern=r"^[0-9]+m$|^[0-9]+(\.[0-9]+)?$", examples=["500m", "1.5"])]
_MemoryInput = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([KMGTkmgt]i?)?[Bb]?$", examples=["512Mi", "2Gi"])]
Text = Annotated[str, BeforeValidator(as_text, json_schema_input_type=_TextInput)]
Value = Annotated[str, BeforeValidator(as_text_or_empty, json_schema_input_type=_TextInput | None)]
"""An environment value: whatever is written, as text; nothing is the empty text."""
Name = Annotated[str, AfterValidator(check_name), BeforeValidator(as_text, json_schema_input_type=str | int | float)]
VariableName = Annotated[str, AfterValidator(check_variable)]
EnvironmentName = Annotated[str, AfterValidator(check_environment_name)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(word_list, json_schema_input_type=_TextInput | list[_TextInput])]
"""A list of texts, or one text."""
Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=_DurationInput),
    PlainSerializer(format_duration, return_type=str),
]
"""Seconds. Written back as text, so that a stored model can be read again."""
WorkflowDuration = Annotated[
    float,
    BeforeValidator(lambda value: parse_duration(value, plain_unit="m"), json_schema_input_type=_DurationInput | int),
    PlainSerializer(format_duration, return_type=str),
]
Cpu = Annotated[
    int,
    BeforeValidator(parse_cpu, json_schema_input_type=_CpuInput | float),
    PlainSerializer(lambda millis: f"{millis}m", return_type=str),
]
Memory = Annotated[
    int, BeforeValidator(parse_memory, json_schema_input_type=_MemoryInput | int), PlainSerializer(str, return_type=str)
]
