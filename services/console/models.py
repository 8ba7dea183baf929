"""What requests of the REST API hold, and what answers look like. The OpenAPI document is made from these."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

import pydantic

from shared.api import LARGEST, LARGEST_SMALL, Page

_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Body(pydantic.BaseModel):
    """A request: unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", defer_build=True)


class Answer(pydantic.BaseModel):
    """What an answer holds. Like all models here it is made ready when it is used first: a process that starts has no time."""

    model_config = pydantic.ConfigDict(defer_build=True)


class Nothing(Body):
    """An empty body."""


class Deleted(Answer):
    deleted: str


# ---------------------------------------------------------------- tenants, tokens, secrets


class Quota(Body):
    """What a tenant's jobs may use at the same time. null or left out: unlimited."""

    runs: int | None = pydantic.Field(None, ge=0, description="runs that are not pending, paused or over")
    jobs: int | None = pydantic.Field(None, ge=0, description="containers")
    cpu_millis: int | None = pydantic.Field(None, ge=0, description="thousandths of a CPU")
    memory_bytes: int | None = pydantic.Field(None, ge=0)


class NewTenant(Body):
    name: str = pydantic.Field(pattern=_NAME, description="lower-case letters, digits and `-`, at most 63")
    quota: Quota = Quota.model_construct()


class Tenant(Answer):
    name: str
    quota: Quota
    created_at: datetime


class NewToken(Body):
    name: str = pydantic.Field(min_length=1, max_length=200, description="shown in the audit log and as `by`")
    scopes: list[Literal["read", "run", "write", "approve", "admin"]] = pydantic.Field(
        min_length=1, description="each of the others implies read; admin: everything"
    )
    expires_in: float | None = pydantic.Field(None, gt=0, le=10 * 366 * 86400, description="seconds; null: never")


class Token(Answer):
    id: uuid.UUID
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class CreatedToken(Token):
    """The only time that the token itself is shown."""

    token: str


class SecretValue(Body):
    value: str = pydantic.Field(min_length=1, max_length=64 * 1024)


class Secret(Answer):
    """Its value is never given out."""

    name: str
    updated_at: datetime


# ---------------------------------------------------------------- workflows


class WorkflowSource(Body):
    source: str = pydantic.Field(description="the workflow file, YAML")


class ApplyQuery(Body):
    dry_run: bool = pydantic.Field(False, description="check only, record nothing")
    file: str = pydantic.Field("hubflow.yaml", max_length=500, description="name of the file in faults")


class AppliedWorkflow(Answer):
    """`changed`: a new version was (or with dry_run would be) made. `warnings`: as faults, but nothing is refused."""

    name: str
    version: int
    changed: bool
    dry_run: bool = False
    warnings: list[dict[str, Any]] = []


class WorkflowSummary(Answer):
    name: str
    version: int
    description: str
    created_at: datetime
    updated_at: datetime


class WorkflowDetail(Answer):
    """One version. `document`: the file as it was understood, with all defaults."""

    name: str
    version: int
    newest: int
    created_at: datetime
    updated_at: datetime
    applied_at: datetime
    created_by: str
    digest: str
    source: str
    document: dict[str, Any]


class WorkflowVersion(Answer):
    version: int
    digest: str
    created_by: str
    created_at: datetime


class HookInfo(Answer):
    """Where other systems send their webhooks, and what they sign them with."""

    secret: str
    urls: dict[str, str]


# ---------------------------------------------------------------- runs


class RunList(Page):
    workflow: str | None = None
    state: str = pydantic.Field("", description="one or more states, with commas; `active`: all that are not over")


class RunQuery(Body):
    wait: float = pydantic.Field(0, ge=0, le=300, description="seconds to wait for `until` before answering")
    until: Literal["finished", "paused", "change"] = pydantic.Field(
        "finished", description="paused: paused or over; change: anything after event number `since`"
    )
    since: int | None = pydantic.Field(None, ge=0, le=LARGEST, description="for change: `seq` of the answer before")


class Decision(Answer):
    action: Literal["approve", "cancel"]
    by: str
    comment: str = ""
    at: datetime


class DecisionBody(Body):
    action: Literal["approve", "cancel"] = pydantic.Field(description="cancel: reject, the run ends")
    comment: str = pydantic.Field("", max_length=1000)


class DecidedStage(Answer):
    run: uuid.UUID
    number: int
    stage: str
    decision: Decision


class JobBrief(Answer):
    """`attempt` 0: none was made yet. `carried_from`: the run whose success it carries over. `allow_failure`: that it failed
    does not fail its stage."""

    name: str
    stage: str
    state: str
    reason: str
    message: str
    attempt: int
    eligible_at: datetime | None = pydantic.Field(description="since when only quota holds it")
    retry_at: datetime | None
    ready_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    carried_from: uuid.UUID | None
    allow_failure: bool


class StageView(Answer):
    name: str
    type: str
    state: str
    reason: str
    message: str
    decision: Decision | None
    started_at: datetime | None
    paused_at: datetime | None
    finished_at: datetime | None
    jobs: list[JobBrief]


class Waiting(Answer):
    """Why a run does not go on. `position`: how many of the tenant's runs (or jobs) come before."""

    reason: str
    message: str
    position: int | None


class RunSummary(Answer):
    id: uuid.UUID
    number: int
    workflow: str
    version: int
    state: str
    reason: str
    message: str
    trigger: dict[str, Any]
    retry_of: uuid.UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class RunView(RunSummary):
    """A run with its stages and jobs. `seq`: number of its last event."""

    inputs: dict[str, Any]
    concurrency_group: str | None
    seq: int
    waiting: Waiting | None
    stages: list[StageView]


class CancelRun(Body):
    reason: str = pydantic.Field("", max_length=1000)


class CancelledRun(Answer):
    """The request is recorded; the run ends once its containers have been stopped."""

    id: uuid.UUID
    number: int
    state: str


class EventQuery(Body):
    since: int = pydantic.Field(0, ge=0, le=LARGEST, description="`seq` of the last event that is known")
    limit: int = pydantic.Field(500, ge=1, le=1000)
    follow: bool = pydantic.Field(False, description="go on as Server-Sent Events until the run is over")


class Events(Answer):
    """Events of a run, oldest first; their fields stand in the AsyncAPI document."""

    items: list[dict[str, Any]]
    next_since: int


class Attempt(Answer):
    """One container. `state` null: it is not over, or its outcome is not known yet."""

    attempt: int
    container: str
    created_at: datetime
    state: str | None
    reason: str
    message: str
    exit_code: int | None
    started_at: datetime | None
    ended_at: datetime | None
    outputs: dict[str, Any]
    timings: dict[str, Any]
    warnings: list[str]


class JobView(JobBrief):
    """`inputs`: as the workflow file gives them, references unresolved. `outputs`: of the last attempt that is over;
    secrets in them are masked."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    component: str
    attempts: list[Attempt]


# ---------------------------------------------------------------- logs and artifacts


class LogQuery(Body):
    """Which part of a log. Also understood: the header `Range: bytes=FROM-TO`."""

    attempt: int | None = pydantic.Field(None, ge=1, le=LARGEST_SMALL, description="default: the newest")
    offset: int = pydantic.Field(0, ge=0, le=LARGEST, description="first byte")
    tail: int | None = pydantic.Field(None, ge=1, le=LARGEST, description="only so many bytes of the end")
    follow: bool = pydantic.Field(False, description="go on until the log is complete")


class AttemptQuery(Body):
    attempt: int | None = pydantic.Field(None, ge=1, le=LARGEST_SMALL, description="default: the newest that has it")


class Artifact(Answer):
    """A tar archive (zstd or gzip) that a job has kept. `url`: where to get it."""

    job: str
    name: str
    attempt: int
    bytes: int
    sha256: str
    files: int
    created_at: datetime
    url: str


class ArtifactList(Answer):
    items: list[Artifact]


class FileQuery(Body):
    tag: str = pydantic.Field("latest", pattern=r"^\w[\w.-]{0,127}$", description="version of the file")


class StoredFile(Answer):
    url: str
    size: int
    sha256: str


# ---------------------------------------------------------------- operation


class AuditEntry(Answer):
    id: uuid.UUID
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]


class DeadEvent(Answer):
    """A message that a service could not handle. `event`: its fields, null if it is none of ours."""

    id: uuid.UUID
    queue: str
    topic: str
    reason: str
    tries: int
    event: dict[str, Any] | None


class DeadQuery(Body):
    limit: int = pydantic.Field(100, ge=1, le=1000)


class DeadEvents(Answer):
    items: list[DeadEvent]


class Replay(Body):
    ids: list[uuid.UUID] = pydantic.Field(min_length=1, max_length=1000)


class Replayed(Answer):
    replayed: list[uuid.UUID]


# ---------------------------------------------------------------- webhooks to customers


class NewSubscription(Body):
    """Where a tenant's events go. There is one subscription for each tenant."""

    url: str = pydantic.Field(min_length=1, max_length=2000)
    types: list[str] = pydantic.Field([], description="event types; empty: all of runs, stages and jobs", max_length=50)
    enabled: bool = True


class Subscription(Answer):
    id: uuid.UUID
    url: str
    types: list[str]
    enabled: bool
    created_at: datetime


class ShownSubscription(Subscription):
    """`secret`: what deliveries are signed with (Standard Webhooks); shown when it is made, else null."""

    secret: str | None


class Delivery(Answer):
    """One event to one endpoint. `last_status`: HTTP status of the last try, null if there was no answer."""

    id: uuid.UUID
    event: uuid.UUID
    type: str
    state: Literal["waiting", "delivered", "failed"]
    tries: int
    next_try_at: datetime | None
    last_status: int | None
    last_error: str
    created_at: datetime
    finished_at: datetime | None


class TestedSubscription(Answer):
    """The event that was told; its delivery appears in the list of deliveries."""

    event: uuid.UUID
