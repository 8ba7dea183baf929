"""A fault of a workflow file: where, what, what was expected, and the nearest thing that would have been right.

Rendered in the shape that editors and people know from compilers: `file:line:column: message`, the source line, a caret.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from shared.errors import UserError

_LINE_WIDTH = 140
"""Characters of the source line that are shown; longer lines are cut around the caret."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file. `line` and `column` count from 1 and always lie inside the file."""

    file: str
    line: int
    column: int
    path: str
    """Where in the workflow, in names: `stages.test.jobs.lint.needs[0]`; "" for the file as a whole."""
    message: str
    expected: str = ""
    suggestion: str = ""
    """The nearest valid word, or ""."""
    severity: Literal["error", "warning"] = "error"
    source_line: str = ""
    """The line, or of a long line the part around the fault."""
    caret: int = 0
    """Where in `source_line` the fault is, from 0."""

    def render(self) -> str:
        """The fault as people read it, several lines, no newline at the end."""
        mark = "warning: " if self.severity == "warning" else ""
        lines = [f"{self.file}:{self.line}:{self.column}: {mark}{self.message}"]
        if self.source_line.strip():
            number = str(self.line)
            caret = _padding(self.source_line[: self.caret]) + "^"
            lines += [f"  {number} | {self.source_line.rstrip()}", f"  {' ' * len(number)} | {caret}"]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.suggestion:
            lines.append(f"  did you mean `{self.suggestion}`?")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON, for problem documents."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class WorkflowError(UserError):
    """A workflow file that cannot be used. `faults` holds all that was found (errors and warnings), in file order."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults)
        errors = [fault for fault in self.faults if fault.severity == "error"]
        count = "1 fault" if len(errors) == 1 else f"{len(errors)} faults"
        super().__init__(
            f"The workflow file has {count}.\n" + render_faults(self.faults),
            code="invalid-workflow",
            status=422,
            hint="docs/workflow-file.md describes every key; `hubflow workflow validate FILE` checks a file.",
            details={"faults": [fault.as_dict() for fault in self.faults]},
        )


def render_faults(faults: Sequence[Fault]) -> str:
    """All faults, one under the other, an empty line between them."""
    return "\n\n".join(fault.render() for fault in faults)


def nearest(word: str, choices: Iterable[str], *, likeness: float = 0.6) -> str:
    """The choice that `word` was probably meant to be, or ""; `likeness` is 1 for the same word."""
    names = list(choices)[:500]
    lowered = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word[:100].lower(), lowered, n=1, cutoff=likeness)
    return lowered[found[0]] if found else ""


def one_of(choices: Iterable[str]) -> str:
    """`a, b or c`, cut after a dozen."""
    every = list(choices)
    names = [shorten(name) for name in every[:12]]
    if len(every) > 12:
        return ", ".join(names) + f" or one of {len(every) - 12} more"
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" or {names[-1]}" if names else "nothing"


def bad(message: str, *, expected: str = "", suggestion: str = "", item: int | None = None) -> PydanticCustomError:
    """What the validators of the model raise: an error whose sentence is already ours.

    `item`: which one of a list it is about, where the list is read as a whole.
    """
    at = () if item is None else (item,)
    return PydanticCustomError(
        "hubflow", "{message}", {"message": message, "expected": expected, "suggestion": suggestion, "at": at}
    )


def shorten(value: object, limit: int = 60) -> str:
    """A value for use inside a sentence: one line, cut."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def told(value: object) -> str:
    """A value as the subject of a sentence."""
    if isinstance(value, (dict, list, tuple)):
        return "a map" if isinstance(value, dict) else "a list"
    return f"`{shorten(value)}`"


def excerpt(line: str, column: int) -> tuple[str, int]:
    """The part of a source line around `column` (from 0) that is worth showing, and where `column` is in it."""
    start = 0 if len(line) <= _LINE_WIDTH else max(0, min(column - _LINE_WIDTH // 2, len(line) - _LINE_WIDTH))
    shown = line[start : start + _LINE_WIDTH]
    clean = "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in shown)
    return clean, column - start


def _padding(before: str) -> str:
    """Blanks as wide as a text, so that what follows stands right under it."""
    return "".join("\t" if char == "\t" else " " * _cells(char) for char in before)


def _cells(char: str) -> int:
    """Terminal cells of one character, so that the caret stands right under CJK text."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
