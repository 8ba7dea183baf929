"""The door for workflow files: text in, a checked model or all faults of the file out.

    text -> source.read (YAML, limits) -> model (shape of each key) -> checks (names, order, references, conditions)

A file that fails in one part is still checked in the others, as far as what is left allows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from shared.workflow import source
from shared.workflow.checks import Path, Problem, check
from shared.workflow.faults import Fault, WorkflowError, nearest, one_of, shorten
from shared.workflow.model import MAX_JOBS, MAX_STAGES, Job, Part, Stage, Workflow

MAX_FAULTS = 50
"""Nobody reads more of them."""

_FOREIGN_KEYS = {
    "image": "component", "uses": "component", "endpoint": "component", "container": "component",
    "depends_on": "needs", "dependencies": "needs", "run": "script", "commands": "script", "steps": "script",
    "if": "when", "condition": "when", "continue_on_error": "allow_failure", "continue-on-error": "allow_failure",
    "soft_fail": "allow_failure", "environment": "env", "environments": "env", "variables": "env", "vars": "env",
    "triggers": "on", "trigger": "on", "parameters": "inputs", "params": "inputs", "args": "command",
    "entrypoint": "command", "working_directory": "workdir", "working-directory": "workdir", "sequence": "sequencing",
    "cancel-in-progress": "policy", "cron": "schedule", "download": "fetch", "upload": "artifacts", "limits": "resources",
    "key": "name", "label": "name", "name": "artifact", "healthcheck": "ready", "rules": "when",
    "expire_in": "retention", "delay": "backoff", "branches": "push", "tags": "push", "approvers": "pause",
    "options": "choices", "script": "jobs", "component": "jobs", "cpu": "resources", "memory": "resources",
    "repo": "repository", "tz": "timezone",
}  # fmt: skip
"""What other systems call the same thing."""


@dataclass(frozen=True, slots=True)
class ParsedWorkflow:
    """A workflow that can be run, and what its author should still look at."""

    model: Workflow
    warnings: tuple[Fault, ...] = ()


def parse_workflow(text: str | bytes, filename: str = "hubflow.yaml") -> ParsedWorkflow:
    """Read and check a workflow file.

    `text` is YAML, as bytes in UTF-8, at most 256 KiB. Raises WorkflowError with every fault (and warning) of the file;
    raises nothing else, whatever the text is.
    """
    decoded = _decode(text, filename)
    try:
        document = source.read(decoded, filename)
    except source.SyntaxFaultsError as stop:
        raise WorkflowError(stop.faults) from None
    raw = document.data()
    if not isinstance(raw, dict):
        message = f"a workflow file is a map, but this is {document.root.kind}"
        fault = document.source.fault(document.root.start, message, expected="`name:` and `stages:`")
        raise WorkflowError([*document.faults, fault])
    raw = {key: value for key, value in raw.items() if not key.startswith("x-")}
    crowded = _too_many(raw)
    if crowded:
        raise WorkflowError([_fault(document, crowded)])
    model, problems = _validate(raw)
    # without stages everything else looks unused
    problems += (problem for problem in check(model) if model.stages or problem.severity == "error")
    problems = _without_consequences(problems)
    problems += _unitless_timeout(raw)
    faults = _in_order([*document.faults, *(_fault(document, problem) for problem in problems)])
    if any(fault.severity == "error" for fault in faults):
        raise WorkflowError(faults)
    return ParsedWorkflow(model, tuple(faults))


def _decode(text: str | bytes, filename: str) -> str:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    size = -(-len(data) // 1024)
    limit = source.MAX_BYTES // 1024
    if size > limit:
        has = f"{size} KiB" if size <= 2048 else "more than 2 MiB"  # whoever reads files may stop there
        message = f"the file has {has}, a workflow file may have {limit} KiB"
        raise WorkflowError([Fault(filename, 1, 1, "", message, expected="long scripts in files of the repository")])
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            good = data[: error.start].decode("utf-8")
            shown = source.Source(filename, good)
            message = f"the byte 0x{error.object[error.start]:02X} is not text in UTF-8"
            raise WorkflowError([shown.fault(len(good), message, expected="a file saved as UTF-8")]) from None
    text = text.removeprefix("\ufeff")
    lone = re.search("[\ud800-\udfff]", text)
    if lone:
        shown = source.Source(filename, text.encode("utf-8", "replace").decode())
        raise WorkflowError([shown.fault(lone.start(), f"U+{ord(lone[0]):04X} is half a character", expected="UTF-8")])
    return text


def _in_order(faults: Iterable[Fault]) -> list[Fault]:
    """By place in the file, each once, at most MAX_FAULTS."""
    unique = {(fault.line, fault.column, fault.message): fault for fault in faults}
    ordered = sorted(unique.values(), key=lambda fault: (fault.line, fault.column))
    errors = [fault for fault in ordered if fault.severity == "error"]
    return ordered if len(ordered) <= MAX_FAULTS else (errors or ordered)[:MAX_FAULTS]


def _fault(document: source.Document, problem: Problem) -> Fault:
    node, key, depth = document.find(problem.path)
    complete = depth == len(problem.path)
    if (problem.on_key or not complete) and key is not None and complete:
        at = key.start
    elif problem.offset is not None and node.scalar is not None:
        at = document.inside(node, problem.offset, problem.needle)
    elif not complete and key is not None and (node.entries is not None or problem.path[depth:] == ("name",)):
        at = key.start  # something is missing in this map, or the word is the name: point at the word before it
    else:
        at = node.start
    return document.source.fault(
        at, problem.message, path=document.name_path(problem.path), expected=problem.expected,
        suggestion=problem.suggestion, severity=problem.severity,
    )  # fmt: skip


def _too_many(raw: dict[str, Any]) -> Problem | None:
    """Counts that no later step has to bear."""
    stages = raw.get("stages")
    if not isinstance(stages, list):
        return None
    if len(stages) > MAX_STAGES:
        message = f"a workflow may have {MAX_STAGES} stages, this one has {len(stages)}"
        return Problem(("stages",), message, expected=f"at most {MAX_STAGES}", on_key=True)
    listed = [stage.get("jobs") for stage in stages if isinstance(stage, dict)]
    count = sum(len(jobs) for jobs in listed if isinstance(jobs, (list, dict)))
    if count <= MAX_JOBS:
        return None
    message = f"a workflow may have {MAX_JOBS} jobs, this one has {count}"
    return Problem(("stages",), message, expected=f"at most {MAX_JOBS}", on_key=True)


def _unitless_timeout(raw: dict[str, Any]) -> list[Problem]:
    value = raw.get("timeout")
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}", value) or int(value) == 0:
        return []
    message = f"a timeout without a unit is read as minutes, as TencentHub did: {value}m"
    return [Problem(("timeout",), message, suggestion=f"{value}m", severity="warning")]


# --- the model, whole or in parts -------------------------------------------------------------------------------------


def _validate(raw: dict[str, Any]) -> tuple[Workflow, list[Problem]]:
    try:
        return Workflow.model_validate(raw), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        # of a list with a wrong item pydantic also says that it is too short
        details = [detail for detail in details if not (detail["type"] == "too_short" and detail["input"])]
        details = details[:MAX_FAULTS]
        missing = [detail["loc"] for detail in details if detail["type"] == "missing"]
        nameless = {path[:-1] for path in missing if path[-1] == "name"}
        return _tolerant_workflow(raw), [_problem(detail, nameless) for detail in details]


def _without_consequences(problems: list[Problem]) -> list[Problem]:
    """A key that is there under a wrong name is not missing too, and its job does run something."""
    meant: set[Path] = set()
    for problem in problems:
        if problem.on_key and problem.suggestion:
            part, (key, _, more) = problem.path[:-1], problem.suggestion.partition(":")
            meant |= {(*part, key), part} if more or key in {"component", "script", "jobs"} else {(*part, key)}
    if ("stages",) in meant:  # jobs that stand beside the stages
        meant |= {("stages", number) for number in range(MAX_STAGES)}
    return [problem for problem in problems if not (problem.missing and problem.path in meant)]


@cache
def _adapters(part: type[Part]) -> dict[str, TypeAdapter[Any]]:
    found: dict[str, TypeAdapter[Any]] = {}
    for name, info in part.model_fields.items():
        annotation: Any = Annotated[info.annotation, *(info.metadata or (None,))]
        found[name] = TypeAdapter(annotation)
    return found


def _tolerant(part: type[Part], raw: Any, **known: Any) -> Any:
    """A `part` made of what is right in `raw`; the rest has its defaults, required names are "".

    Serves only to go on checking a file that is refused anyway.
    """
    values = dict(known)
    written = raw if isinstance(raw, dict) else {}
    for name, info in part.model_fields.items():
        key = info.alias or name
        if name not in values and written.get(key) is not None:
            values[name] = _tolerant_value(part, name, written[key])
        elif name not in values and info.is_required():
            values[name] = ""
    return part.model_construct(_fields_set=set(values), **{**_defaults(part), **values})


@cache
def _defaults(part: type[Part]) -> dict[str, Any]:
    fields = part.model_fields.items()
    return {name: info.get_default(call_default_factory=True) for name, info in fields if not info.is_required()}


def _tolerant_job(raw: Any) -> Any:
    try:
        return Job.model_validate(raw)
    except ValidationError:
        return _tolerant(Job, raw if isinstance(raw, dict) else {"script": "true"})


def _tolerant_value(part: type[Part], name: str, raw: Any) -> Any:
    """The value of one key; of a map or list with faults, what is right in it (in the same places)."""
    info, adapter = part.model_fields[name], _adapters(part)[name]
    fallback = "" if info.is_required() else info.get_default(call_default_factory=True)
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        wrong = {detail["loc"][0]: "[key]" in detail["loc"] for detail in error.errors() if detail["loc"]}
    if part is Job and name in {"component", "script"}:
        return "unknown"
    if not wrong:  # the value as a whole
        return fallback
    inner = _inner_part(info.annotation)
    if isinstance(fallback, dict) and isinstance(raw, dict):
        kept = {key: None if key in wrong else item for key, item in raw.items() if not wrong.get(key)}
        return _valid_or(adapter, kept, fallback)
    if isinstance(fallback, tuple) and inner is not None:
        items = raw if isinstance(raw, list) else [raw]
        found = [_valid_or(adapter, [item], None) for item in items]
        return tuple(one[0] if one else _tolerant(inner, item) for one, item in zip(found, items, strict=True))
    return _tolerant(inner, raw) if inner is not None and isinstance(raw, dict) else fallback


def _valid_or(adapter: TypeAdapter[Any], raw: Any, fallback: Any) -> Any:
    try:
        return adapter.validate_python(raw)
    except ValidationError:
        return fallback


def _tolerant_workflow(raw: dict[str, Any]) -> Workflow:
    listed = raw.get("stages")
    stages = [_tolerant_stage(stage) for stage in listed[:MAX_STAGES]] if isinstance(listed, list) else []
    workflow: Workflow = _tolerant(Workflow, raw, stages=tuple(stages))
    return workflow


def _tolerant_stage(raw: Any) -> Stage:
    listed = raw.get("jobs") if isinstance(raw, dict) else None
    if isinstance(listed, dict):
        listed = [{"name": name, **job} if isinstance(job, dict) else job for name, job in listed.items()]
    if not isinstance(listed, list):
        # no jobs to judge; one nameless job keeps the checks from complaining that there are none
        judged = isinstance(raw, dict) and raw.get("jobs") is None and raw.get("type") in (None, "normal", "pause")
        listed = [] if judged else [{"script": "true"}]
    jobs = [_tolerant_job(job) for job in listed[:MAX_JOBS]]
    more = {"jobs": tuple(jobs)} if jobs or (isinstance(raw, dict) and "jobs" in raw) else {}
    stage: Stage = _tolerant(Stage, raw, **more)
    return stage


# --- pydantic's errors in our words -----------------------------------------------------------------------------------

_KINDS = {
    "dict_type": "a map (NAME: value)", "model_type": "a map", "model_attributes_type": "a map",
    "tuple_type": "a list", "list_type": "a list", "string_type": "a text",
}  # fmt: skip


def _problem(detail: ErrorDetails, nameless: Collection[Path]) -> Problem:
    path: Path = tuple(step for step in detail["loc"] if step != "[key]")
    on_key = "[key]" in detail["loc"]
    kind, context = detail["type"], detail.get("ctx", {})
    name = next((str(step) for step in reversed(path) if isinstance(step, str)), "this file")
    if kind == "hubflow":
        path += context["at"]
        return Problem(path, context["message"], context["expected"], context["suggestion"], on_key=on_key)
    if kind == "missing":
        info = _part_at(path).model_fields.get(name)
        expected = (info.description or "") if info is not None else ""
        return Problem(path, f"`{name}` is missing", expected=f"{name}: {expected}".strip(), missing=True)
    if kind == "extra_forbidden":
        return _unknown_key(path, name, detail["input"], path[:-1] in nameless)
    if kind in _KINDS:
        return _wrong_kind(path, name, kind, detail["input"])
    return Problem(path, *_limit_message(kind, name, context, detail["msg"]), on_key=on_key)


def _unknown_key(path: Path, name: str, value: Any, nameless: bool) -> Problem:
    part = _part_at(path)
    if part is Workflow and (name == "jobs" or _is_job(value)):
        jobs = "…" if name == "jobs" else f"{{{shorten(name)}: …}}"
        what = "`jobs` belong" if name == "jobs" else f"`{shorten(name)}` looks like a job: jobs belong"
        return Problem(path, f"{what} into a stage", suggestion=f"stages: [{{name: build, jobs: {jobs}}}]", on_key=True)
    keys = part.written_keys()
    suggestion = _meant_key(name, keys)
    if nameless and part is not Workflow and not suggestion and isinstance(value, (dict, list)):  # `- build: {…}`
        suggestion = f"name: {shorten(name)}"
    message = f"unknown key `{shorten(name)}`"
    if name and not name[0].isprintable():  # a space that is none for YAML
        message = f"the character U+{ord(name[0]):04X} stands before `{shorten(name[1:])}`"
    return Problem(path, message, expected=one_of(keys), suggestion=suggestion, on_key=True)


def _is_job(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint({"script", "steps", "stage"})


def _meant_key(name: str, keys: Sequence[str]) -> str:
    """The key that this one was probably meant to be, also if it is another system's, or nearly."""
    foreign = {word: meant for word, meant in _FOREIGN_KEYS.items() if meant in keys}
    return foreign.get(name) or nearest(name, keys) or foreign.get(nearest(name, foreign, likeness=0.8), "")


def _wrong_kind(path: Path, name: str, kind: str, value: Any) -> Problem:
    one, is_item = "", bool(path) and isinstance(path[-1], int)
    wanted = expected = _KINDS[kind]
    if name in {"jobs", "services"} and not is_item:
        wanted = expected = f"a map of {name} or a list"
    elif kind.startswith("model") and name != "stages":
        expected = f"a map with {one_of(_part_at((*path, 0)).written_keys())}"
        expected = f"true, or {expected}" if name == "push" else expected
    elif name == "stages":
        one = value if isinstance(value, str) else ""
        if isinstance(value, dict):
            one = value["name"] if isinstance(value.get("name"), str) else next(iter(value), "")
        expected = f"{'' if is_item else 'a list: '}`- name: {shorten(one) or 'build'}`, with `jobs:` under it"
    item = "an item of " if is_item else ""
    if isinstance(value, dict) and one.startswith("-"):
        return Problem((*path, one), "a space is missing after `-`", expected="`- ` before each item", on_key=True)
    return Problem(path, f"{item}`{shorten(name)}` should be {wanted}, but this is {_kind_of(value)}", expected)


def _limit_message(kind: str, name: str, context: dict[str, Any], message: str) -> tuple[str, str]:
    if kind in {"greater_than_equal", "less_than_equal"}:
        word, limit = ("at least", context.get("ge")) if kind.startswith("greater") else ("at most", context.get("le"))
        return f"`{name}` should be {word} {limit:g}", f"{word} {limit:g}"
    if kind == "too_short":
        return f"`{name}` should not be empty", "at least one"
    if kind == "too_long":
        limit = context.get("max_length")
        return f"`{name}` has more than {limit} items", f"at most {limit}"
    return f"`{name}` is not right: {message[:1].lower()}{message[1:]}", ""


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a map" if isinstance(value, dict) else "a list" if isinstance(value, (list, tuple)) else "a text"


def _part_at(path: Sequence[str | int]) -> type[Part]:
    """The part of the model that the last step of `path` is a key of."""
    part: type[Part] = Workflow
    for step in path[:-1]:
        aliases = {info.alias: info for info in part.model_fields.values() if info.alias}
        info = part.model_fields.get(str(step)) or aliases.get(str(step))
        inner = _inner_part(info.annotation) if info is not None else None
        part = inner or part
    return part


def _inner_part(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if issubclass(annotation, Part) else None
    for argument in get_args(annotation):
        found = _inner_part(argument)
        if found is not None:
            return found
    return None
