"""What a workflow must hold to beyond the shape of each key: names, order, references, conditions.

Works on a model whose faulty parts may be missing (see `parser._tolerant`), so that all faults of a file come at once:
a job without a name has the name "", and whatever depends on it is not judged.
"""

from __future__ import annotations

import contextlib
import graphlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shared.workflow.conditions import (
    FIELDS,
    JOB_FIELDS,
    MAX_LENGTH,
    ConditionError,
    check_condition,
    mentioned_fields,
    mentioned_jobs,
    runs_after_failure,
    typed_inputs,
)
from shared.workflow.expressions import (
    ROOTS,
    each_reference,
    mentioned_names,
    references,
    shape_fault,
)
from shared.workflow.faults import nearest, one_of, shorten
from shared.workflow.model import BUILTIN_PAUSE, Job, Stage, Workflow

Path = tuple[str | int, ...]

MAX_CONDITIONS_LENGTH = 12_000
"""Characters of all different conditions of a file together: keeps the check of a hostile file quick."""
MAX_PROBLEMS = 50
"""After that many a file is not looked at any further."""
_MAX_COMPARISONS = 1500
"""Words that are compared to find the nearest ones, in one file."""
_MAX_CYCLES = 10
_ALWAYS_KNOWN_ENV = re.compile(r"IMAGE\Z|_WORKFLOW_")
"""Variables that a run may have beside the file's own (TencentHub's, and the image of an image trigger)."""
SET_BY_HUBFLOW = frozenset(
    {"CI", "HUBFLOW", "_WORKFLOW_BUILD_TYPE", "_WORKFLOW_FLOW_URL", "_WORKFLOW_FLOW_TASK_ID", "_WORKFLOW_FLOW_UIN"}
)
"""Variables that every job has from Hubflow, whatever the file says. (Names that begin with HUBFLOW_ are refused.)"""
_OF_A_JOB = re.compile(r"(CI|HUBFLOW|HUBFLOW_\w+|_WORKFLOW_\w+|IMAGE)\Z")
_START = tuple(root for root in ROOTS if root not in {"jobs", "env", "pause"})
_GROUP = ("inputs", "env", "git", "image", "workflow", "trigger")
_RUN = (*_GROUP, "run", "jobs")
"""What a run has outside its jobs."""
_SHELL = re.compile(r"(\S*/)?(ba|da|a|z)?sh -[a-z]*c\Z")


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault by its path in the data; the parser turns it into a place in the text."""

    path: Path
    message: str
    expected: str = ""
    suggestion: str = ""
    severity: Literal["error", "warning"] = "error"
    on_key: bool = False
    """Points at the key, not at its value."""
    missing: bool = False
    """Something is not there: no fault if it is there under a wrong name."""
    offset: int | None = None
    """Character in the text at `path`."""
    needle: str = ""


@dataclass
class _Place:
    """A job, and where it stands."""

    stage_index: int
    index: int
    stage: Stage
    job: Job
    path: Path
    before: int = 0
    """Bit set of the jobs of the same stage that are over before this one starts."""


@dataclass
class _Checker:
    workflow: Workflow
    problems: list[Problem] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)
    by_name: dict[str, _Place] = field(default_factory=dict)
    keepers: dict[str, list[str]] = field(default_factory=dict)
    """Artifact name to the jobs that keep it."""
    unnamed_artifacts: bool = False
    """There are some whose name has a fault of its own: they may be the ones that are fetched."""

    comparisons: int = _MAX_COMPARISONS

    def add(self, path: Path, message: str, **more: object) -> None:
        self.problems.append(Problem(path, message, **more))  # type: ignore[arg-type]
        if len(self.problems) >= MAX_PROBLEMS:
            raise _EnoughError

    def nearest(self, word: str, choices: Collection[str]) -> str:
        self.comparisons -= min(len(choices), 500)
        return nearest(word, choices) if self.comparisons >= 0 else ""


class _EnoughError(Exception):
    """Nobody reads more faults than that."""


def check(workflow: Workflow) -> list[Problem]:
    """All problems of the workflow, warnings among them, in no particular order."""
    checker = _Checker(workflow)
    with contextlib.suppress(_EnoughError):
        _check_all(checker)
    return checker.problems


def _check_all(checker: _Checker) -> None:
    workflow = checker.workflow
    _index(checker)
    for stage_index, stage in enumerate(workflow.stages):
        _check_stage(checker, stage_index, stage)
        _check_order(checker, [place for place in checker.places if place.stage_index == stage_index])
    for place in checker.places:
        _check_what_it_runs(checker, place)
        _check_services(checker, place)
        _check_variables(checker, place)
        _check_fetches(checker, place)
        _check_job_texts(checker, place)
    _check_set_by_hubflow(checker, ("env",), checker.workflow.env)
    _check_workflow_texts(checker)
    _check_conditions(checker)
    _check_unused_inputs(checker)
    _check_what_does_nothing_yet(checker)


def _index(checker: _Checker) -> None:
    stages: dict[str, int] = {}
    for stage_index, stage in enumerate(checker.workflow.stages):
        path: Path = ("stages", stage_index)
        if stage.name and stages.setdefault(stage.name, stage_index) != stage_index:
            checker.add((*path, "name"), f"two stages are called `{shorten(stage.name)}`", expected="a name of its own")
        for index, job in enumerate(stage.jobs):
            place = _Place(stage_index, index, stage, job, (*path, "jobs", index))
            checker.places.append(place)
            checker.unnamed_artifacts |= not all(job.name and artifact.name for artifact in job.artifacts)
            if not job.name:
                continue
            first = checker.by_name.setdefault(job.name, place)
            if first is not place:
                where = f" (the first is in stage `{shorten(first.stage.name)}`)" if first.stage.name else ""
                message = f"two jobs are called `{shorten(job.name)}`{where}"
                checker.add((*place.path, "name"), message, expected="a name of its own in the whole workflow")
            for number, artifact in enumerate(job.artifacts):
                if not artifact.name:
                    continue
                keepers = checker.keepers.setdefault(artifact.name, [])
                if job.name in keepers:
                    message = f"the job keeps two artifacts called `{artifact.name}`"
                    checker.add(
                        (*place.path, "artifacts", number), message, expected="one artifact with several `paths`"
                    )
                keepers.append(job.name)


def _check_stage(checker: _Checker, stage_index: int, stage: Stage) -> None:
    path: Path = ("stages", stage_index)
    if not stage.jobs and stage.type == "normal" and "jobs" not in stage.model_fields_set:
        called = f"the stage `{shorten(stage.name)}`" if stage.name else "this stage"
        checker.add(path, f"{called} has no jobs", expected="`jobs`, or type: pause", missing=True)
    elif not stage.jobs and stage.type == "normal":
        checker.add((*path, "jobs"), "a stage needs at least one job", expected="a list or a map of jobs")
    if stage.pause is not None and stage.type != "pause":
        checker.add((*path, "pause"), "only a stage of type pause can pause", expected="type: pause", on_key=True)
    if stage.type == "normal" and any(job.builtin == BUILTIN_PAUSE for job in stage.jobs):
        message = "workflow_pause pauses nothing in a stage of type normal"
        checker.add(path, message, expected="type: pause", severity="warning")


def _check_order(checker: _Checker, places: Sequence[_Place]) -> None:
    """`needs` of one stage: they exist, make no cycle, and fit a serial order. Fills in `before`."""
    if not places:
        return
    stage = places[0].stage
    positions = {place.job.name: place.index for place in places if place.job.name}
    graph: dict[int, set[int]] = {place.index: set() for place in places}
    for place in places:
        seen: set[str] = set()
        for number, need in enumerate(place.job.needs):
            target = _needed(checker, place, number, positions, seen) if need.name else None
            seen.add(need.name)
            if target is not None:
                graph[place.index].add(target)
        if stage.sequencing == "serial" and place.index:
            graph[place.index].add(place.index - 1)
    if not _report_cycles(checker, places, graph):
        for place in places:  # what comes first cannot be told: say nothing about it
            place.before = (1 << len(places)) - 1
        return
    for index in graphlib.TopologicalSorter(graph).static_order():
        for needed in graph[index]:
            places[index].before |= places[needed].before | 1 << needed


def _needed(
    checker: _Checker, place: _Place, number: int, positions: dict[str, int], earlier: Collection[str]
) -> int | None:
    """Index of the job that a need names, or None (reported) if it cannot be waited for."""
    need = place.job.needs[number]
    path: Path = (*place.path, "needs", number)
    if need.name in earlier:
        checker.add(path, f"`{shorten(need.name)}` stands twice in `needs`")
        return None
    target = positions.get(need.name)
    if target is None:
        other = checker.by_name.get(need.name)
        if other is None:
            checker.add(path, f"there is no job `{shorten(need.name)}`", expected=_names(positions, place.job.name),
                        suggestion=checker.nearest(need.name, set(positions) - {place.job.name}))  # fmt: skip
        elif other.stage_index < place.stage_index:
            message = f"`{shorten(need.name)}` belongs to an earlier stage and is over by then: it need not be named"
            checker.add(path, message, severity="warning")
        else:
            checker.add(
                path, f"`{shorten(need.name)}` belongs to a later stage", expected=_names(positions, place.job.name)
            )
        return None
    if target == place.index:
        checker.add(path, f"the job `{shorten(need.name)}` cannot need itself")
        return None
    if place.stage.sequencing == "serial" and target > place.index:
        message = f"`{shorten(need.name)}` comes later in this serial stage"
        checker.add(path, message, expected="an earlier job, or sequencing: parallel")
        return None
    return target


def _names(names: Collection[str], without: str) -> str:
    others = [name for name in names if name != without]
    return f"a job of the same stage: {one_of(others)}" if others else "a job of the same stage (there is no other)"


def _report_cycles(checker: _Checker, places: Sequence[_Place], graph: dict[int, set[int]]) -> bool:
    """Name each cycle and cut it, so that the rest can be judged; False if there are too many for that."""
    for _ in range(_MAX_CYCLES):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            cycle: list[int] = error.args[1][:-1]  # each one is needed by the next
            first = cycle.index(min(cycle))
            order = [cycle[first], *reversed(cycle[first + 1 :]), *reversed(cycle[:first])]  # each one needs the next
            names = [places[index].job.name for index in (*order, order[0])]
            shown = names if len(names) <= 8 else [*names[:6], "…", names[-1]]
            job = places[order[0]].job
            number = next((at for at, need in enumerate(job.needs) if need.name == names[1]), 0)
            message = "these jobs wait for each other: " + " needs ".join(shorten(name, 30) for name in shown)
            checker.add((*places[order[0]].path, "needs", number), message, expected="an order without a cycle")
            for index, needed in zip(order, (*order[1:], order[0]), strict=True):
                graph[index].discard(needed)
        else:
            return True
    return False


def _check_what_it_runs(checker: _Checker, place: _Place) -> None:
    job = place.job
    given = job.model_fields_set
    if "component" not in given and "script" not in given:
        called = f"the job `{shorten(job.name)}`" if job.name else "this job"
        checker.add(place.path, f"{called} runs nothing", expected="`component` or `script`", missing=True)
    elif job.builtin and "script" in given:
        message = f"`{job.component}` is done by Hubflow itself and runs no `script`"
        checker.add((*place.path, "script"), message, expected="one of the two", on_key=True)
    elif not job.component.strip() and not job.script.strip():
        key = "component" if "component" in given else "script"
        checker.add(
            (*place.path, key), f"`{key}` is empty", expected="an image" if key == "component" else "shell lines"
        )
    if "script" in given and "command" in given:
        checker.add((*place.path, "command"), "a `script` has no `command`", expected="one of the two", on_key=True)
    bare = re.sub(r"\$?\$\{\{[^{}]*\}\}", "", job.component)
    if any(char.isspace() for char in bare.strip()) or len(bare) > 1000:
        checker.add((*place.path, "component"), "this is not the address of an image", expected="registry/name:tag")


def _check_services(checker: _Checker, place: _Place) -> None:
    job = place.job
    if job.services and job.builtin:
        message = f"`{job.component}` is done by Hubflow itself and has no services"
        checker.add((*place.path, "services"), message, expected="services in another job", on_key=True)
    names: set[str] = set()
    ports: dict[int, str] = {}
    for number, service in enumerate(job.services):
        path: Path = (*place.path, "services", number)
        if service.name and service.name in names:
            checker.add((*path, "name"), f"two services are called `{service.name}`", expected="a name of its own")
        names.add(service.name)
        bare = re.sub(r"\$?\$\{\{[^{}]*\}\}", "", service.image)
        odd = any(char.isspace() for char in bare.strip()) or len(bare) > 1000 or not service.image.strip()
        if service.image and odd:
            checker.add((*path, "image"), "this is not the address of an image", expected="registry/name:tag")
        port = service.ready.port if service.ready is not None else None
        if port is not None and ports.setdefault(port, service.name) != service.name:
            message = f"`{ports[port]}` has the port {port} already, and a job and its services share one network"
            checker.add((*path, "ready"), message, expected="another port")


def _check_variables(checker: _Checker, place: _Place) -> None:
    for name in place.job.inputs:
        path: Path = (*place.path, "inputs", name)
        if name in place.job.env:
            message = f"`{name}` stands in `inputs` and in `env`"
            checker.add(path, message, expected="one of the two", on_key=True)
    for key, names in (("inputs", place.job.inputs), ("env", place.job.env)):
        _check_set_by_hubflow(checker, (*place.path, key), names)
        for name in names:
            if name in checker.workflow.env:
                message = f"`{name}` hides the global variable of that name in this job"
                checker.add((*place.path, key, name), message, severity="warning", on_key=True)


def _check_set_by_hubflow(checker: _Checker, path: Path, names: Collection[str]) -> None:
    for name in names:
        if name in SET_BY_HUBFLOW:
            message = f"`{name}` is set by Hubflow itself: no job sees this value"
            checker.add((*path, name), message, expected="another name", severity="warning", on_key=True)


def _check_fetches(checker: _Checker, place: _Place) -> None:
    for number, fetch in enumerate(place.job.fetch):
        path: Path = (*place.path, "fetch", number)
        keepers = checker.keepers.get(fetch.artifact, [])
        if not fetch.artifact or (not keepers and checker.unnamed_artifacts):
            continue
        if not keepers:
            checker.add(path, f"no job keeps an artifact `{shorten(fetch.artifact)}`",
                        expected=f"an artifact: {one_of(sorted(checker.keepers))}" if checker.keepers else "an artifact",
                        suggestion=checker.nearest(fetch.artifact, checker.keepers))  # fmt: skip
            continue
        if fetch.from_ and fetch.from_ not in keepers:
            checker.add((*path, "from"), f"the job `{shorten(fetch.from_)}` keeps no artifact `{fetch.artifact}`",
                        expected=one_of(keepers), suggestion=checker.nearest(fetch.from_, keepers))  # fmt: skip
        elif not fetch.from_ and len(keepers) > 1:
            message = f"several jobs keep an artifact `{fetch.artifact}`"
            checker.add(path, message, expected=f"from: {one_of(keepers)}")
        else:
            source = checker.by_name.get(fetch.from_ or keepers[0])
            if source is not None and not _is_before(source, place):
                message, expected = _not_before(source, place)
                checker.add(path, message, expected=expected)


def _is_before(source: _Place, place: _Place) -> bool:
    if source.stage_index == place.stage_index:
        return bool(place.before >> source.index & 1)
    return source.stage_index < place.stage_index


def _not_before(source: _Place, place: _Place) -> tuple[str, str]:
    name = shorten(source.job.name)
    if source is place:
        return "a job cannot use what it makes itself", "another job, finished before"
    if source.stage_index > place.stage_index:
        return f"the job `{name}` runs in a later stage", "a job that is over before this one starts"
    return f"the job `{name}` may not be over when this one starts", f"needs: [{name}]"


def _check_job_texts(checker: _Checker, place: _Place) -> None:
    job, path = place.job, place.path
    roots = ROOTS if place.stage.type == "pause" else tuple(root for root in ROOTS if root != "pause")
    harmless = tuple(root for root in roots if root != "secrets")
    for key, values in (("inputs", job.inputs), ("env", job.env)):
        for name, value in values.items():
            _check_text(checker, (*path, key, name), value, roots, place)
    _check_text(checker, (*path, "component"), job.component, harmless, place)
    _check_text(checker, (*path, "workdir"), job.workdir, harmless, place)
    for number, cache in enumerate(job.cache):
        _check_text(checker, (*path, "cache", number, "name"), cache.name, harmless, place)
    _check_code(checker, (*path, "script"), job.script)
    _check_command(checker, (*path, "command"), job.command, roots, place)
    for number, service in enumerate(job.services):
        own: Path = (*path, "services", number)
        _check_text(checker, (*own, "image"), service.image, harmless, place)
        _check_command(checker, (*own, "command"), service.command, roots, place)
        for name, value in service.env.items():
            _check_text(checker, (*own, "env", name), value, roots, place)
        if service.ready is not None:
            _check_command(checker, (*own, "ready", "command"), service.ready.command, (), place)


def _check_command(
    checker: _Checker, path: Path, command: Sequence[str], roots: Collection[str], place: _Place
) -> None:
    shell = len(command) > 2 and bool(_SHELL.match(" ".join(command[:2])))
    for number, word in enumerate(command):
        if shell and number == 2:
            _check_code(checker, (*path, number), word)
        else:
            _check_text(checker, (*path, number), word, roots, place)


def _check_code(checker: _Checker, path: Path, text: str) -> None:
    """A value put into shell code would be run by the shell: a branch may be called `$(reboot)`."""
    for reference in each_reference(text):
        if reference.path and reference.path[0] in ROOTS:
            message = f"{shorten(reference.text)} in shell code would be run as code"
            expected = 'the reference in `env`, and the variable in the code: env: {X: ${{ … }}} and "$X"'
            checker.add(path, message, expected=expected, offset=reference.offset, needle=reference.text)


def _check_workflow_texts(checker: _Checker) -> None:
    workflow = checker.workflow
    for name, variable in workflow.env.items():
        _check_text(checker, ("env", name), variable.value, _START)
    if workflow.concurrency is not None:
        roots = _GROUP if workflow.on.image else tuple(root for root in _GROUP if root != "image")
        _check_text(checker, ("concurrency", "group"), workflow.concurrency.group, roots, of_a_job=False)
    for number, schedule in enumerate(workflow.on.schedule):
        for name in schedule.inputs:
            if name not in workflow.inputs:
                path: Path = ("on", "schedule", number, "inputs", name)
                checker.add(path, f"the workflow has no input `{shorten(name)}`", on_key=True,
                            suggestion=checker.nearest(name, workflow.inputs))  # fmt: skip
    for index, stage in enumerate(workflow.stages):
        if stage.pause is not None:
            gate = _Place(index, len(stage.jobs), stage, Job.model_construct(name=""), ("stages", index))
            gate.before = (1 << len(stage.jobs)) - 1
            path = ("stages", index, "pause", "message")
            _check_text(checker, path, stage.pause.message, _RUN, gate, of_a_job=False)


def _check_text(
    checker: _Checker, path: Path, text: str, roots: Collection[str], place: _Place | None = None, *,
    of_a_job: bool = True,
) -> None:  # fmt: skip
    """The references of one text: they can be read, are allowed here, and what they name will be there."""
    if "${{" not in text:
        return
    for reference in each_reference(text):
        found = shape_fault(reference.path, roots)
        if found is None and not of_a_job:
            found = _job_only_fault(checker, reference.path, roots)
        found = found or _target_fault(checker, reference.path, place)
        if found is not None:
            message, expected, suggestion = found
            checker.add(path, message, expected=expected, suggestion=suggestion, offset=reference.offset,
                        needle=reference.text)  # fmt: skip


def _job_only_fault(checker: _Checker, path: tuple[str, ...], roots: Collection[str]) -> tuple[str, str, str] | None:
    """Why this has a value in a job, and none in what belongs to the whole run, where only `roots` are known."""
    if path == ("run", "attempt"):
        return "only a job has an attempt", "run.id, number or url", ""
    if path[0] != "env":
        return None
    name, known = path[1], checker.workflow.env
    if name not in known:
        if not _ALWAYS_KNOWN_ENV.match(name):
            return None
        return f"only jobs have `{name}`", "image.reference, or a field of git, trigger or run", ""
    value = known[name].value
    for reference in each_reference(value):
        if reference.path and (reference.path[0] not in roots or reference.path == ("run", "attempt")):
            message = f"`env.{name}` has no value here: it holds {shorten(reference.text)}"
            return message, f"a variable made of {one_of(root for root in roots if root in _START)}", ""
    for other in sorted(mentioned_names(value)):
        if "$" in known[other].value if other in known else _OF_A_JOB.match(other):
            return f"`env.{name}` has no value here: only jobs have ${{{other}}}", "a variable without it", ""
    return None


def _target_fault(checker: _Checker, path: tuple[str, ...], place: _Place | None) -> tuple[str, str, str] | None:
    root, name, *rest = path
    if root == "inputs" and name not in checker.workflow.inputs:
        known = checker.workflow.inputs
        return f"the workflow has no input `{shorten(name)}`", _listed(root, known), checker.nearest(name, known)
    if root == "env" and name not in checker.workflow.env and not _ALWAYS_KNOWN_ENV.match(name):
        variables = checker.workflow.env
        message = f"there is no global variable `{shorten(name)}`"
        return message, _listed(root, variables), checker.nearest(name, variables)
    if root == "jobs" and place is not None:
        return _job_fault(checker, name, rest[1] if len(rest) == 2 else "", place)
    return None


def _listed(root: str, names: Collection[str]) -> str:
    if root in FIELDS:
        return one_of(f"{root}.{name}" for name in names)
    what = "global variables" if root == "env" else root
    return f"one of the {what}: {one_of(names)}" if names else f"a name under the workflow's `{root}`"


def _job_fault(checker: _Checker, name: str, output: str, place: _Place) -> tuple[str, str, str] | None:
    source = checker.by_name.get(name)
    if source is None:
        known = [other for other, where in checker.by_name.items() if _is_before(where, place)]
        expected = f"a job that is over before: {one_of(known)}" if known else "a job that is over before"
        return f"there is no job `{shorten(name)}`", expected, checker.nearest(name, known)
    if not _is_before(source, place):
        return (*_not_before(source, place), "")
    declared = source.job.outputs
    if output and declared and output not in declared:
        message = f"the job `{shorten(name)}` declares no output `{shorten(output)}`"
        return message, one_of(list(declared)), checker.nearest(output, declared)
    return None


def _conditions(checker: _Checker) -> Iterator[tuple[Path, str, _Place]]:
    for index, stage in enumerate(checker.workflow.stages):
        if stage.when is not None:
            place = _Place(index, 0, stage, Job.model_construct(name=""), ("stages", index))
            yield ("stages", index, "when"), stage.when, place
    for place in checker.places:
        if place.job.when is not None:
            yield (*place.path, "when"), place.job.when, place


def _check_conditions(checker: _Checker) -> None:
    different: set[str] = set()
    length = 0
    for path, expression, place in _conditions(checker):
        length += 0 if expression in different else min(len(expression), MAX_LENGTH)
        different.add(expression)
        if length > MAX_CONDITIONS_LENGTH:
            message = f"the conditions of a workflow may have {MAX_CONDITIONS_LENGTH} characters together"
            checker.add(path, message, on_key=True)
            return
        try:
            check_condition(expression, _example(checker, expression))
        except ConditionError as error:
            checker.add(path, str(error), suggestion=error.suggestion, offset=error.offset)
            continue
        _check_mentions(checker, path, expression, place)


def _example(checker: _Checker, expression: str) -> dict[str, Any]:
    """A value of the right type for each thing that the condition names."""
    declared = checker.workflow.inputs
    names = {
        root: {each.name for each in mentioned_fields(expression) if each.root == root} for root in ("inputs", "env")
    }
    types = {name: declared[name].type for name in names["inputs"] if name in declared}
    jobs: dict[str, dict[str, Any]] = {}
    for mention in mentioned_jobs(expression):
        job = jobs.setdefault(mention.job, {"state": "succeeded", "outputs": {}})
        job["outputs"][mention.output] = ""
    return {
        "run": {"number": 1},
        "inputs": typed_inputs(types, {name: "1" if kind == "number" else "" for name, kind in types.items()}),
        "env": dict.fromkeys(names["env"], ""),
        "jobs": jobs,
    }


def _check_mentions(checker: _Checker, path: Path, expression: str, place: _Place) -> None:
    for mention in mentioned_jobs(expression):
        found = _job_fault(checker, mention.job, mention.output, place)
        if found is None and mention.field and mention.field not in JOB_FIELDS:
            message = f"a job has no `{shorten(mention.field)}`"
            found = message, one_of(JOB_FIELDS), checker.nearest(mention.field, JOB_FIELDS)
        if found is not None:
            checker.add(path, found[0], expected=found[1], suggestion=found[2], offset=mention.offset)
    for field_mention in mentioned_fields(expression):
        root, name = field_mention.root, field_mention.name
        found = None
        if root in FIELDS:
            if name not in FIELDS[root]:
                found = (
                    f"`{root}` has no `{shorten(name)}`",
                    _listed(root, FIELDS[root]),
                    checker.nearest(name, FIELDS[root]),
                )
        else:
            found = _job_only_fault(checker, (root, name), _RUN) or _target_fault(checker, (root, name), place)
        if found is not None:
            checker.add(path, found[0], expected=found[1], suggestion=found[2], offset=field_mention.offset)
    if place.stage_index == 0 and place.index == 0 and runs_after_failure(expression) and not place.before:
        checker.add(path, "nothing can have failed before the first stage", severity="warning")


def _check_unused_inputs(checker: _Checker) -> None:
    workflow = checker.workflow
    if not workflow.inputs:
        return
    words: Counter[str] = Counter()
    for text in _all_texts(workflow):
        if "${{" in text:
            words.update(reference.path[1] for reference in references(text) if reference.path[:1] == ("inputs",)
                         and len(reference.path) > 1)  # fmt: skip
    for _, expression, _ in _conditions(checker):
        words.update(re.findall(r"\w+", expression[:MAX_LENGTH]))
    for name in workflow.inputs:
        if not words[name]:
            message = f"no job uses the input `{name}`"
            expected = f"${{{{ inputs.{name} }}}} somewhere"
            checker.add(("inputs", name), message, expected=expected, severity="warning", on_key=True)


def _check_what_does_nothing_yet(checker: _Checker) -> None:
    """What is read and kept, and acted upon by a later version only (docs/weaknesses.md)."""
    triggers = checker.workflow.on
    for name, given in (("schedule", triggers.schedule), ("image", triggers.image)):
        if given:
            message = f"`{name}` starts nothing yet; it is checked and kept"
            checker.add(("on", name), message, severity="warning", on_key=True)
    for place in checker.places:
        for number, artifact in enumerate(place.job.artifacts):
            if artifact.retention is not None:
                message = "artifacts are kept for ever yet; `retention` is checked and kept"
                path = (*place.path, "artifacts", number, "retention")
                checker.add(path, message, severity="warning", on_key=True)


def _all_texts(workflow: Workflow) -> Iterator[str]:
    yield from workflow.environment.values()
    if workflow.concurrency is not None:
        yield workflow.concurrency.group
    for stage in workflow.stages:
        if stage.pause is not None:
            yield stage.pause.message
        for job in stage.jobs:
            yield from (*job.inputs.values(), *job.env.values(), *job.command, job.component, job.workdir)
            yield from (cache.name for cache in job.cache)
            for service in job.services:
                yield from (service.image, *service.command, *service.env.values())
