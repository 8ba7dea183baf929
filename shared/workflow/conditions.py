"""`when`: conditions in CEL (the Common Expression Language).

Variables: `run` (failed), `git`, `trigger`, `inputs`, `env`, `jobs` (state, outputs). An expression has no effects; its
cost is bounded by its length and by allowing one comprehension (`all`, `exists`, `exists_one`, `map`, `filter`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared.errors import PermanentError
from shared.states import Reason
from shared.workflow.faults import nearest, one_of, shorten

MAX_LENGTH = 1000
VARIABLES = ("run", "git", "trigger", "image", "inputs", "env", "jobs")

_STRING = r"""[rRbB]{0,2}(?:'''.*?'''|\"{3}.*?\"{3}|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")"""
_STRINGS = re.compile(_STRING, re.DOTALL)
_JOB = re.compile(
    r"(?<![\w.])jobs\s*(?:\.\s*(?P<word>\w+)|\[\s*(?P<quoted>'[^'\\\n]*'|\"[^\"\\\n]*\")\s*\])"
    r"(?:\s*\.\s*outputs\s*\.\s*(?P<output>\w+))?|" + _STRING,
    re.DOTALL,
)
_FAILED = re.compile(r"(?<![\w.])run\s*(?:\.\s*failed\b|\[\s*(?:'failed'|\"failed\")\s*\])|" + _STRING, re.DOTALL)
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w*)")
_POSITION = re.compile(r"ERROR: <input>:(\d+):(\d+)\)?: (?:Syntax error: )?([^\n]*)")
_STRANGE = re.compile(r"[^\w\s.,()\[\]{}<>=!&|?:+\-*/%'\"\\]|[^\x00-\x7f]")
_MAX_NESTING = 64


class ConditionError(PermanentError):
    """A condition that cannot be compiled or evaluated. `offset`: where in the expression, None if that is not known."""

    def __init__(self, message: str, *, offset: int | None = None, suggestion: str = "") -> None:
        super().__init__(message, reason=Reason.CONDITION_ERROR)
        self.offset = offset
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class JobMention:
    """A job that a condition looks at, and which of its outputs ("" for none, or its state)."""

    job: str
    output: str
    offset: int


def check_condition(expression: str) -> None:
    """Raise ConditionError unless the expression compiles, stays within the limits and knows its variables."""
    program = _compile(expression)
    bare = _STRINGS.sub("''", expression)
    bound = set(_MACRO.findall(bare))
    for name in program.variables():
        if name not in VARIABLES and name not in bound:
            place = re.search(rf"(?<![\w.]){re.escape(name)}\b", expression)
            raise ConditionError(
                f"there is no variable `{shorten(name)}` (there are {one_of(VARIABLES)}; "
                "names with other signs are written jobs['a-b'])",
                offset=place.start() if place else None,
                suggestion=nearest(name, VARIABLES),
            )


def evaluate_condition(expression: str, context: Mapping[str, Any]) -> bool:
    """The truth of `expression`.

    `context` has a map for each of VARIABLES that is known: `{"run": {"failed": False}, "git": {"branch": "main"},
    "jobs": {"build": {"state": "succeeded", "outputs": {}}}, ...}`; left out ones are empty. Raises ConditionError if
    it cannot be evaluated or is neither true nor false.
    """
    program = _compile(expression)
    variables: dict[str, Any] = {name: dict(context.get(name) or {}) for name in VARIABLES}
    variables["run"].setdefault("failed", False)
    try:
        value = program.execute(variables)
    except KeyError as error:
        raise ConditionError(f"The condition `{shorten(expression)}` asks for {error}, which does not exist.") from None
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ConditionError(f"The condition `{shorten(expression)}` failed: {shorten(error, 200)}") from None
    if not isinstance(value, bool):
        raise ConditionError(
            f"The condition `{shorten(expression)}` gives {shorten(repr(value))}, neither true nor false."
        )
    return value


def typed_inputs(types: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str | float | bool]:
    """The same values as conditions see them: numbers and truth values by the declared `types`. An empty number stays ""."""
    typed: dict[str, str | float | bool] = {}
    for name, value in values.items():
        kind = types.get(name, "string")
        if kind == "boolean":
            typed[name] = value == "true"
        else:
            typed[name] = float(value) if kind == "number" and value else value
    return typed


def runs_after_failure(expression: str | None) -> bool:
    """Does it mention `run.failed`? Only then is its stage or job considered after an earlier failure."""
    found = _FAILED.finditer(expression or "")
    return any(match[0].startswith("run") for match in found)


def mentioned_jobs(expression: str) -> list[JobMention]:
    """The jobs that it names: `jobs.build.state`, `jobs['unit tests'].outputs.X`."""
    found = []
    for match in _JOB.finditer(expression):
        name = match["word"] or (match["quoted"] or "")[1:-1]
        if match[0].startswith("jobs") and name:
            found.append(JobMention(name, match["output"] or "", match.start()))
    return found


def bare_expression(expression: str) -> str:
    """Without the contents of its texts."""
    return _STRINGS.sub("''", expression)


@lru_cache(maxsize=4096)
def _compile(expression: str) -> Any:
    """A program, or ConditionError. What would be slow or deep for the compiler never reaches it."""
    if len(expression) > MAX_LENGTH:
        raise ConditionError(f"a condition may have {MAX_LENGTH} characters, this one has {len(expression)}")
    if not expression.strip():
        raise ConditionError("a condition cannot be empty", offset=0)
    bare = _STRINGS.sub(lambda match: "'" + " " * (len(match[0]) - 2) + "'", expression)
    strange = _STRANGE.search(bare)
    if strange:
        raise ConditionError(f"`{strange[0]}` has no meaning in a condition", offset=strange.start())
    if max(bare.count(char) for char in "([{!?") > _MAX_NESTING:
        raise ConditionError("the condition has too many brackets")
    macros = list(_MACRO.finditer(bare))
    if len(macros) > 1:
        message = "a condition may have one of all, exists, exists_one, map and filter"
        raise ConditionError(message, offset=macros[1].start())
    import cel  # here, because it is slow to import and most workflows have no condition

    try:
        return cel.compile(expression)
    except ValueError as error:
        raise _compile_error(expression, str(error)) from None


def _compile_error(expression: str, text: str) -> ConditionError:
    found = _POSITION.search(text)
    if found is None:
        return ConditionError(f"not a condition: {shorten(text, 200)}")
    row, column, message = int(found[1]), int(found[2]), found[3]
    start = sum(len(line) for line in expression.splitlines(keepends=True)[: row - 1])
    offset = min(start + column - 1, len(expression))
    return ConditionError(_compiler_sentence(message), offset=offset)


def _compiler_sentence(message: str) -> str:
    if "'<EOF>' expecting" in message:
        return "the condition ends too early"
    if message.startswith("token recognition error"):
        return "a text in this condition is not closed"
    unexpected = re.match(
        r"(?:mismatched|extraneous) input '(.*?)' expecting|no viable alternative at input '(.*)'", message
    )
    if unexpected:
        return f"`{shorten(unexpected[1] or unexpected[2])}` cannot stand here in a condition"
    return f"not a condition: {shorten(message, 200)}"
