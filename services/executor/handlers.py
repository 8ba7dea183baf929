"""Starts and ends containers.

A start is: claim the attempt (one statement), compose its job document, `Runtime.start` (idempotent by name), then tell
job.submitted in one transaction. A crash between any two of these is repaired by doing all of it again: the bus delivers the
event again, and the scheduler reminds with another job.ready where one was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from services.executor import core, store
from services.executor.builtins import start_other_workflow
from services.executor.components import Components
from services.executor.config import ExecutorSettings
from services.executor.core import Claim, Component, Facts, Place, Wanted
from services.executor.transfers import overflow_of, transfers_of
from services.executor.turns import Turns
from shared import object_keys
from shared.batching import Batcher
from shared.bus.handling import note_begun
from shared.bus.protocol import Message
from shared.clock import Clock
from shared.db.database import Database
from shared.errors import PermanentError, TemporaryError, UnavailableError
from shared.events import JobEvent, JobReady, JobStopRequested, JobSubmitted, RunFinished, decode
from shared.log import bound, get_logger
from shared.objects import ObjectStore
from shared.outcomes import Outcome, clean, record_outcomes
from shared.runtime.protocol import ContainerSpec, Phase, Resources, Runtime, ServiceSpec, container_name
from shared.states import JobState, Reason
from shared.vault import Vault
from shared.workflow.model import BUILTIN_RUN_FLOW, Job, Stage

CONSUMER = "executor"
NEVER_STARTED = 30.0
"""Seconds after its claim when an attempt that must end and has no container is taken never to get one. More than any start
may take."""
GATHER_SUBMISSIONS = 0.02
"""Seconds for which job.submitted waits for others: nobody acts on it at once, and the end of a short job makes it no news."""
IN_HAND = 500
"""Messages that wait here for a turn, beyond those that are worked on: what HUBFLOW_SCHEDULER_MAX_READY lets out should wait
here rather than in the broker's queue, where nobody takes turns. Measured: 500 with a window of 1000."""
SHORTEST_WAIT = 5.0
"""Seconds that a start waits for its turn at least."""
TRIES_BEFORE_REMINDER = 3
"""Tries of a start that cannot be yet. The wait for a fourth would be as long as that for the scheduler's reminder, and after
the last the message would be parked: where there is no room for hours, one for each reminder."""
STOP_MARGIN = 5.0
"""Seconds that the wrapper gets beyond the job's own grace, to write down how the job ended."""

_log = get_logger("executor")


@dataclass(frozen=True, slots=True)
class Submitted:
    """A container that the runtime has accepted."""

    event: JobReady
    container: str
    grace: float


@dataclass(frozen=True, slots=True)
class Context:
    """All that the executor may touch."""

    database: Database
    runtime: Runtime
    objects: ObjectStore
    vault: Vault
    clock: Clock
    settings: ExecutorSettings
    components: Components
    submissions: Batcher[Submitted]
    claims: Batcher[store.Claiming]
    public_url: Any
    """A function that gives the console's address (known only once the process listens)."""
    models: store.Models
    turns: Turns
    starting: set[str] = field(default_factory=set)
    """Containers of which a job.ready is being worked on here: its reminders would take places, and get in each other's way."""

    @classmethod
    def of(cls, *, database: Database, runtime: Runtime, settings: ExecutorSettings, **others: Any) -> Context:
        """With its batches, which work on this database and runtime."""
        models = store.Models()
        return cls(
            database=database, runtime=runtime, settings=settings, models=models, **others,
            turns=Turns(settings.concurrency),
            submissions=Batcher(partial(submit, database=database, runtime=runtime), gather=GATHER_SUBMISSIONS),
            claims=Batcher(partial(store.claim, database=database, models=models)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Deadline:
    """After which a claimed attempt must not be started, by two clocks: the loop's stands still while the machine is suspended,
    and the machine's may be set."""

    loop: float
    clock: datetime

    @classmethod
    def of(cls, context: Context) -> _Deadline:
        seconds = context.settings.start_seconds
        return cls(asyncio.get_running_loop().time() + seconds, context.clock.now() + timedelta(seconds=seconds))

    def over(self, context: Context) -> bool:
        return asyncio.get_running_loop().time() >= self.loop or context.clock.now() >= self.clock


class NotYetError(TemporaryError):
    """A claimed attempt cannot have its container yet: there is no room for it, or its registry does not answer. The scheduler
    tells job.ready again for as long as that is so, and the job's `pending_timeout` ends it."""

    def __init__(self, message: str, *, container: str, delay: float | None = None) -> None:
        super().__init__(message, delay=delay)
        self.container = container


async def on_job_ready(event: JobReady, context: Context, begun: Callable[[], None] = lambda: None) -> None:
    """Start the attempt's container, unless it must not start any more. `begun` is called when its first turn has come."""
    container = container_name(str(event.run), event.job, event.attempt)
    if container in context.starting:
        return  # a reminder; the message that is being worked on is not acknowledged before this start is over
    context.starting.add(container)
    try:
        await _bring_up(event, container, context, begun)
    except PermanentError as error:
        await _record(event, _failed(container, error), context)
    finally:
        context.starting.discard(container)


async def _bring_up(event: JobReady, container: str, context: Context, begun: Callable[[], None]) -> None:
    """Try to start it for as long as our patience lasts."""
    loop = asyncio.get_running_loop()
    patience = loop.time() + context.settings.patience_seconds
    spec: ContainerSpec | None = None
    first = True
    while True:
        # A turn for each try: what waits for its image lets others go before.
        last = patience - context.settings.start_seconds
        async with context.turns.taken(event.tenant, max(SHORTEST_WAIT, last - loop.time())):
            if first:
                begun()
                first = False
            # The deadline counts from before the claim: what comes later may meet another attempt to start, or to stop.
            deadline = _Deadline.of(context)
            claiming = store.Claiming(container)
            await context.claims.submit(claiming)
            if claiming.found is None:
                await _after_refused_claim(event, container, context)
                return
            claimed, running = claiming.found
            stage, job = _place_in(claimed)
            if job.builtin:
                await _run_builtin(event, claimed, stage, job, context)
                return
            with _not_yet(container):
                if spec is None and not running:
                    spec = await _spec(event, claimed, stage, job, context, deadline)
                accepted = spec is None or await _start(
                    dataclasses.replace(spec, again=claimed.again), deadline, context
                )
        if accepted:
            await context.submissions.submit(Submitted(event, container, job.grace))
            return
        if loop.time() > last:
            raise NotYetError(
                f"the runtime has not accepted {container} yet; is an image being pulled?",
                container=container,
                delay=1.0,
            )


async def on_job_stop_requested(event: JobStopRequested, context: Context) -> None:
    """End the attempt's container, or make sure that it never starts."""
    container = container_name(str(event.run), event.job, event.attempt)
    standing = await store.standing(context.database, container, NEVER_STARTED)
    if standing is None or standing.finished:
        return
    if not standing.claimed:
        # Nobody can claim it any more: the scheduler has set stop_requested_at before it told this event.
        await _record(event, _never_started(container), context)
        return
    if await context.runtime.inspect(container) is not None:
        await context.runtime.stop(container, event.grace + STOP_MARGIN)
    elif standing.submitted:
        return  # it was there and is gone: the status watcher tells that
    elif standing.overdue:
        await _record(event, _never_started(container), context)
    else:
        raise TemporaryError(f"{container} must end, but its start may still be on its way")


async def on_run_finished(event: RunFinished, context: Context) -> None:
    """Remove what the run's jobs have shared. May be repeated."""
    await context.runtime.remove_shared_directory(str(event.run))
    model = await store.workflow_of(context.database, event.run, context.models)
    if model is not None and any(cache.scope == "run" for _, job in model.jobs() for cache in job.cache):
        await context.objects.delete_prefix(object_keys.run_caches(event.tenant, event.run))


# ---------------------------------------------------------------- starting


async def _after_refused_claim(event: JobReady, container: str, context: Context) -> None:
    """A container that ended before its start was told: told now, or nobody would ever fetch its log."""
    standing = await store.standing(context.database, container, NEVER_STARTED)
    if standing is not None and standing.finished and standing.seen and not standing.submitted:
        await context.submissions.submit(Submitted(event, container, 0.0))


async def _has_begun(container: str, context: Context) -> bool:
    """Not: what holds its name while its image is being pulled."""
    seen = await context.runtime.inspect(container)
    return seen is not None and seen.phase is not Phase.PENDING


@contextmanager
def _not_yet(container: str) -> Iterator[None]:
    """What is temporary between an attempt's claim and its container. A server that is away stays what it is."""
    try:
        yield
    except UnavailableError:
        raise
    except TemporaryError as error:
        raise NotYetError(str(error), container=container, delay=error.delay) from error


def _place_in(claimed: Claim) -> tuple[Stage, Job]:
    for stage, job in claimed.model.jobs():
        if job.name == claimed.job:
            return stage, job
    raise PermanentError(
        f"version {claimed.version} of the workflow {claimed.workflow} has no job {claimed.job}",
        reason=Reason.BAD_INPUT,
    )


async def _start(spec: ContainerSpec, deadline: _Deadline, context: Context) -> bool:
    """False if the runtime has not accepted the container before the deadline; then the attempt must be claimed anew."""
    if deadline.over(context):
        # This process was stopped, or its machine; and a start that never waits cannot be cancelled.
        return False
    try:
        async with asyncio.timeout_at(deadline.loop):
            await context.runtime.start(spec)
    except TimeoutError:
        return False
    return True


async def _spec(
    event: JobReady, claimed: Claim, stage: Stage, job: Job, context: Context, deadline: _Deadline
) -> ContainerSpec:
    """Raises UnavailableError for what does not answer before the deadline: a place is held meanwhile."""
    try:
        async with asyncio.timeout_at(deadline.loop):
            return await _composed(event, claimed, stage, job, context)
    except TimeoutError as error:
        raise UnavailableError(
            f"{claimed.container} could not be described in time: does the object storage answer?"
        ) from error


async def _composed(event: JobReady, claimed: Claim, stage: Stage, job: Job, context: Context) -> ContainerSpec:
    place = _place(claimed, stage, job, context)
    facts, component, image, auth = await _gather(claimed, stage, job, place, context)
    composed = core.compose(claimed, stage, job, facts, component, place)
    services = await _services(composed.services, facts, context)
    restore, save = await transfers_of(context.objects, claimed, job, composed, facts)
    overflow = await overflow_of(context.objects, context.runtime.name, claimed, job)
    document = core.document(claimed, job, composed, restore=restore, save=save, overflow=overflow, trace=event.trace)
    return ContainerSpec(
        name=claimed.container,
        image=image,
        document=document,
        labels=_labels(claimed),
        script=bool(job.script),
        resources=Resources(job.resources.cpu or 0, job.resources.memory or 0),
        registry_auth=auth,
        ask_registry=component.refused,
        shared_directory=composed.shared_directory,
        services=services,
        options=composed.options,
    )


async def _services(services: Sequence[ServiceSpec], facts: Facts, context: Context) -> tuple[ServiceSpec, ...]:
    """With the accounts that pull them."""
    found = []
    for service in services:
        auth = _registry_auth(service.image, facts)
        refused = await context.components.refused(service.image, auth)
        found.append(dataclasses.replace(service, registry_auth=auth, ask_registry=refused))
    return tuple(found)


def _labels(claimed: Claim) -> dict[str, str]:
    return {
        "tenant": claimed.tenant,
        "run": str(claimed.run),
        "stage": claimed.stage,
        "job": claimed.job,
        "attempt": str(claimed.attempt),
    }


def _place(claimed: Claim, stage: Stage, job: Job, context: Context) -> Place:
    """Where this installation is reached, with the links of a pause stage."""
    public_url = context.public_url()
    place = Place(public_url, core.hub_host(public_url, context.settings.hub))
    if stage.type != "pause":
        return place
    expires = context.clock.now() + timedelta(seconds=core.pause_seconds(stage, job))
    links = {
        action: f"{public_url}/d/{context.vault.sign_link('decision', f'{claimed.run}:{stage.name}:{action}', expires)}"
        for action in ("approve", "cancel")
    }
    return dataclasses.replace(place, approve_url=links["approve"], cancel_url=links["cancel"])


async def _gather(
    claimed: Claim, stage: Stage, job: Job, place: Place, context: Context
) -> tuple[Facts, Component, str, Mapping[str, str] | None]:
    """What the job refers to, what its component says about itself, the component's address, and how to pull it."""
    wanted = core.wanted(claimed, job, Component())
    facts = await _facts(claimed, wanted, place, context)
    if not job.component:
        return facts, Component(), "", None
    image = core.image_of(claimed, job, facts, place)
    auth = _registry_auth(image, facts)
    component = await context.components.of(image, auth, needed=not (job.command or job.script))
    by_label = core.wanted(claimed, job, component)
    if by_label != wanted:
        facts = await _facts(claimed, by_label, place, context)
    return facts, component, image, auth


def _registry_auth(image: str, facts: Facts) -> Mapping[str, str] | None:
    config = facts.secrets.get(core.REGISTRY_SECRET, "")
    if not config:
        return None
    from services.executor.registry import auth_of  # loaded only where somebody has private images

    return auth_of(image, config)


async def _facts(claimed: Claim, wanted: Wanted, place: Place, context: Context) -> Facts:
    if not wanted:
        return Facts()
    facts = await store.facts(context.database, context.vault, claimed, wanted)
    if not wanted.detail:
        return facts
    jobs, stages = await store.run_so_far(context.database, claimed.run)
    return dataclasses.replace(facts, detail=core.task_detail(claimed, place, jobs, stages))


async def submit(batch: Sequence[Submitted], database: Database, runtime: Runtime) -> None:
    """Tell job.submitted of all of them at once, then stop those that somebody wanted to end meanwhile."""
    by_container = {each.container: each for each in batch}
    unwanted = await store.note_submitted(
        database, {container: _submitted(each) for container, each in by_container.items()}
    )
    for container in unwanted:
        await runtime.stop(container, by_container[container].grace + STOP_MARGIN)


def _submitted(each: Submitted) -> JobSubmitted:
    event = each.event
    return JobSubmitted(
        tenant=event.tenant, run=event.run, stage=event.stage, job=event.job, attempt=event.attempt,
        container=each.container, cause=event.id, trace=event.trace,
    )  # fmt: skip


async def _run_builtin(event: JobReady, claimed: Claim, stage: Stage, job: Job, context: Context) -> None:
    """Components that are the engine itself: there is no container."""
    place = _place(claimed, stage, job, context)
    facts = await _facts(claimed, core.wanted(claimed, job, Component()), place, context)
    environment = core.compose(claimed, stage, job, facts, Component(), place).env
    with contextlib.suppress(_OverBeforeError):
        async with context.database.transaction(cause=event) as tx:
            outputs = {}
            if job.builtin == BUILTIN_RUN_FLOW:
                outputs = await start_other_workflow(tx, claimed, environment)
            outcome = Outcome(
                container=claimed.container, state=JobState.SUCCEEDED, exit_code=0, started=True, outputs=outputs
            )
            if not await record_outcomes(tx, [outcome]):
                raise _OverBeforeError  # cancelled meanwhile: the other run is not started, either


class _OverBeforeError(Exception):
    """Somebody has told the end of this attempt already; nothing of the transaction may stay."""


# ---------------------------------------------------------------- what never runs


async def _record(event: JobEvent, outcome: Outcome, context: Context) -> None:
    async with context.database.transaction(cause=event) as tx:
        told = await record_outcomes(tx, [outcome])
    if told:
        _log.info("attempt ended before it began", state=outcome.state, reason=outcome.reason, message=outcome.message)


def _failed(container: str, error: PermanentError) -> Outcome:
    reason = error.reason if error.reason in {reason.value for reason in Reason} else Reason.START_FAILED
    return Outcome(container=container, state=JobState.FAILED, reason=reason, message=clean(str(error)), started=False)


def _never_started(container: str) -> Outcome:
    return Outcome(
        container=container, state=JobState.CANCELLED, reason=Reason.CANCELLED, started=False,
        message="it was asked to end before it had started; nothing of it has run",
    )  # fmt: skip


# ---------------------------------------------------------------- who hears what


HANDLERS: dict[type[Any], Any] = {
    JobReady: on_job_ready,
    JobStopRequested: on_job_stop_requested,
    RunFinished: on_run_finished,
}


async def handle(message: Message, context: Context) -> None:
    """The handler of the message's event."""
    event = decode(message.body)
    keys = {"tenant": event.tenant, "run": str(event.run), "event": str(event.id)}
    if isinstance(event, JobEvent):
        keys |= {"job": event.job, "attempt": str(event.attempt)}
    begun = partial(note_begun, CONSUMER, message)
    with bound(keys):
        try:
            handler = HANDLERS[type(event)]
            if isinstance(event, JobReady):
                handler = partial(handler, begun=begun)  # it waits for its turn before
            else:
                begun()
            await handler(event, context)
        except NotYetError as error:
            # What has begun may end before the next reminder, and then there would be none; but its start must be told
            # all the same (see `_after_refused_claim`).
            if message.tries < TRIES_BEFORE_REMINDER or await _has_begun(error.container, context):
                raise
            _log.warning("start is left to the scheduler's reminder", reason=str(error))
