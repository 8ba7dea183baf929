"""The workflow file as frozen models: what a workflow can say, with its defaults.

Each key has one long form; short forms are turned into it before validation, so that readers of the model meet only one.
What concerns several keys or several jobs (names, needs, references, conditions) is checked in `checks.py`;
`parser.parse_workflow` is the door that does both. docs/workflow-file.md explains every key to users.
"""

from __future__ import annotations

import json
import re
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Annotated, Any, Literal

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from shared.states import Reason
from shared.workflow.faults import bad, nearest, one_of, shorten, told
from shared.workflow.quantities import (
    Cpu,
    Duration,
    EnvironmentName,
    Flag,
    Memory,
    Name,
    Number,
    Text,
    Texts,
    Value,
    VariableName,
    Whole,
    WorkflowDuration,
    as_text,
    choice,
    word_list,
)
from shared.workflow.source import typed

DEFAULT_WORKFLOW_TIMEOUT_S = 86400.0
DEFAULT_JOB_TIMEOUT_S = 3600.0
DEFAULT_PENDING_TIMEOUT_S = 600.0
DEFAULT_GRACE_S = 10.0
DEFAULT_PAUSE_TIMEOUT_S = 7 * 86400.0
DEFAULT_READY_TIMEOUT_S = 60.0

MAX_JOBS = 1000
MAX_STAGES = 100
MAX_IMAGE_TRIGGERS = 10
MAX_SCHEDULES = 20
MAX_SERVICES = 10

BUILTIN_PAUSE = "workflow_pause"
"""TencentHub's image without a command: it only marked a pause stage. A job of it succeeds at once, without a container."""
BUILTIN_RUN_FLOW = "run_flow"
"""Starts another workflow, named by its input FLOW_ID (`namespace/repo_name/flow_name`), and does not wait for it."""
_BUILTIN_IMAGES = {BUILTIN_PAUSE: BUILTIN_PAUSE, "run_flow": BUILTIN_RUN_FLOW, "async_run_flow": BUILTIN_RUN_FLOW}

RETRY_REASONS: tuple[Reason, ...] = (
    Reason.EXIT_CODE,
    Reason.SIGNAL,
    Reason.JOB_RESULT_FALSE,
    Reason.OOM_KILLED,
    Reason.OUTPUT_TOO_LARGE,
    Reason.IMAGE_PULL,
    Reason.START_FAILED,
    Reason.PENDING_TIMEOUT,
    Reason.JOB_TIMEOUT,
    Reason.RESTORE_FAILED,
    Reason.SAVE_FAILED,
    Reason.WRAPPER_FAILED,
    Reason.NODE_LOST,
    Reason.EVICTED,
    Reason.CONTAINER_GONE,
)
"""The ways in which one attempt can fail, as `retries.reasons` names them."""


def builtin_of(component: str) -> str:
    """BUILTIN_PAUSE or BUILTIN_RUN_FLOW if the engine itself is that component, else "".

    Recognised without a namespace or in the namespace `tencenthub` of any registry, with any tag or digest.
    """
    path = component.split("@", 1)[0].rsplit("/", 1)
    image = path[-1].split(":", 1)[0]
    if len(path) == 2 and path[0].rsplit("/", 1)[-1] != "tencenthub":
        return ""
    return _BUILTIN_IMAGES.get(image, "")


class Part(BaseModel):
    """Common to all parts: unknown keys are refused, nothing can be changed, a key without a value counts as absent."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True,
        defer_build=True,  # made ready with the first workflow that is read
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _drop_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict) or None not in value.values():
            return value
        return {key: item for key, item in value.items() if item is not None or not cls.knows(key)}

    @classmethod
    def knows(cls, key: str) -> bool:
        """Is `key` one of the keys of this part, as written in the file?"""
        return key in cls.written_keys()

    @classmethod
    def written_keys(cls) -> list[str]:
        """All keys, as written in the file."""
        return [info.alias or name for name, info in cls.model_fields.items()]


def _pairs(value: Any, what: str) -> Any:
    """TencentHub's list of {name, value, desc} as a map of name to {value, description}."""
    if not isinstance(value, list):
        return value
    found: dict[str, Any] = {}
    for number, item in enumerate(value):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or set(item) - {"name", "value", "desc"}:
            expected = "name, value and desc, or a map NAME: value"
            raise bad(f"each item of a list of {what} is a map", expected=expected, item=number)
        if item["name"] in found:
            raise bad(f"the name `{shorten(item['name'])}` stands twice in this list", item=number)
        found[item["name"]] = {"value": item.get("value"), "description": item.get("desc") or ""}
    return found


def _plain_pairs(value: Any) -> Any:
    pairs = _pairs(value, "variables")
    return {key: item["value"] for key, item in pairs.items()} if isinstance(value, list) else pairs


def _short(key: str, *kinds: type) -> Any:
    """A short form: a bare value of one of `kinds` stands for {key: value}."""

    def expand(value: Any) -> Any:
        return {key: value} if isinstance(value, kinds) and not isinstance(value, (bool, dict)) else value

    return expand


def _each(expand: Any = lambda item: item, limit: int = 0) -> Any:
    """A list of at most `limit` items, which may be short; one item alone stands for a list of one."""

    def expand_all(value: Any) -> Any:
        items = value if isinstance(value, (list, tuple)) else [value]
        if limit and len(items) > limit:
            raise bad(f"there may be {limit} of them, these are {len(items)}", expected=f"at most {limit}")
        return [expand(item) for item in items]

    return expand_all


_ListOrMapVariables = dict[str, str | int | float | bool | None] | list[dict[str, str | int | float | bool | None]]
Variables = Annotated[
    dict[EnvironmentName, Value], BeforeValidator(_plain_pairs, json_schema_input_type=_ListOrMapVariables)
]


class Variable(Part):
    """A global variable: the same for every job of a run, and never changed during it."""

    value: Value = Field(default="", description="The value, as text.")
    description: Text = Field(default="", description="What it is for.")


def _variable(value: Any) -> Any:
    if isinstance(value, dict):
        return {("description" if key == "desc" else key): item for key, item in value.items()}
    return {"value": "" if value is None else value}


def _global_variables(value: Any) -> Any:
    pairs = _pairs(value, "variables")
    return {key: _variable(item) for key, item in pairs.items()} if isinstance(pairs, dict) else pairs


class Input(Part):
    """A value that a start of the workflow may give."""

    type: Annotated[
        Literal["string", "number", "boolean", "choice"], choice("string", "number", "boolean", "choice")
    ] = Field(default="string", description="What values are accepted.")
    default: Text | None = Field(default=None, description="Taken when a start gives none.")
    required: Flag = Field(default=False, description="A start must give it.")
    description: Text = Field(default="", description="Shown to whoever starts a run.")
    choices: Texts = Field(default=(), description="The possible values, for type choice.")
    secret: Flag = Field(default=False, description="Masked in logs, parameters and webhooks.")

    @model_validator(mode="after")
    def _fits(self) -> Input:
        if self.type == "choice" and not self.choices:
            raise bad("an input of type choice needs `choices`", expected="a list of the possible values")
        if self.type != "choice" and self.choices:
            raise bad("`choices` belong to inputs of type choice", expected="type: choice")
        if self.required and self.default is not None:
            raise bad("an input with a default is never missing: leave out `required` or `default`")
        if self.default is not None:
            self.check(self.default)
        return self

    def check(self, value: str) -> str:
        """`value` in its canonical spelling. Raises PydanticCustomError with our sentence if it does not fit."""
        if self.type == "boolean":
            if value.lower() not in {"true", "false"}:
                raise bad(f"`{shorten(value)}` is neither true nor false", expected="true or false")
            return value.lower()
        if self.type == "number" and not re.fullmatch(r"[-+]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})", value):
            raise bad(f"`{shorten(value)}` is not a number", expected="a number such as 3 or 0.5")
        if self.type == "choice" and value not in self.choices:
            raise bad(f"`{shorten(value)}` is none of the choices", expected=one_of(self.choices),
                      suggestion=nearest(value, self.choices))  # fmt: skip
        return value


def _inputs(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: {} if item is None else _short("default", str, int, float)(item) for key, item in value.items()}


MOST_PATTERNS = 100
"""Of one list: each push is compared with all of them."""


class Push(Part):
    """Start on a push to git. Without branches and tags: every push."""

    branches: Texts = Field(
        default=(),
        max_length=MOST_PATTERNS,
        description="Patterns of branch names: `main`, `release/*`, `!release/old`.",
    )
    tags: Texts = Field(default=(), max_length=MOST_PATTERNS, description="Patterns of tag names: `v*`.")
    paths: Texts = Field(
        default=(), max_length=MOST_PATTERNS, description="Patterns of changed files: `src/**`, `!docs/**`."
    )


def _cron(text: str) -> str:
    try:
        CronSim(text, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        message = f"`{shorten(text)}` is not a schedule ({str(error).lower()})"
        raise bad(message, expected="five fields: minute hour day month weekday, such as `30 3 * * *`") from None
    return text


@cache
def _timezones() -> dict[str, tuple[str, ...]]:
    """All that there are, by the first two letters of the place; reading them takes a while."""
    found: dict[str, tuple[str, ...]] = {}
    for zone in sorted(zoneinfo.available_timezones()):
        start = zone.rsplit("/", 1)[-1][:2].lower()
        found[start] = (*found.get(start, ()), zone)
    return found


def _timezone(text: str) -> str:
    meant = _nearest_timezone(text)
    if meant != text:
        message, expected = f"`{shorten(text)}` is no time zone", "a name such as UTC or Europe/Berlin"
        raise bad(message, expected=expected, suggestion=meant)
    return text


@lru_cache(maxsize=256)
def _nearest_timezone(text: str) -> str:
    """`text` itself if it is a time zone."""
    try:
        return zoneinfo.ZoneInfo(text).key
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return nearest(text, _timezones().get(text.rsplit("/", 1)[-1][:2].lower(), ()))


class Schedule(Part):
    """Start at fixed times."""

    cron: Annotated[Text, AfterValidator(_cron)] = Field(description="minute hour day month weekday.")
    timezone: Annotated[Text, AfterValidator(_timezone)] = Field(
        default="UTC", description="Zone in which the fields are read."
    )
    inputs: Variables = Field(default_factory=dict, description="Inputs of the runs it starts.")


class ImageTrigger(Part):
    """Start when an image is pushed to a registry; its address comes as the global variable IMAGE."""

    repository: Text = Field(description="Pattern of the repository: `team/app`, `team/*`.")
    tags: Texts = Field(default=(), description="Patterns of tags. None: every tag.")


def _push(value: Any) -> Any:
    if value is None or value is True or (isinstance(value, str) and value == "true"):
        return {}
    return None if value is False or (isinstance(value, str) and value == "false") else value


class Triggers(Part):
    """What starts a run."""

    push: Annotated[
        Push | None,
        BeforeValidator(_push, json_schema_input_type=Push | bool | None),
        PlainSerializer(lambda push: False if push is None else push.model_dump(mode="json")),
    ] = Field(default=None, description="Pushes to git.")
    schedule: Annotated[
        tuple[Schedule, ...],
        BeforeValidator(
            _each(_short("cron", str), MAX_SCHEDULES), json_schema_input_type=str | Schedule | list[str | Schedule]
        ),
        Field(max_length=MAX_SCHEDULES),
    ] = Field(default=(), description="Fixed times (cron).")
    webhook: Flag = Field(default=False, description="Signed webhooks of any sender.")
    api: Flag = Field(default=True, description="Starts by API, command line and console.")
    image: Annotated[
        tuple[ImageTrigger, ...],
        BeforeValidator(
            _each(_short("repository", str), MAX_IMAGE_TRIGGERS),
            json_schema_input_type=str | ImageTrigger | list[str | ImageTrigger],
        ),
        Field(max_length=MAX_IMAGE_TRIGGERS),
    ] = Field(default=(), description="Pushes of images.")

    @model_validator(mode="before")
    @classmethod
    def _bare_push(cls, value: Any) -> Any:
        """`push:` with nothing after it means every push."""
        if isinstance(value, dict) and "push" in value and value["push"] is None:
            return value | {"push": True}
        return value


_WHOLE_TRIGGERS = {"push": "push", "webhook": "webhook", "api": "api", "schedule": "schedule: '0 3 * * *'",
                   "image": "image: team/app"}  # fmt: skip
"""The least that each of them needs."""


def _triggers(value: Any) -> Any:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list):
        return value
    for number, word in enumerate(words):
        item = None if isinstance(value, str) else number
        if not isinstance(word, str):
            raise bad("a list of triggers holds words only", expected="push, webhook, api, or one map of them all",
                      item=item)  # fmt: skip
        if _WHOLE_TRIGGERS.get(word) != word:
            meant = _WHOLE_TRIGGERS.get(nearest(word, _WHOLE_TRIGGERS), "")
            raise bad(f"`{shorten(word)}` cannot stand alone as a trigger", expected="push, webhook, api, or a map",
                      suggestion=meant, item=item)  # fmt: skip
    return dict.fromkeys(words, True)


class Concurrency(Part):
    """Runs of the same group do not run at the same time."""

    group: Text = Field(description="Name of the group; may hold references: `deploy-${{ git.branch }}`.")
    limit: Whole = Field(default=1, ge=1, le=1000, description="How many runs of the group may be active.")
    policy: Annotated[Literal["queue", "cancel_superseded"], choice("queue", "cancel_superseded")] = Field(
        default="queue", description="queue: wait in order. cancel_superseded: a newer run cancels the older ones."
    )


class Pause(Part):
    """How a pause stage waits for a decision."""

    timeout: Duration = Field(default=DEFAULT_PAUSE_TIMEOUT_S, description="How long it waits.")
    on_timeout: Annotated[Literal["cancel", "fail", "approve"], choice("cancel", "fail", "approve")] = Field(
        default="cancel", description="What happens when nobody decides in time."
    )
    approvers: Texts = Field(
        default=(),
        description="Names of the tokens that may decide; links cannot decide then. "
        "Left out: every token of the tenant with the scope `approve`, and whoever has a link.",
    )
    message: Text = Field(default="", description="What is asked; may hold references.")
    links: Annotated[Literal["page", "direct"], choice("page", "direct")] = Field(
        default="page", description="page: a link shows a page with a button. direct: opening the link decides."
    )


class Backoff(Part):
    """Delays between attempts."""

    delay: Duration = Field(default=5.0, description="Before the second attempt.")
    factor: Number = Field(default=2.0, ge=1, le=10, description="Each further delay is that many times longer.")
    max_delay: Duration = Field(default=300.0, description="The longest delay.")


def _reason(value: Any) -> str:
    for reason in RETRY_REASONS:
        if isinstance(value, str) and value.replace("_", "").lower() == reason.value.lower():
            return reason.value
    words = [reason.value for reason in RETRY_REASONS]
    raise bad(f"{told(value)} is no reason of a failure", expected=", ".join(words),
              suggestion=nearest(str(value), words))  # fmt: skip


_ReasonWord: Any = Literal.__getitem__(tuple(reason.value for reason in RETRY_REASONS))
RetryReason = Annotated[Reason, BeforeValidator(_reason, json_schema_input_type=_ReasonWord)]


class Retries(Part):
    """How often and when a failed job is tried again."""

    max: Whole = Field(default=0, ge=0, le=100, description="Further attempts after the first.")
    reasons: Annotated[
        tuple[RetryReason, ...], BeforeValidator(word_list, json_schema_input_type=_ReasonWord | list[_ReasonWord])
    ] = Field(default=(), description="Only failures of these reasons. Empty: any.")
    exit_codes: Annotated[
        tuple[Annotated[Whole, Field(ge=1, le=255)], ...],
        BeforeValidator(word_list, json_schema_input_type=int | list[int]),
    ] = Field(default=(), description="Only these exit codes (beside the reasons).")
    backoff: Annotated[
        Backoff, BeforeValidator(_short("delay", str, int, float), json_schema_input_type=str | Backoff)
    ] = Field(default=Backoff(), description="Delays between attempts.")


class Resources(Part):
    """Limits of a job's container. Left out: what the operator has set."""

    cpu: Cpu | None = Field(default=None, description="Cores: 1, 0.5, 500m.")
    memory: Memory | None = Field(default=None, description="Memory: 512Mi, 2Gi.")


def _command(value: Any) -> Any:
    """A text is code for the shell, a list is taken as it is."""
    return ["sh", "-ec", value] if isinstance(value, str) else value


def _named(name: str, part: Any, what: str) -> Any:
    """One entry of a map whose keys are the names of jobs or services."""
    if not isinstance(part, dict):
        return part
    if "name" in part:
        raise bad(f"the {what} `{shorten(name)}` has its name before the `:`", expected="no key `name` inside it")
    return {"name": name, **part}


class Ready(Part):
    """When a service counts as ready, so that the job may begin."""

    port: Whole | None = Field(default=None, ge=1, le=65535, description="It takes connections at this TCP port.")
    command: Annotated[tuple[Text, ...], BeforeValidator(_command, json_schema_input_type=str | list[str])] = Field(
        default=(), description="This ends with 0 inside it: a list, or a text for `sh -ec`."
    )
    timeout: Duration = Field(default=DEFAULT_READY_TIMEOUT_S, description="How long that may take.")

    @model_validator(mode="after")
    def _one_way(self) -> Ready:
        if (self.port is None) == (not self.command):
            raise bad("a service is ready by its `port` or by a `command`", expected="one of the two")
        return self


def _ready(value: Any) -> Any:
    """A port alone."""
    if isinstance(value, str) and not re.fullmatch(r"[-+]?[0-9]+", value.strip()):
        raise bad(f"`{shorten(value)}` is not a port", expected="a port, or {command: …}")
    return _short("port", str, int)(value)


_SERVICE_NAME = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


def _service_name(text: str) -> str:
    if not re.fullmatch(_SERVICE_NAME, text):
        meant = re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-")
        raise bad(
            f"`{shorten(text)}` cannot be the name of a service",
            expected="at most 40 small letters, digits and `-`, a letter first",
            suggestion=meant if re.fullmatch(_SERVICE_NAME, meant) else "",
        )
    return text


class Service(Part):
    """A container beside the job's, which has started before the job does and ends with it."""

    name: Annotated[Text, AfterValidator(_service_name), Field(json_schema_extra={"pattern": _SERVICE_NAME})] = Field(
        description="Unique in the job: small letters, digits, `-`. The job reaches it by this name, or as localhost."
    )
    image: Annotated[Text, Field(min_length=1)] = Field(description="Container image; may hold references.")
    command: Annotated[tuple[Text, ...], BeforeValidator(_command, json_schema_input_type=str | list[str])] = Field(
        default=(), description="In place of the image's own command: a list, or a text for `sh -ec`."
    )
    env: Variables = Field(default_factory=dict, description="Its environment variables; it has no others.")
    ready: Annotated[Ready | None, BeforeValidator(_ready, json_schema_input_type=int | Ready | None)] = Field(
        default=None, description="When the job may begin. Left out: as soon as it has started."
    )
    resources: Resources = Field(default=Resources(), description="cpu and memory.")


def _services(value: Any) -> Any:
    """A map of name to service (or to its image) as a list of services."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_SERVICES:
        raise bad(f"there may be {MAX_SERVICES} of them, these are {len(value)}", expected=f"at most {MAX_SERVICES}")
    return [_named(name, _short("image", str)(service), "service") for name, service in value.items()]


class Need(Part):
    """A job of the same stage that must be over first."""

    name: Name = Field(description="Name of the job.")
    optional: Flag = Field(default=False, description="Go on also when that job failed or was skipped.")


class Cache(Part):
    """Files shared between jobs: fetched before the job if they are there, kept after it succeeded."""

    name: Text = Field(description="Jobs with the same name share the files; may hold references.")
    paths: Texts = Field(description="Files and directories.", min_length=1)
    path: Text = Field(default="", description="Directory that `paths` start from. Empty: the working directory.")
    scope: Annotated[Literal["run", "workflow"], choice("run", "workflow")] = Field(
        default="run", description="run: shared by the jobs of one run. workflow: also by later runs."
    )


def _cache(value: Any) -> Any:
    return {"name": value, "paths": [value]} if isinstance(value, str) else value


_ARTIFACT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"


def _artifact_name(text: str) -> str:
    if not re.fullmatch(_ARTIFACT_NAME, text):
        raise bad(
            f"`{shorten(text)}` cannot be the name of an artifact",
            expected="at most 200 letters, digits, `.`, `_` and `-`, a letter or digit first",
        )
    return text


class Artifact(Part):
    """Files of a job that are kept after the run."""

    name: Annotated[Text, AfterValidator(_artifact_name), Field(json_schema_extra={"pattern": _ARTIFACT_NAME})] = Field(
        description="Name of the artifact: letters, digits, `.`, `_`, `-`."
    )
    paths: Texts = Field(description="Files, directories and patterns.", min_length=1)
    path: Text = Field(default="", description="Directory that `paths` start from. Empty: the working directory.")
    when: Annotated[Literal["success", "failure", "always"], choice("success", "failure", "always")] = Field(
        default="success", description="After which outcome of the job it is kept."
    )
    required: Flag = Field(default=True, description="It is an error if a path matches nothing.")
    retention: Duration | None = Field(
        default=None, description="How long it is kept (checked and kept, not acted upon yet: artifacts stay)."
    )


def _artifact(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = value.rstrip("/").removeprefix("./")
    if not re.fullmatch(_ARTIFACT_NAME, name):
        meant = re.sub(r"[^A-Za-z0-9]+", "-", name)[:60].strip("-") or "files"
        paths = json.dumps([shorten(value)], ensure_ascii=False)
        raise bad(f"`{shorten(value)}` cannot be a name and a path at once", expected="a name, or a map with `paths`",
                  suggestion=f"{{name: {meant}, paths: {paths}}}")  # fmt: skip
    return {"name": name, "paths": [value]}


class Fetch(Part):
    """An artifact of an earlier job, unpacked before this job starts."""

    artifact: Text = Field(description="Name of the artifact.")
    from_: Text = Field(default="", alias="from", description="The job that keeps it; needed only if several jobs do.")
    path: Text = Field(default="", description="Directory to unpack to. Empty: the working directory.")
    optional: Flag = Field(default=False, description="Go on without it if it was not kept.")


def _script(value: Any) -> Any:
    """One text, or a list of lines."""
    if not isinstance(value, list):
        return as_text(value)
    for number, line in enumerate(value):
        if isinstance(line, dict):  # `- echo: x`, but hardly meant as one
            raise bad("this line of the script is read as a map", expected="quotes around a line that holds `: `",
                      item=number)  # fmt: skip
    return "\n".join(as_text(line) for line in value)


def _outputs(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        names = [as_text(name) for name in (value if not isinstance(value, str) else [value])]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise bad(f"the output `{shorten(double)}` stands twice in this list")
        return dict.fromkeys(names, "")
    return value


def _is_empty(value: Any) -> bool:
    return not value


class Job(Part):
    """One container: a component, a script, or a script that runs in the image of a component."""

    name: Name = Field(description="Unique in the whole workflow.")
    component: Text = Field(default="", description="Container image; may hold references.")
    script: Annotated[str, BeforeValidator(_script, json_schema_input_type=str | list[str | int | float | bool])] = (
        Field("", description="Lines for `sh -e`.")
    )
    command: Annotated[tuple[Text, ...], BeforeValidator(_command, json_schema_input_type=str | list[str])] = Field(
        default=(), description="In place of the component's own command: a list, or a text for `sh -ec`."
    )
    inputs: Variables = Field(default_factory=dict, description="Inputs of the component: environment variables.")
    env: Variables = Field(default_factory=dict, description="Further environment variables.")
    needs: Annotated[
        tuple[Need, ...],
        BeforeValidator(_each(_short("name", str, int, float)), json_schema_input_type=str | list[str | Need]),
    ] = Field(default=(), description="Jobs of the same stage that must be over first.")
    outputs: Annotated[
        dict[VariableName, Value],
        BeforeValidator(_outputs, json_schema_input_type=str | list[str] | dict[str, str | None]),
    ] = Field(default_factory=dict, description="Outputs that other jobs may use, with descriptions.")
    cache: Annotated[
        tuple[Cache, ...], BeforeValidator(_each(_cache), json_schema_input_type=str | Cache | list[str | Cache])
    ] = Field(default=(), description="Files shared with other jobs.")
    artifacts: Annotated[
        tuple[Annotated[Artifact, BeforeValidator(_artifact)], ...],
        BeforeValidator(_each(), json_schema_input_type=str | Artifact | list[str | Artifact]),
    ] = Field(default=(), description="Files that are kept.")
    fetch: Annotated[
        tuple[Fetch, ...],
        BeforeValidator(_each(_short("artifact", str)), json_schema_input_type=str | Fetch | list[str | Fetch]),
    ] = Field(default=(), description="Artifacts of earlier jobs.")
    retries: Annotated[Retries, BeforeValidator(_short("max", str, int), json_schema_input_type=int | Retries)] = Field(
        default=Retries(), description="How often a failed job is tried again."
    )
    timeout: Duration = Field(default=DEFAULT_JOB_TIMEOUT_S, description="How long an attempt may run.")
    pending_timeout: Duration = Field(default=DEFAULT_PENDING_TIMEOUT_S, description="How long it may take to start.")
    grace: Duration = Field(default=DEFAULT_GRACE_S, description="Time between TERM and KILL.")
    resources: Resources = Field(default=Resources(), description="cpu and memory.")
    services: Annotated[
        tuple[Service, ...],
        BeforeValidator(_services, json_schema_input_type=list[Service] | dict[str, Any]),
        Field(max_length=MAX_SERVICES),
        # Left out where there are none, as the version before does not know the key.
    ] = Field(default=(), description="Containers beside the job's: databases and the like.", exclude_if=_is_empty)
    when: Text | None = Field(default=None, description="Condition (CEL); false: the job is skipped.")
    allow_failure: Flag = Field(default=False, description="A failure of this job does not fail the stage.")
    workdir: Text = Field(default="", description="Working directory. Empty: the component's own.")
    options: Annotated[dict[str, Any], BeforeValidator(typed)] = Field(
        default_factory=dict, description="What only some runtimes offer."
    )

    @property
    def builtin(self) -> str:
        """See `builtin_of`."""
        return builtin_of(self.component)


def _jobs(value: Any) -> Any:
    """A map of name to job as a list."""
    if not isinstance(value, dict):
        return value
    if any(key.startswith("-") and not isinstance(job, dict) for key, job in value.items()):
        raise bad("a space is missing after `-`", expected="`- ` before each item")
    if any(isinstance(value.get(key), str) for key in ("name", "component", "script")):
        raise bad("a job stands where a list or a map of jobs is needed", expected="`- ` before its first key")
    return [_named(name, job, "job") for name, job in value.items()]


class Stage(Part):
    """Jobs that run together; stages run one after the other."""

    name: Name = Field(description="Unique in the workflow.")
    type: Annotated[Literal["normal", "pause"], choice("normal", "pause")] = Field(
        default="normal", description="pause: after its jobs the run waits for a decision."
    )
    sequencing: Annotated[
        Literal["parallel", "serial"],
        choice("parallel", "serial", synonyms={"sequence": "serial"}),
    ] = Field(default="parallel", description="Jobs at the same time, or one after the other.")
    when: Text | None = Field(default=None, description="Condition (CEL); false: the stage is skipped.")
    fail_fast: Flag = Field(default=False, description="The first failure cancels the other jobs of the stage.")
    pause: Pause | None = Field(default=None, description="How a pause stage waits.")
    jobs: Annotated[
        tuple[Job, ...],
        BeforeValidator(_jobs, json_schema_input_type=list[Job] | dict[str, Any]),
        Field(max_length=MAX_JOBS),
    ] = Field(default=(), description="A list of jobs, or a map of name to job.")


class Workflow(Part):
    """A workflow file."""

    name: Name = Field(description="Name of the workflow.")
    description: Text = Field(default="", description="What it does.")
    env: Annotated[
        dict[EnvironmentName, Variable],
        BeforeValidator(
            _global_variables,
            json_schema_input_type=dict[str, str | int | float | bool | Variable | None]
            | list[dict[str, str | int | float | bool | None]],
        ),
    ] = Field(default_factory=dict, description="Global variables, read-only during a run.")
    inputs: Annotated[
        dict[VariableName, Input],
        BeforeValidator(_inputs, json_schema_input_type=dict[str, str | int | float | Input | None]),
    ] = Field(default_factory=dict, description="Values that a start may give.")
    timeout: WorkflowDuration = Field(
        default=DEFAULT_WORKFLOW_TIMEOUT_S,
        description="How long a run may take; waiting for quota and pauses do not count.",
    )
    on: Annotated[Triggers, BeforeValidator(_triggers, json_schema_input_type=str | list[str] | Triggers)] = Field(
        default=Triggers(), description="What starts a run. Left out: only API, command line and console."
    )
    concurrency: Annotated[
        Concurrency | None,
        BeforeValidator(_short("group", str, int, float), json_schema_input_type=str | Concurrency | None),
    ] = Field(default=None, description="Keeps runs from running at the same time.")
    stages: tuple[Stage, ...] = Field(description="Run one after the other.", min_length=1, max_length=MAX_STAGES)

    @property
    def environment(self) -> dict[str, str]:
        """Global variables without their descriptions; values may hold references."""
        return {name: variable.value for name, variable in self.env.items()}

    def jobs(self) -> Iterator[tuple[Stage, Job]]:
        """Every job with its stage, in the order of the file."""
        for stage in self.stages:
            for job in stage.jobs:
                yield stage, job

    def job(self, name: str) -> Job:
        """The job of that name. Raises KeyError."""
        for _, job in self.jobs():
            if job.name == name:
                return job
        raise KeyError(name)

    def artifact_source(self, fetch: Fetch) -> str:
        """Name of the job that keeps the artifact of `fetch` (checked when the file was parsed). Raises KeyError."""
        if fetch.from_:
            return fetch.from_
        for _, job in self.jobs():
            if any(artifact.name == fetch.artifact for artifact in job.artifacts):
                return job.name
        raise KeyError(fetch.artifact)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data that `from_json` reads back to an equal model."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workflow:
        """A model stored by `to_json`. Raises pydantic.ValidationError for anything else."""
        return cls.model_validate(data)
