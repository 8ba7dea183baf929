"""Every event of Hubflow, in the past tense, with who tells it and who hears it.

On the wire an event is a flat msgpack map (see `encode`); its routing key is `<tenant>.<type>`. `docs/asyncapi.json` is
generated from this file (`python -m shared.asyncapi`). New fields need a default, so that old readers live on; readers
ignore fields they do not know, so that new writers may come first.

`seq` rises without gaps within a run, in the order of commits; it is given by the database when the event is recorded
(`shared/db/outbox.py`). An event's `cause` is the id of the event whose handling told it.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

import msgpack

from shared.clock import new_id, parse_timestamp, timestamp
from shared.errors import PermanentError

CONTENT_TYPE = "application/msgpack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events share."""

    TYPE: ClassVar[str]

    tenant: str
    id: uuid.UUID = field(default_factory=new_id)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    run: uuid.UUID | None = None
    seq: int | None = None
    cause: uuid.UUID | None = None
    trace: str = ""
    """W3C traceparent, or ""."""

    @property
    def topic(self) -> str:
        """Routing key: `<tenant>.<entity>.<what>`."""
        return f"{self.tenant}.{self.TYPE}"

    def caused_by(self, cause: Event) -> Self:
        """The same event as told while handling `cause`, unless its cause is known already."""
        if self.cause is not None:
            return self
        return dataclasses.replace(self, cause=cause.id, trace=self.trace or cause.trace)

    def to_map(self) -> dict[str, Any]:
        """The flat map of plain values that goes over the wire; None and "" are left out."""
        result: dict[str, Any] = {"type": self.TYPE}
        for name in _FIELDS[type(self)]:
            value = getattr(self, name)
            if value is None or value == "":
                continue
            if isinstance(value, uuid.UUID):
                value = str(value)
            elif isinstance(value, datetime):
                value = timestamp(value)
            result[name] = value
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent(Event):
    """An event of one run."""

    run: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent(RunEvent):
    """An event of one stage, named as in the workflow file."""

    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent(RunEvent):
    """An event of one attempt of one job. `attempt` counts from 1."""

    stage: str
    job: str
    attempt: int


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreated(RunEvent):
    """A run was recorded as pending. Told by trigger (and console, for retries), heard by scheduler: admits it when the
    quota allows."""

    TYPE: ClassVar[str] = "run.created"
    workflow: str
    version: int
    number: int
    trigger: str
    """What started it: `api`, `push`, `webhook`, `retry`, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelRequested(RunEvent):
    """Somebody wants a run to end. Told by console, heard by scheduler: stops what runs, then ends it as cancelled."""

    TYPE: ClassVar[str] = "run.cancel_requested"
    by: str
    why: str = ""
    superseded_by: int = 0
    """Number of the newer run of the same concurrency group that takes its place; 0: a person or system asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRunning(RunEvent):
    """A run's first container left the pending state, or a paused run goes on. Told by scheduler, heard by notifier and
    live readers."""

    TYPE: ClassVar[str] = "run.running"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaused(RunEvent):
    """A run waits for a decision about `stage`. Told by scheduler, heard by notifier and live readers."""

    TYPE: ClassVar[str] = "run.paused"
    stage: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelling(RunEvent):
    """A run is being ended before its time. Told by scheduler, heard by notifier and live readers."""

    TYPE: ClassVar[str] = "run.cancelling"
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(RunEvent):
    """A run is in its final state. Told by scheduler, heard by notifier, executor (removes what its jobs shared) and
    whoever waits for it."""

    TYPE: ClassVar[str] = "run.finished"
    state: str
    reason: str = ""
    message: str = ""


# ---------------------------------------------------------------- stages


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRunning(StageEvent):
    """A stage has begun. Told by scheduler, heard by notifier and live readers."""

    TYPE: ClassVar[str] = "stage.running"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDecided(StageEvent):
    """A person decided about a pause stage (also early, while its jobs still run). Told by console, heard by scheduler:
    applies it once the stage is paused."""

    TYPE: ClassVar[str] = "stage.decided"
    action: str
    """`approve` or `cancel`."""
    by: str
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished(StageEvent):
    """A stage is in its final state. Told by scheduler, heard by notifier and live readers."""

    TYPE: ClassVar[str] = "stage.finished"
    state: str
    reason: str = ""
    message: str = ""


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReady(JobEvent):
    """An attempt may start. Told by scheduler, heard by executor: starts its container."""

    TYPE: ClassVar[str] = "job.ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStopRequested(JobEvent):
    """An attempt must end (cancelled, timed out, superseded). Told by scheduler, heard by executor: stops its container,
    or makes sure that it never starts."""

    TYPE: ClassVar[str] = "job.stop_requested"
    grace: float = 10.0
    """Seconds between TERM and KILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(JobEvent):
    """The runtime accepted an attempt's container. Told by executor, heard by scheduler and log_collector."""

    TYPE: ClassVar[str] = "job.submitted"
    container: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRunning(JobEvent):
    """An attempt's container has started. Told by status_watcher, heard by scheduler."""

    TYPE: ClassVar[str] = "job.running"
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(JobEvent):
    """An attempt is over. Told by status_watcher, or by executor when it could not start; heard by scheduler: retries,
    goes on, or ends the run. The outputs are in the database (`attempt_outcomes`), only their names travel."""

    TYPE: ClassVar[str] = "job.finished"
    state: str
    """`succeeded`, `failed`, `timed_out`, `cancelled` or `lost`: the outcome of this attempt."""
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started: bool = True
    """Whether the user's code has started; if not, an infrastructure failure costs no retry."""
    outputs: list[str] = field(default_factory=list)
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRetrying(JobEvent):
    """An attempt failed and another will follow. Told by scheduler, heard by notifier and live readers."""

    TYPE: ClassVar[str] = "job.retrying"
    reason: str
    next_attempt_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(JobEvent):
    """A job is in its final state, after its last attempt (0: none was made). Told by scheduler, heard by notifier and
    live readers."""

    TYPE: ClassVar[str] = "job.ended"
    state: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLogStored(JobEvent):
    """An attempt's whole log is in object storage. Told by log_collector, heard by notifier and live readers. (The sweep of
    status_watcher, which then removes the container, looks at the database.)"""

    TYPE: ClassVar[str] = "job.log.stored"
    container: str
    size: int
    truncated: bool = False


# ---------------------------------------------------------------- tenants and workflows


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowApplied(Event):
    """A workflow has a new version. Told by console, heard by notifier and live readers."""

    TYPE: ClassVar[str] = "workflow.applied"
    workflow: str
    version: int
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantQuotaChanged(Event):
    """A tenant may use more or less. Told by console, heard by scheduler: admits what waited."""

    TYPE: ClassVar[str] = "tenant.quota_changed"
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChanged(Event):
    """A tenant's events go elsewhere, or nowhere. Told by console, heard by every process of notifier: looks again."""

    TYPE: ClassVar[str] = "subscription.changed"
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionTested(Event):
    """Somebody wants to see a delivery. Told by console, heard by notifier: delivers it, whatever types are wanted."""

    TYPE: ClassVar[str] = "subscription.tested"
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFailed(Event):
    """A webhook was given up after its last try. Told by notifier, heard by operators."""

    TYPE: ClassVar[str] = "delivery.failed"
    delivery: str
    url: str
    message: str


EVENTS: dict[str, type[Event]] = {
    cls.TYPE: cls
    for cls in (
        RunCreated, RunCancelRequested, RunRunning, RunPaused, RunCancelling, RunFinished,
        StageRunning, StageDecided, StageFinished,
        JobReady, JobStopRequested, JobSubmitted, JobRunning, JobFinished, JobRetrying, JobEnded, JobLogStored,
        WorkflowApplied, TenantQuotaChanged, SubscriptionChanged, SubscriptionTested, DeliveryFailed,
    )
}  # fmt: skip
"""All types by their name on the wire."""

_FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in EVENTS.values()}
_IDS = frozenset({"id", "run", "cause"})
_TIMES = frozenset({"time", "started_at", "finished_at", "expires_at", "next_attempt_at"})


def from_map(document: Mapping[str, Any]) -> Event:
    """The event of a flat map. Unknown fields are ignored; raises PermanentError("BadEvent") for anything else wrong."""
    cls = EVENTS.get(str(document.get("type")))
    if cls is None:
        raise PermanentError(f"no event type {document.get('type')!r} is known to this version", reason="BadEvent")
    values: dict[str, Any] = {}
    try:
        for name in _FIELDS[cls]:
            if (value := document.get(name)) is None:
                continue
            if name in _IDS:
                value = uuid.UUID(value)
            elif name in _TIMES:
                value = parse_timestamp(value)
            values[name] = value
        return cls(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise PermanentError(f"{cls.TYPE} event is malformed: {error}", reason="BadEvent") from error


def encode(event: Event) -> bytes:
    """The event's bytes on the wire."""
    packed: bytes = msgpack.packb(event.to_map())
    return packed


def decode(body: bytes) -> Event:
    """The inverse of `encode`. Raises PermanentError("BadEvent") for what is no event of ours."""
    try:
        document = msgpack.unpackb(body, raw=False, strict_map_key=True, timestamp=0)
    except (ValueError, msgpack.exceptions.ExtraData) as error:
        raise PermanentError(f"the body is not msgpack: {error}", reason="BadEvent") from error
    if not isinstance(document, dict):
        raise PermanentError("the body is not a msgpack map", reason="BadEvent")
    return from_map(document)
