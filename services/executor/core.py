"""From an attempt to its job document: pure.

The order of what ends up in the environment, later ones winning: what the component's label gives as defaults, the
workflow's globals, the job's own `env` and `inputs`, and the engine's variables, which nobody can change (flags are the
job's to set).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from shared.clock import timestamp
from shared.errors import PermanentError
from shared.runtime.protocol import Resources, ServiceSpec
from shared.states import FINAL_JOB_STATES, Reason, RunState, StageState
from shared.workflow.expressions import references, render
from shared.workflow.faults import shorten
from shared.workflow.model import DEFAULT_PAUSE_TIMEOUT_S, Job, Service, Stage, Workflow

FLAG = "_WORKFLOW_FLAG_"
FLAG_CACHE = FLAG + "CACHE"
FLAG_HUB_TOKEN = FLAG + "HUB_TOKEN"
FLAG_TASK_DETAIL = FLAG + "TASK_DETAIL"
FLAG_DIND = FLAG + "DIND"
HUB_SECRETS = ("HUB_USER", "HUB_TOKEN")
"""Secrets of the tenant that are handed to jobs with the flag HUB_TOKEN."""
REGISTRY_SECRET = "DOCKER_AUTH_CONFIG"  # noqa: S105 - the name of a secret, not one
"""Secret of the tenant with the contents of a Docker config.json: credentials for pulling components."""
SCRIPT_PIECE = 96 * 1024
"""Bytes of one argument; Linux takes at most 128 KiB."""
OUTPUT_LIMITS = {"value_bytes": 65536, "keys": 256, "total_bytes": 262144}
LONGEST_LINK = 7 * 86400 - 60
"""Seconds that a presigned URL may live (S3 allows a week)."""

_BUILD_TYPES = {"api": "api", "push": "webhook", "webhook": "webhook", "image": "webhook", "schedule": "webhook"}


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt that may start, with all that is known about its run."""

    container: str
    tenant: str
    run: uuid.UUID
    number: int
    stage: str
    job: str
    attempt: int
    workflow: str
    version: int
    trigger: Mapping[str, Any]
    inputs: Mapping[str, Any]
    model: Workflow
    again: bool = False
    """It was claimed before, by somebody who may have started it and died."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be fetched before the document can be made."""

    jobs: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    artifacts: frozenset[tuple[str, str]] = frozenset()
    """(job, artifact)"""
    detail: bool = False

    def __bool__(self) -> bool:
        return bool(self.jobs or self.secrets or self.artifacts or self.detail)


@dataclass(frozen=True, slots=True)
class KeptArtifact:
    """An artifact of an earlier job."""

    key: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was fetched for one attempt. Holds secrets: never logged."""

    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """{"build": {"state": "succeeded", "outputs": {...}}}"""
    secrets: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[tuple[str, str], KeptArtifact] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Component:
    """What an image says about itself. Empty `command`: the runtime looks it up."""

    command: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    refused: bool = False
    """The registry does not give it to this tenant's account: whoever has it must ask again, with the accounts that it has."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this installation is reached."""

    public_url: str
    hub: str
    approve_url: str = ""
    cancel_url: str = ""


@dataclass(frozen=True, slots=True)
class Composed:
    """The rendered job. Holds secrets: never logged."""

    command: list[str]
    env: dict[str, str]
    image: str
    workdir: str
    caches: tuple[str, ...]
    """Rendered names, in the order of `Job.cache`."""
    outputs: list[str]
    shared_directory: str
    options: dict[str, Any]
    services: tuple[ServiceSpec, ...] = ()


# ---------------------------------------------------------------- what is needed


@lru_cache(maxsize=4096)
def _mentions(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(reference.path for reference in references(text)) if "${{" in text else ()


def wanted(claim: Claim, job: Job, component: Component) -> Wanted:
    """What the job's texts refer to."""
    paths = [path for text in _texts(claim.model, job) for path in _mentions(text)]
    secrets = {path[1] for path in paths if path[0] == "secrets"}
    given = {**component.defaults, **job.env, **job.inputs}
    if _flag(given, FLAG_HUB_TOKEN):
        secrets.update(HUB_SECRETS)
    if job.component or job.services:
        secrets.add(REGISTRY_SECRET)
    return Wanted(
        jobs=frozenset(path[1] for path in paths if path[0] == "jobs"),
        secrets=frozenset(secrets),
        artifacts=frozenset((claim.model.artifact_source(fetch), fetch.artifact) for fetch in job.fetch),
        detail=_flag(given, FLAG_TASK_DETAIL),
    )


def _texts(model: Workflow, job: Job) -> Iterable[str]:
    yield from model.environment.values()
    yield from job.inputs.values()
    yield from job.env.values()
    yield from job.command
    yield from (job.component, job.workdir)
    yield from (cache.name for cache in job.cache)
    for service in job.services:
        yield from (service.image, *service.command, *service.env.values())


def _flag(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").strip().lower() == "true"


# ---------------------------------------------------------------- the document


def image_of(claim: Claim, job: Job, facts: Facts, place: Place) -> str:
    """The address of the component, or "" for a script on its own. Raises PermanentError(BadInput)."""
    if "$" not in job.component:
        return job.component
    context, known = _context(claim, facts, engine_variables(claim, place), place)
    return _component(job, context, known)


def compose(claim: Claim, stage: Stage, job: Job, facts: Facts, component: Component, place: Place) -> Composed:
    """The job with all references replaced. Raises PermanentError(BadInput) for a value that does not exist."""
    engine = engine_variables(claim, place)
    if stage.type == "pause":
        engine |= _pause_variables(place)
    context, known = _context(claim, facts, engine, place)
    environment = {**context["env"]}
    for values in (job.env, job.inputs):
        environment |= {name: render(value, context, known) for name, value in values.items()}
    for name, value in component.defaults.items():
        environment.setdefault(name, value)
    environment |= engine
    _apply_flags(environment, facts)
    return Composed(
        command=_command(job, component, context),
        env=environment,
        image=_component(job, context, known),
        workdir=render(job.workdir, context, known),
        caches=tuple(render(cache.name, context, known) for cache in job.cache),
        outputs=list(dict.fromkeys((*job.outputs, *component.outputs))),
        shared_directory=str(claim.run) if _flag(environment, FLAG_CACHE) else "",
        options={**job.options, **({"dind": True} if _flag(environment, FLAG_DIND) else {})},
        services=tuple(_service(service, context, known) for service in job.services),
    )


def _component(job: Job, context: Mapping[str, Any], known: Mapping[str, str]) -> str:
    if not job.component or job.script:
        return render(job.component, context, known)  # a script has an image also where none is named
    return _image(job.component, "`component`", context, known)


def _image(written: str, what: str, context: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """The address of an image that there has to be."""
    address = render(written, context, known)
    if not address.strip():
        raise PermanentError(f"{what} came to nothing: {shorten(written)} is empty.", reason=Reason.BAD_INPUT)
    return address


def _service(service: Service, context: Mapping[str, Any], known: Mapping[str, str]) -> ServiceSpec:
    """With its references replaced; how its image is pulled is still to be added."""
    ready, resources = service.ready, service.resources
    return ServiceSpec(
        name=service.name,
        image=_image(service.image, f"`image` of the service {service.name}", context, known),
        command=tuple(_words(service.command, context)),
        env={name: render(value, context, known) for name, value in service.env.items()},
        port=(ready.port or 0) if ready else 0,
        check=ready.command if ready else (),
        ready_seconds=ready.timeout if ready else 0.0,
        resources=Resources(resources.cpu or 0, resources.memory or 0),
    )


def document(
    claim: Claim, job: Job, composed: Composed, *, restore: list[Any], save: list[Any], overflow: Any, trace: str
) -> dict[str, Any]:
    """The wrapper's job document (wrapper/README.md) but for what the runtime fills in. Holds secrets: never logged."""
    return {
        "version": 1,
        "attempt": claim.container,
        "command": composed.command,
        "workdir": composed.workdir,
        "create_workdir": True,
        "env": composed.env,
        "unset_env": [],
        "timeout_s": job.timeout,
        "grace_s": job.grace,
        "declared_outputs": composed.outputs,
        "output_limits": OUTPUT_LIMITS,
        "overflow": overflow,
        "restore": restore,
        "save": save,
        "traceparent": trace,
    }


def engine_variables(claim: Claim, place: Place) -> dict[str, str]:
    """What every job is told about its run: our names, and those of TencentHub."""
    git = _git(claim)
    build_type = _BUILD_TYPES.get(str(claim.trigger.get("type")), "manually")
    variables = {
        "CI": "true",
        "HUBFLOW": "true",
        "HUBFLOW_URL": place.public_url,
        "HUBFLOW_TENANT": claim.tenant,
        "HUBFLOW_WORKFLOW": claim.workflow,
        "HUBFLOW_RUN": str(claim.run),
        "HUBFLOW_RUN_NUMBER": str(claim.number),
        "HUBFLOW_STAGE": claim.stage,
        "HUBFLOW_JOB": claim.job,
        "HUBFLOW_ATTEMPT": str(claim.attempt),
        "HUBFLOW_TRIGGER": str(claim.trigger.get("type", "")),
        "_WORKFLOW_BUILD_TYPE": build_type,
        "_WORKFLOW_FLOW_URL": f"{place.hub}/{claim.tenant}/{claim.workflow}/{claim.workflow}",
        "_WORKFLOW_FLOW_TASK_ID": str(claim.number),
        "_WORKFLOW_FLOW_UIN": claim.tenant,
    }
    for name in ("commit", "branch", "tag", "ref", "repository"):
        if git.get(name):
            variables[f"HUBFLOW_GIT_{name.upper()}"] = git[name]
    if git.get("clone_url"):
        variables["_WORKFLOW_GIT_CLONE_URL"] = git["clone_url"]
    kind = next((kind for kind in ("tag", "branch", "commit") if git.get(kind)), "")
    if kind:
        variables |= {"_WORKFLOW_GIT_REF": git[kind], "_WORKFLOW_GIT_TYPE": kind}
    image = claim.trigger.get("image")
    if isinstance(image, Mapping) and image.get("reference"):
        variables["IMAGE"] = str(image["reference"])
    return variables


def _git(claim: Claim) -> dict[str, str]:
    git = claim.trigger.get("git")
    return {name: str(value) for name, value in git.items() if value is not None} if isinstance(git, Mapping) else {}


def _pause_variables(place: Place) -> dict[str, str]:
    return {
        "_WORKFLOW_FLOW_PAUSE_HOOK_RESUME_API": place.approve_url,
        "_WORKFLOW_FLOW_PAUSE_HOOK_STOP_API": place.cancel_url,
        "HUBFLOW_APPROVE_URL": place.approve_url,
        "HUBFLOW_CANCEL_URL": place.cancel_url,
    }


def _context(
    claim: Claim, facts: Facts, engine: Mapping[str, str], place: Place
) -> tuple[dict[str, Any], dict[str, str]]:
    """What `${{ … }}` may name, and the values of `${NAME}`: the engine's variables and the workflow's globals only."""
    image = claim.trigger.get("image")
    trigger = claim.trigger
    context: dict[str, Any] = {
        "inputs": claim.inputs,
        "secrets": facts.secrets,
        "jobs": facts.jobs,
        "git": _git(claim),
        "image": image if isinstance(image, Mapping) else {},
        "trigger": {
            "type": trigger.get("type", ""), "actor": trigger.get("by", ""), "delivery": trigger.get("delivery", ""),
        },
        "run": {
            "id": str(claim.run), "number": claim.number, "attempt": claim.attempt,
            "url": f"{place.public_url}/runs/{claim.run}",
        },
        "workflow": {"name": claim.workflow, "version": claim.version},
        "pause": {"approve_url": place.approve_url, "cancel_url": place.cancel_url} if place.approve_url else {},
    }  # fmt: skip
    written = claim.model.environment
    plain = {name: value for name, value in written.items() if "$" not in value}
    known = {**plain, **engine}
    for name, value in written.items():
        if name not in plain:
            known[name] = engine[name] if name in engine else render(value, context, known)
    context["env"] = {name: known[name] for name in written} | {
        name: value for name, value in engine.items() if name.startswith("_WORKFLOW_") or name == "IMAGE"
    }
    return context, known


def _apply_flags(environment: dict[str, str], facts: Facts) -> None:
    if _flag(environment, FLAG_HUB_TOKEN):
        for name in HUB_SECRETS:
            if facts.secrets.get(name):
                # An input of the same name that somebody has given wins over what the flag gives.
                environment[f"_WORKFLOW_{name}"] = facts.secrets[name]
                environment[name] = environment.get(name) or facts.secrets[name]
    if facts.detail:
        environment |= {"_WORKFLOW_TASK_DETAIL": facts.detail, "WORKFLOW_TASK_DETAIL": facts.detail}
    # Components written in Python fail on an absent flag.
    environment.setdefault(FLAG_CACHE, "false")


def _command(job: Job, component: Component, context: Mapping[str, Any]) -> list[str]:
    if job.script:
        return script_command(job.script)
    return _words(job.command, context) or list(component.command)


def _words(command: tuple[str, ...], context: Mapping[str, Any]) -> list[str]:
    return [word if index == 2 and _is_shell(command) else render(word, context) for index, word in enumerate(command)]


def _is_shell(command: tuple[str, ...]) -> bool:
    """Is the third word shell code? Nothing is put into code: the shell would run it."""
    return len(command) > 2 and command[0].rsplit("/", 1)[-1] in _SHELLS and command[1].startswith("-")


_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})


def script_command(script: str) -> list[str]:
    """`sh -e` on the script; one too long for a single argument comes in pieces that the shell puts together."""
    if len(script.encode()) <= SCRIPT_PIECE:
        return ["sh", "-ec", script]
    pieces: list[str] = []
    body = script.encode()
    while body:
        piece = body[:SCRIPT_PIECE].decode(errors="ignore")  # a character that is cut in two goes to the next piece
        pieces.append(piece)
        body = body[len(piece.encode()) :]
    whole = "".join(f"${{{number}}}" for number in range(1, len(pieces) + 1))
    return ["sh", "-ec", f'set -- "{whole}"; eval "shift\n$1"', "sh", *pieces]


# ---------------------------------------------------------------- details


def pause_seconds(stage: Stage, job: Job) -> float:
    """How long from now a decision about this stage may still be wanted."""
    pause = stage.pause.timeout if stage.pause is not None else DEFAULT_PAUSE_TIMEOUT_S
    return sum(each.timeout + each.pending_timeout for each in stage.jobs) + job.grace + pause


def transfer_seconds(job: Job) -> int:
    """How long from now the job may still want to move caches and artifacts."""
    return int(min(LONGEST_LINK, job.pending_timeout + job.timeout + job.grace + 3600))


def hub_host(public_url: str, hub: str) -> str:
    """The host that `_WORKFLOW_FLOW_URL` begins with."""
    return hub or urlsplit(public_url).netloc or "hubflow"


def task_detail(
    claim: Claim, place: Place, rows: Iterable[Mapping[str, Any]], stages: Iterable[Mapping[str, Any]]
) -> str:
    """`_WORKFLOW_TASK_DETAIL`: the run so far, in TencentHub's shape. References stand as written: no secret is in it."""
    jobs = {row["name"]: row for row in rows}
    by_stage = {row["name"]: row for row in stages}
    common = {name: value for name, value in engine_variables(claim, place).items() if name.startswith("_WORKFLOW_")}
    common.pop("_WORKFLOW_GIT_CLONE_URL", None)
    detail = {
        "name": claim.workflow,
        "status": _status(RunState.RUNNING),
        "timeout": int(claim.model.timeout // 60),
        "env": [
            {"name": name, "value": variable.value, "desc": variable.description}
            for name, variable in claim.model.env.items()
        ],
        "stages": [
            {
                "name": stage.name,
                **_times(by_stage.get(stage.name, {})),
                "sequencing": "sequence" if stage.sequencing == "serial" else "parallel",
                "type": stage.type,
                "jobs": [_job_detail(job, jobs.get(job.name, {}), common) for job in stage.jobs],
            }
            for stage in claim.model.stages
        ],
        "detail_url": f"{place.public_url}/runs/{claim.run}",
        "Namespace": claim.tenant,
        "Repo": claim.workflow,
    }
    return json.dumps(detail, ensure_ascii=False, separators=(",", ":"))


def _job_detail(job: Job, row: Mapping[str, Any], common: Mapping[str, str]) -> dict[str, Any]:
    over = row.get("state") in FINAL_JOB_STATES  # what is carried over has no times in this run
    resources = {"cpu": f"{(job.resources.cpu or 0) / 1000:.1f}", "memory": f"{(job.resources.memory or 0) >> 20}Mi"}
    return {
        "name": job.name,
        **_times(row),
        "component": job.component,
        "resources": resources,
        "inputs": [{"name": name, "value": value} for name, value in job.inputs.items()],
        "input_value": json.dumps({**job.inputs, **common}, ensure_ascii=False) if over else "",
        "output_value": json.dumps(row.get("outputs") or {}, ensure_ascii=False) if over else "",
    }


def _times(row: Mapping[str, Any]) -> dict[str, str]:
    times = {"status": _status(str(row.get("state", StageState.WAITING)))}
    for name, column in (("start", "started_at"), ("end", "finished_at")):
        moment = row.get(column)
        if isinstance(moment, datetime):
            times[name] = timestamp(moment)
    return times


def _status(state: str) -> str:
    """TencentHub's word for a state."""
    return {"succeeded": "success", "timed_out": "timeout"}.get(state, state)
