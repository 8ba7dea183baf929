"""Hears events, applies the rules to the runs they are about, lets in what fits, writes it all in one transaction."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from services.scheduler import core, saving, store
from services.scheduler.admission import Full, Held, Quota, Request, Usage, admit_jobs, admit_run
from services.scheduler.config import SchedulerSettings
from services.scheduler.counting import count_finished
from services.scheduler.model import Decision, Run
from services.scheduler.window import Window, starts
from shared.batching import Batcher
from shared.bus.protocol import Message
from shared.clock import Clock
from shared.db.database import Database, Transaction
from shared.errors import TemporaryError
from shared.events import Event, RunCancelRequested, TenantQuotaChanged, decode
from shared.log import get_logger
from shared.states import JobState, Reason, StageState
from shared.workflow.conditions import evaluate_condition, typed_inputs
from shared.workflow.expressions import cause, render_globals
from shared.workflow.plan import ConcurrencyPlan

CONSUMER = "scheduler"
BROKEN_FOR = timedelta(minutes=5)
"""After which a run that could not be worked on is tried again."""
TURN_SECONDS = 0.1
"""How often those are looked at who wait for their turn to be started."""
BATCH = 64
"""Most events in one transaction."""
PASS_LIMIT = 100
"""Most runs that one look at what waits takes up."""

_log = get_logger("scheduler")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Context:
    """All that the handlers may touch."""

    database: Database
    clock: Clock
    settings: SchedulerSettings
    public_url: Callable[[], str] = str
    """Where people reach the console: conditions may ask for `run.url`."""
    plans: store.Plans = field(default_factory=store.Plans)
    remembered: store.Remembered = field(default_factory=store.Remembered)
    released: set[str] = field(default_factory=set)
    """Tenants that gave something back: what waited there may fit now."""
    release: asyncio.Event = field(default_factory=asyncio.Event)
    broken: dict[uuid.UUID, datetime] = field(default_factory=dict)
    """Runs that cannot be worked on -> when to try them again."""
    window: Window = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", Window(self.settings.max_ready, self.clock))


@dataclass(slots=True)
class _Work:
    """The runs of one step as they were and as they have become."""

    loaded: Mapping[uuid.UUID, store.Loaded]
    now: dict[uuid.UUID, Run]
    evaluate: dict[uuid.UUID, core.Evaluate]
    events: list[Event] = field(default_factory=list)
    revisions: Mapping[uuid.UUID, str] = field(default_factory=dict)
    """Of the runs that were written."""
    full: Full = field(default_factory=Full)
    groups: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    """(tenant, concurrency group) -> its members as read under the tenant's lock."""
    newest: dict[tuple[str, str], int] = field(default_factory=dict)
    """(tenant, concurrency group) -> number of the run that supersedes the others, who have been asked to end."""

    def take(self, step: core.Step, cause: Event | None = None) -> None:
        self.now[step.run.id] = step.run
        self.events.extend(step.events if cause is None else [event.caused_by(cause) for event in step.events])

    def changed(self) -> list[tuple[store.Loaded, Run]]:
        pairs = [(self.loaded[id], run) for id, run in self.now.items()]
        return [(loaded, run) for loaded, run in pairs if loaded.new or run != loaded.run]


# ---------------------------------------------------------------- events


def on_message(context: Context) -> Callable[[Message], Awaitable[None]]:
    """The handler of the bus: batches what comes together."""
    # One worker: two would look at the same run at the same time, and one of them in vain.
    batches: Batcher[Event] = Batcher(lambda events: on_events(events, context), limit=BATCH, workers=1)

    async def handle(message: Message) -> None:
        await batches.submit(decode(message.body))

    return handle


async def on_events(events: Sequence[Event], context: Context) -> None:
    """Handle events of any number of runs: at once where nothing limits them and nobody is quicker, else under locks."""
    changed_quotas = {event.tenant for event in events if isinstance(event, TenantQuotaChanged)}
    if left := await _on_free_runs([event for event in events if event.run], context):
        await _on_locked_runs(left, context)
    if changed_quotas:
        context.released.update(changed_quotas)
        context.release.set()


async def _on_free_runs(events: Sequence[Event], context: Context) -> list[Event]:
    """One step of the runs that nothing limits, written by one statement. Returns the events of the other runs, and of those
    that somebody else has changed meanwhile."""
    window = context.window
    room = await window.room(context.database) if window.limit else 0
    if context.settings.max_jobs or window.closed:
        return list(events)
    ids = sorted({event.run for event in events if event.run})
    known = context.remembered.get(ids)
    remembered = set(known)
    if unknown := [id for id in ids if id not in known]:
        async with context.database.connection() as connection:
            known |= await store.look(connection, context.plans, unknown)
    free = {id: each for id, each in known.items() if each.free}
    work = await _work(context, free)
    now = context.clock.now()
    heard = [event for event in events if event.run in free]
    for event in heard:
        _apply(work, event, now)
    for id in free:
        _go_on(work, id, now)
    changed = work.changed()
    if window.limit and starts(work.events) > room:
        return list(events)
    moved: Mapping[uuid.UUID, str] = {}
    if changed:
        ours = {run.id for _, run in changed}
        moved = await saving.save(
            context.database, changed, [(each.run, each.id) for each in heard if each.run in ours], work.events
        )
        context.remembered.keep(changed, moved)
        count_finished(changed, moved)
        window.let_in(work.events)
    quiet = free.keys() - {run.id for _, run in changed}
    left = [event for event in events if event.run in known and event.run not in moved and event.run not in quiet]
    # What means nothing to a run as we remember it may mean something to what another process has made of it since.
    if doubtful := quiet & remembered:
        context.remembered.forget(doubtful)
        left += await _on_free_runs([event for event in events if event.run in doubtful], context)
    return left


async def _on_locked_runs(events: Sequence[Event], context: Context) -> None:
    async with context.database.transaction() as tx:
        unseen = await tx.first_times(CONSUMER, [event.id for event in events])
        fresh = [event for event in events if event.id in unseen]
        work = await _load(tx, context, sorted({event.run for event in fresh if event.run}))
        now = context.clock.now()
        for event in fresh:
            if event.run in work.now:
                _apply(work, event, now)
        await _admit(tx, context, work)
        await _write(tx, work)
    _after_commit(context, work)


def _apply(work: _Work, event: Event, now: datetime) -> None:
    """What one event means for its run."""
    id = event.run
    if id is not None:
        work.take(core.apply(work.now[id], event, now, work.evaluate[id]), cause=event)


def _go_on(work: _Work, id: uuid.UUID, now: datetime) -> None:
    """Let in a run that nothing limits, and its jobs as they become eligible: a job that ends at once may free the next."""
    run = work.now[id]
    if run.admitted_at is None and not run.state.final and run.ending_state is None:
        work.take(core.admit(run, now, work.evaluate[id]))
    while (names := work.now[id].eligible) and not work.now[id].state.final:
        work.take(core.admit_jobs(work.now[id], names, now, work.evaluate[id]))


# ---------------------------------------------------------------- time, and what waits


async def run_timers(context: Context) -> None:
    """Do what is due, for ever."""
    while True:
        try:
            while await on_time(context) == PASS_LIMIT:
                pass
        except TemporaryError as error:
            _log.warning("timers late", error=str(error))
        await asyncio.sleep(context.settings.timer_seconds)


async def on_time(context: Context) -> int:
    """Do what is due by now. Returns how many runs there were; another process may have taken some of them."""
    now = context.clock.now()
    async with context.database.connection() as connection:
        ids = await store.due(connection, now, PASS_LIMIT)
    await _one_by_one_if_need_be(
        ids, partial(_tick, context=context, now=now), partial(_put_off, context=context, now=now)
    )
    return len(ids)


async def _tick(ids: Sequence[uuid.UUID], context: Context, now: datetime) -> None:
    async with context.database.transaction() as tx:
        work = await _load(tx, context, ids, skip_locked=True)
        for run in list(work.now.values()):
            if await _time_may_decide(tx, run, now):
                work.take(core.tick(run, now, work.evaluate[run.id]))
        await _admit(tx, context, work)
        await _write(tx, work)
    _after_commit(context, work)


async def _put_off(run: uuid.UUID, context: Context, now: datetime) -> None:
    async with context.database.connection() as connection:
        await store.put_off(connection, run, now + BROKEN_FOR)


async def _one_by_one_if_need_be(
    ids: Sequence[uuid.UUID],
    work: Callable[[Sequence[uuid.UUID]], Awaitable[_Result]],
    give_up: Callable[[uuid.UUID], Awaitable[None]],
) -> list[_Result]:
    """Work on these runs together. A run that cannot be worked on (a bug, a state that a newer version has written) holds up no
    other: then each has its own turn, and those that fail are given up, and logged (T28)."""
    try:
        return [await work(ids)] if ids else []
    except TemporaryError:
        raise
    except Exception:
        if len(ids) > 1:
            return [each for id in ids for each in await _one_by_one_if_need_be([id], work, give_up)]
        _log.exception(
            "run cannot be worked on; tried again later", run=str(ids[0]), after_s=BROKEN_FOR.total_seconds()
        )
        await give_up(ids[0])
        return []


async def _time_may_decide(tx: Transaction, run: Run, now: datetime) -> bool:
    """False: a person has decided about an expired pause; the event is on its way and time must not overrule it (T86).

    `now`: by the same clock reading as the tick that follows, or there would be decisions that nobody acts upon.
    """
    for stage in core.expired_pauses(run, now):
        action = "approve" if stage.on_timeout == "approve" else "cancel"
        if not await store.decide(tx.connection, run.id, stage.name, Decision(action, "time limit", "", now)):
            return False
    return True


async def run_admission(context: Context) -> None:
    """Let in what waits: at once where something was given back, and everywhere from time to time."""
    while True:
        everywhere = False
        try:
            patience = context.settings.sweep_seconds
            async with asyncio.timeout(min(patience, TURN_SECONDS) if context.window.closed else patience):
                await context.release.wait()
        except TimeoutError:
            everywhere = True
        context.release.clear()
        tenants = set(context.released)
        context.released.clear()
        try:
            everywhere = everywhere or bool(context.settings.max_jobs) or context.window.closed
            await admit_waiting(context, None if everywhere else tenants)
        except TemporaryError as error:
            context.released.update(tenants)
            _log.warning("admission late", error=str(error))


async def admit_waiting(context: Context, tenants: set[str] | None) -> None:
    """Let in what may begin of all that waits, a page at a time.

    Who is held keeps nobody behind him from being looked at: the next page leaves out who waits for the same. So the work of
    one pass is bounded by what is let in and by how many quotas and groups are full, not by how many runs wait for them.
    """
    full = Full()
    while await _admit_page(context, tenants, full):
        pass


async def _admit_page(context: Context, tenants: set[str] | None, full: Full) -> bool:
    """One look at what waits for other things than what is `full`, which is added to. Whether another look is worth while."""
    async with context.database.connection() as connection:
        if context.settings.max_jobs and await store.active_jobs(connection) >= context.settings.max_jobs:
            return False
        if context.window.limit and not context.window.worth_a_look(await context.window.room(connection, exact=True)):
            return False
        now = context.clock.now()
        for id in [id for id, until in context.broken.items() if until <= now]:
            del context.broken[id]
        ids = await store.runs_waiting(
            connection, None if tenants is None else sorted(tenants), full, PASS_LIMIT, list(context.broken)
        )
    if not ids:
        return False
    known = len(full)

    async def give_up(run: uuid.UUID) -> None:
        context.broken[run] = now + BROKEN_FOR

    progress = await _one_by_one_if_need_be(ids, partial(_let_in, context=context, full=full), give_up)
    grown = len(full) > known
    if any(progress):  # what was let in may be over already, and then its places are free again
        full.runs.clear()
        full.jobs.clear()
    # If nothing was let in and nothing found to be full, another process is looking at these.
    return len(ids) == PASS_LIMIT and (any(progress) or grown)


async def _let_in(ids: Sequence[uuid.UUID], context: Context, full: Full) -> bool:
    """Whether any of these, in this order, got what it waits for."""
    async with context.database.transaction() as tx:
        work = await _load(tx, context, ids, skip_locked=True)
        work.full = full
        work.now = {id: work.now[id] for id in ids if id in work.now}  # in fair order
        before = dict(work.now)
        await _admit(tx, context, work, ours_first=True)
        admitted = any(_progress(before[id], work.now[id]) for id in before)
        await _write(tx, work)
    _after_commit(context, work)
    return admitted


# ---------------------------------------------------------------- the parts of a transaction


async def _load(tx: Transaction, context: Context, ids: Sequence[uuid.UUID], *, skip_locked: bool = False) -> _Work:
    loaded = await store.load(tx.connection, context.plans, ids, skip_locked=skip_locked) if ids else {}
    return await _work(context, loaded, tx.connection)


async def _work(context: Context, loaded: Mapping[uuid.UUID, store.Loaded], connection: Any = None) -> _Work:
    """`connection`: of the transaction that has locked the runs, if one has."""
    evaluate: dict[uuid.UUID, core.Evaluate] = {}
    for id, each in loaded.items():
        evaluate[id] = _never
        if each.run.index.conditional:
            inputs = await store.condition_inputs(connection or context.database, each.run)
            evaluate[id] = _conditions(inputs, context.public_url())
    return _Work(loaded, {id: each.run for id, each in loaded.items()}, evaluate)


async def _write(tx: Transaction, work: _Work) -> None:
    if changed := work.changed():
        work.revisions = await saving.save_locked(tx.connection, changed, work.events)
    tx.tell(*work.events)


def _after_commit(context: Context, work: _Work) -> None:
    changed = work.changed()
    context.remembered.keep(changed, work.revisions)
    count_finished(changed, work.revisions)
    context.window.let_in(work.events)
    _notice_release(context, work)


async def _admit(tx: Transaction, context: Context, work: _Work, *, ours_first: bool = False) -> None:
    """Let in runs and eligible jobs as far as groups, quotas and capacity allow; say why the others wait."""
    quotas = {each.run.tenant: each.quota for each in work.loaded.values()}
    pending = [
        id
        for id, run in work.now.items()
        if run.admitted_at is None and not run.state.final and run.ending_state is None
    ]
    limited = {run.tenant for run in work.now.values() if quotas[run.tenant] != Quota() or run.concurrency_group}
    if context.settings.max_jobs or (ours_first and context.window.limit):
        limited.add("")
    if limited:
        await store.lock_tenants(tx.connection, sorted(limited))
    used = await store.usage(tx.connection, sorted(limited - {""})) if limited - {""} else {}
    for id in pending:
        run = work.now[id]
        held = await _run_held(tx, work, run, quotas[run.tenant], used.get(run.tenant))
        if held is None:
            work.take(core.admit(run, context.clock.now(), work.evaluate[id]))
            if run.tenant in used:
                used[run.tenant] = _one_run_more(used[run.tenant])
        elif (run.reason, run.message) != (held.reason, held.message):
            work.take(core.hold(run, held.reason, held.message))
    room = await _room(tx, context, work, ours_first=ours_first)
    served = _admit_jobs(context, work, quotas, used, room)
    if served and "" in limited:
        await store.note_served(tx.connection, served)
    if room is not None and room.short and not context.window.closed:
        # Known now and not only at the next count: those who wait are looked at soon.
        context.window.closed = True
        context.release.set()


async def _run_held(tx: Transaction, work: _Work, run: Run, quota: Quota, used: Usage | None) -> Held | None:
    place = (run.tenant, run.concurrency_group or "")
    superseding = False
    if run.concurrency_group and run.plan.concurrency:
        if place not in work.groups:
            work.groups[place] = await store.group_members(tx.connection, *place)
        superseding = run.plan.concurrency.policy == "cancel_superseded"
        if superseding and (newest := await _supersede(tx, work, place)) > run.number:
            held: Held | None = _superseded(newest)
        else:
            members = [each for each in work.groups[place] if not _over(work, each["id"])]
            held = _group_held(work, run, run.plan.concurrency, members)
        if held is not None:
            work.full.groups.add(place)
            return held
    held = admit_run(quota, used) if used is not None else None
    if held is not None:
        work.full.runs.add(run.tenant)
    elif superseding and (newer := await store.newest_ended(tx.connection, *place, run.number)):
        # Its number was taken before, and it was recorded when the newer one was over.
        await _ask_to_end(tx, work, place, [run.id], newer)
        held = _superseded(newer)
    return held


async def _supersede(tx: Transaction, work: _Work, place: tuple[str, str]) -> int:
    """All runs of a group but the newest are asked to end, whichever of them is looked at: the newest may have been recorded
    before others. Returns its number. One that is being ended takes nobody's place."""
    if place not in work.newest:
        *older, newest = [each for each in work.groups[place] if not _ending(work, each)]
        work.newest[place] = newest["number"]
        await _ask_to_end(
            tx, work, place, [each["id"] for each in older if not _over(work, each["id"])], newest["number"]
        )
    return work.newest[place]


async def _ask_to_end(
    tx: Transaction, work: _Work, place: tuple[str, str], runs: Sequence[uuid.UUID], newest: int
) -> None:
    """Unless they were asked: a request that the scheduler has not heard yet is on its way."""
    tenant, group = place
    asked = await store.asked_to_end(tx.connection, runs) if runs else set()
    why = f"superseded in the concurrency group {group!r}"
    work.events.extend(
        RunCancelRequested(tenant=tenant, run=id, by="scheduler", why=why, superseded_by=newest)
        for id in runs
        if id not in asked
    )


def _superseded(newest: int) -> Held:
    return Held(Reason.CONCURRENCY, f"run #{newest} of its group takes its place")


def _group_held(work: _Work, run: Run, concurrency: ConcurrencyPlan, members: Sequence[Any]) -> Held | None:
    active = [each for each in members if each["id"] != run.id and _active(work, each)]
    if len(active) >= concurrency.limit:
        return Held(Reason.CONCURRENCY, f"run #{active[0]['number']} of the group {run.concurrency_group!r} is active")
    waiting = [each for each in members if each["number"] < run.number and not _active(work, each)]
    if waiting and concurrency.policy == "queue":
        return Held(
            Reason.CONCURRENCY, f"run #{waiting[0]['number']} of the group {run.concurrency_group!r} is before it"
        )
    return None


def _ending(work: _Work, member: Any) -> bool:
    run = work.now.get(member["id"])
    return bool(member["ending"]) if run is None else run.ending_state is not None


def _active(work: _Work, member: Any) -> bool:
    """Whether a run of a group has begun and is not over, also as far as this transaction has come."""
    run = work.now.get(member["id"])
    return bool(member["admitted"]) if run is None else run.admitted_at is not None and not run.state.final


def _over(work: _Work, id: uuid.UUID) -> bool:
    run = work.now.get(id)
    return run is not None and run.state.final


def _admit_jobs(
    context: Context, work: _Work, quotas: Mapping[str, Quota], used: dict[str, Usage], room: _Room | None
) -> set[str]:
    """Eligible jobs in the order of the runs; a job that ends at once may make others eligible, so go on until calm.

    Returns the tenants that got some of the room.
    """
    served: set[str] = set()
    moved = True
    while moved:
        moved = False
        for id, run in list(work.now.items()):
            names = run.eligible
            if not names or run.state.final:
                continue
            wanted = [
                Request(name, run.index.jobs[name].cpu_millis, run.index.jobs[name].memory_bytes) for name in names
            ]
            held: Held | None = None
            if run.tenant in used and quotas[run.tenant].limits_jobs:
                names, held, used[run.tenant] = admit_jobs(wanted, quotas[run.tenant], used[run.tenant])
                if held is not None:
                    work.full.jobs.add(run.tenant)
            if room is not None and room.places < len(names):
                names, held, room.short = names[: room.places], Held(Reason.CAPACITY, room.why), True
            if names:
                moved = True
                if room is not None:
                    room.places -= len(names)
                    served.add(run.tenant)
                work.take(core.admit_jobs(run, names, context.clock.now(), work.evaluate[id]))
            run = work.now[id]
            if held and (rest := [name for name in run.eligible if run.jobs[name].message != held.message]):
                work.take(core.hold_jobs(run, rest, held.reason, held.message))
    return served


@dataclass(slots=True)
class _Room:
    """For how many jobs the installation has room, and why for no more."""

    places: int
    why: str
    short: bool = False
    """Somebody had to be left waiting."""


async def _room(tx: Transaction, context: Context, work: _Work, *, ours_first: bool) -> _Room | None:
    """None: for any number. Nobody overtakes runs that wait for their turn."""
    room: _Room | None = None
    if limit := context.settings.max_jobs:
        room = _Room(0, f"all {limit} places of the installation are taken")
        if not ours_first and await store.jobs_waiting_elsewhere(tx.connection, list(work.now)):
            context.release.set()
            return room
        room.places = max(0, limit - await store.active_jobs(tx.connection))
    if limit := context.window.limit:
        free = await context.window.room(tx.connection, exact=ours_first)
        if not ours_first and context.window.closed:
            free = 0
        if room is None or free < room.places:
            room = _Room(free, f"{limit} jobs are about to start; this one waits for its turn")
    return room


def _one_run_more(used: Usage) -> Usage:
    return Usage(used.runs + 1, used.jobs, used.cpu_millis, used.memory_bytes)


def _progress(before: Run, after: Run) -> bool:
    return after.admitted_at != before.admitted_at or len(after.eligible) < len(before.eligible)


def _notice_release(context: Context, work: _Work) -> None:
    """After commit: whoever gave back a place lets the admission task look at once."""
    for id, run in work.now.items():
        before = work.loaded[id]
        limited = before.quota != Quota() or run.concurrency_group or context.settings.max_jobs
        if limited and (
            _held_places(before.run) > _held_places(run)
            or (before.run.holds_quota and not run.holds_quota)
            or run.state.final
        ):
            context.released.add(run.tenant)
    if context.released:
        context.release.set()


def _held_places(run: Run) -> int:
    return sum(job.state.active for job in run.jobs.values())


# ---------------------------------------------------------------- conditions


def _never(expression: str, run: Run) -> bool:
    raise AssertionError(f"run {run.id} has no condition, yet {expression!r} is asked for")


def _conditions(inputs: Mapping[str, Any], public_url: str) -> core.Evaluate:
    """What `when` sees: the fields of `conditions.FIELDS`, inputs, env, jobs with state and outputs."""

    def evaluate(expression: str, run: Run) -> bool:
        failed = any(stage.state in {StageState.FAILED, StageState.TIMED_OUT} for stage in run.stages.values())
        failed = failed or any(
            job.state in {JobState.FAILED, JobState.LOST, JobState.TIMED_OUT} and not run.index.jobs[name].allow_failure
            for name, job in run.jobs.items()
        )
        context = {
            **cause(inputs["trigger"]),
            "run": {"id": str(run.id), "number": run.number, "url": f"{public_url}/runs/{run.id}", "failed": failed},
            "inputs": inputs["inputs"],
            "workflow": {"name": run.workflow, "version": run.version},
            "jobs": {
                name: {"state": str(job.state), "outputs": inputs["outputs"].get(name, {})}
                for name, job in run.jobs.items()
            },
        }
        env = render_globals(inputs["env"], context)
        given = typed_inputs(run.plan.input_types, inputs["inputs"])
        return evaluate_condition(expression, {**context, "env": env, "inputs": given})

    return evaluate
