"""`when`: conditions in CEL (the Common Expression Language).

Variables: those of FIELDS, `inputs`, `env`, `jobs` (state, outputs). An expression has no effects; its cost is bounded by
its length and by allowing one comprehension (`all`, `exists`, `exists_one`, `map`, `filter`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared.errors import PermanentError
from shared.states import JobState, Reason
from shared.workflow.expressions import FIELDS as REFERENCE_FIELDS
from shared.workflow.faults import nearest, one_of, shorten

MAX_LENGTH = 1000
FIELDS: Mapping[str, tuple[str, ...]] = {
    "run": ("failed", "id", "number", "url"),
    **{root: REFERENCE_FIELDS[root] for root in ("git", "trigger", "image")},
}
"""What a condition may name of these; each has a value in every run, the empty text if the run was started without it."""
JOB_FIELDS = ("state", "outputs")
VARIABLES = (*FIELDS, "inputs", "env", "jobs")
METHODS = (
    "contains", "startsWith", "endsWith", "matches", "size", "getFullYear", "getMonth", "getDate", "getDayOfMonth",
    "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds", "getMilliseconds",
)  # fmt: skip
"""Functions that are called on a value: `git.branch.startsWith('x')`."""
FUNCTIONS = ("has", "size", "string", "int", "uint", "double", "bytes", "dyn", "type", "timestamp", "duration")
_ELSEWHERE = {
    "always": "run.failed || true", "failure": "run.failed", "success": "!run.failed", "not": "!",
    "and": "&&", "or": "||", "=": "==", "&": "&&", "|": "||",
}  # fmt: skip
"""What people know from other languages (the first three: from GitHub), and how it is written here."""

_STRING = r"""[rRbB]{0,2}(?:'''.*?'''|\"{3}.*?\"{3}|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")"""
_STRINGS = re.compile(_STRING, re.DOTALL)
_QUOTED = r"""(?:'[^'\\\n]*'|"[^"\\\n]*")"""
_JOB = re.compile(
    rf"(?<![\w.])jobs\s*(?:\.\s*(?P<word>\w+)|\[\s*(?P<quoted>{_QUOTED})\s*\])"
    r"(?:\s*\.\s*(?P<field>\w+)(?:\s*\.\s*(?P<output>\w+))?)?|" + _STRING,
    re.DOTALL,
)
_STATE = rf"(?<![\w.])jobs\s*(?:\.\s*\w+|\[\s*{_QUOTED}\s*\])\s*\.\s*state\b"
_COMPARED_STATE = re.compile(
    rf"{_STATE}\s*(?:[=!]=\s*(?P<right>{_QUOTED})|in\s*\[(?P<list>[^\[\]]*)\])"
    rf"|(?P<left>{_QUOTED})\s*[=!]=\s*{_STATE}|{_STRING}",
    re.DOTALL,
)
_FIELD = re.compile(
    rf"(?<![\w.])(?P<root>{'|'.join((*FIELDS, 'inputs', 'env'))})\s*"
    rf"(?:\.\s*(?P<word>\w+)\b(?!\s*\()|\[\s*(?P<quoted>{_QUOTED})\s*\])|{_STRING}",
    re.DOTALL,
)
_FAILED = re.compile(r"(?<![\w.])run\s*(?:\.\s*failed\b|\[\s*(?:'failed'|\"failed\")\s*\])|" + _STRING, re.DOTALL)
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|existsOne|map|filter)\s*\(\s*(\w*)")
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
    """A job that a condition looks at: which of its fields, and which of its outputs ("" for none)."""

    job: str
    field: str
    output: str
    offset: int


@dataclass(frozen=True, slots=True)
class FieldMention:
    """`git.branch`, `inputs.X`, `run['failed']`: all but jobs."""

    root: str
    name: str
    offset: int


def check_condition(expression: str, context: Mapping[str, Any] | None = None) -> None:
    """Raise ConditionError unless the expression compiles, stays within the limits, knows its variables and functions, and
    is true or false. `context`: values of the right types, see `evaluate_condition`."""
    program = _compile(expression)
    bare = _blanked(expression)
    bound = set(_MACRO.findall(bare))
    for name in program.variables():
        if name not in VARIABLES and name not in bound:
            raise ConditionError(
                f"there is no variable `{shorten(name)}` (there are {one_of(VARIABLES)}; "
                "names with other signs are written jobs['a-b'])",
                offset=_place(rf"(?<![\w.]){re.escape(name)}\b", bare),
                suggestion=nearest(name, VARIABLES),
            )
    for name in program.functions():
        if name.isidentifier():  # operators are called `_+_` and the like
            _check_function(name, bare)
    _check_states(expression)
    try:
        value = program.execute(_variables(context or {}))
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError):
        return  # that depends on the values
    if not isinstance(value, bool):
        kind = "text" if isinstance(value, str) else "number" if isinstance(value, (int, float)) else "value"
        message = f"a condition is true or false, and this is a {kind}: compare it, as in git.branch == 'main'"
        raise ConditionError(message, offset=0)


def _check_function(name: str, bare: str) -> None:
    place = _place(rf"\b{re.escape(name)}\s*\(", bare)
    if name not in FUNCTIONS and name not in METHODS:
        suggestion = _ELSEWHERE.get(name) or nearest(name, (*METHODS, *FUNCTIONS))
        raise ConditionError(f"there is no function `{shorten(name)}`", offset=place, suggestion=suggestion)
    alone = _place(rf"(?<![\w.])(?<!\.\s){re.escape(name)}\s*\(", bare)
    if name not in FUNCTIONS and alone is not None:
        message = f"`{name}` is called on a value, as in git.branch.{name}(…)"
        raise ConditionError(message, offset=alone)


def _check_states(expression: str) -> None:
    """What is compared with a job's state is a state."""
    for match in _COMPARED_STATE.finditer(expression):
        for group in ("left", "right", "list"):
            for literal in re.finditer(_QUOTED, match[group] or ""):
                word = literal[0][1:-1]
                if word not in set(JobState):
                    raise ConditionError(
                        f"no job is ever `{shorten(word)}` (a job's state is {one_of(JobState)})",
                        offset=match.start(group) + literal.start(),
                        suggestion=nearest(word, JobState),
                    )


def evaluate_condition(expression: str, context: Mapping[str, Any]) -> bool:
    """The truth of `expression`.

    `context` has a map for each of VARIABLES that is known: `{"run": {"failed": False}, "git": {"branch": "main"},
    "jobs": {"build": {"state": "succeeded", "outputs": {}}}, ...}`; left out ones are empty, left out FIELDS the empty text.
    Raises ConditionError if it cannot be evaluated or is neither true nor false.
    """
    program = _compile(expression)
    try:
        value = program.execute(_variables(context))
    except KeyError as error:
        raise ConditionError(f"The condition `{shorten(expression)}` asks for {error}, which does not exist.") from None
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ConditionError(f"The condition `{shorten(expression)}` failed: {shorten(error, 200)}") from None
    if not isinstance(value, bool):
        raise ConditionError(
            f"The condition `{shorten(expression)}` gives {shorten(repr(value))}, neither true nor false."
        )
    return value


def _variables(context: Mapping[str, Any]) -> dict[str, Any]:
    variables: dict[str, Any] = {name: dict(context.get(name) or {}) for name in VARIABLES}
    for root, names in FIELDS.items():
        variables[root] = {name: variables[root].get(name, "") for name in names}
    variables["run"]["failed"] = variables["run"]["failed"] or False
    return variables


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
            output = match["output"] or "" if match["field"] == "outputs" else ""
            found.append(JobMention(name, match["field"] or "", output, match.start()))
    return found


def mentioned_fields(expression: str) -> Iterator[FieldMention]:
    """What it names of all other variables."""
    for match in _FIELD.finditer(expression):
        if match["root"]:
            yield FieldMention(match["root"], match["word"] or match["quoted"][1:-1], match.start())


def _blanked(expression: str) -> str:
    """Without the contents of its texts, everything else in its place."""
    return _STRINGS.sub(lambda match: "'" + " " * (len(match[0]) - 2) + "'", expression)


def _place(pattern: str, bare: str) -> int | None:
    found = re.search(pattern, bare)
    return found.start() if found else None


@lru_cache(maxsize=4096)
def _compile(expression: str) -> Any:
    """A program, or ConditionError. What would be slow or deep for the compiler never reaches it."""
    if len(expression) > MAX_LENGTH:
        raise ConditionError(f"a condition may have {MAX_LENGTH} characters, this one has {len(expression)}")
    if not expression.strip():
        raise ConditionError("a condition cannot be empty", offset=0)
    bare = _blanked(expression)
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
    told, suggestion = _compiler_sentence(message, expression[:offset])
    return ConditionError(told, offset=offset, suggestion=suggestion)


def _compiler_sentence(message: str, before: str) -> tuple[str, str]:
    """What the compiler means, and what was probably meant. `before`: the expression up to there."""
    if "'<EOF>' expecting" in message:
        return "the condition ends too early", ""
    if unread := re.match(r"token recognition error at: '(.)", message):
        if unread[1] in "'\"":
            return "a text in this condition is not closed", ""
        return f"`{unread[1]}` has no meaning in a condition", _ELSEWHERE.get(unread[1], "")
    unexpected = re.match(
        r"(?:mismatched|extraneous) input '(.*?)' expecting|no viable alternative at input '(.*)'", message
    )
    if unexpected:
        word = unexpected[1] or unexpected[2]
        if re.search(r"(?<![\w.])not\s+$", before):
            word = "not"
        return f"`{shorten(word)}` cannot stand here in a condition", _ELSEWHERE.get(word, "")
    return f"not a condition: {shorten(message, 200)}", ""
