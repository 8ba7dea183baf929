"""Hears what the runtime shows, and compares it with what the database expects.

Observations are levels, not edges: each is put into `Pending`, which keeps the latest of each container; one worker takes
them out, as many as have come, and records them in one transaction. Of several replicas each does this for its shares of the
containers (`sharing`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.status_watcher import core, store
from services.status_watcher.config import StatusWatcherSettings
from services.status_watcher.sharing import Shares
from shared import object_keys
from shared.db.database import Database
from shared.errors import HubflowError, PermanentError, TemporaryError
from shared.log import get_logger
from shared.objects import ObjectStore
from shared.outcomes import Outcome, Running, record_outcomes, record_running
from shared.runtime.protocol import Observation, Phase, Runtime
from shared.states import Reason

BATCH = 256
GATHER_RUNNING = 0.02
"""Seconds for which the news that a container runs waits for others."""
REMOVALS = 200
"""How many containers one look removes at most before it looks again."""
REMOVALS_AT_ONCE = 8
STOP_GRACE = 20.0
"""Seconds that an orphan gets to end; after twice as many it is removed."""
LONGEST_WAIT = 10.0
RESULT_BYTES = 4 << 20
RENEWAL = 1.0
"""Seconds between two signs of life."""

_log = get_logger("status_watcher")


class Pending:
    """The latest observation of each container that nobody has worked on yet."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], Observation] = {}
        self._something = asyncio.Event()
        self._ended = asyncio.Event()

    def put(self, *observations: Observation) -> None:
        for seen in observations:
            key = (seen.name, seen.uid)
            old = self._seen.get(key)
            if seen.phase is not Phase.PENDING and core.stands_for(seen, old):
                if old is not None and old.phase is Phase.RUNNING and seen.started_at is None:
                    # Nobody has recorded that it ran, and an end that does not say so would be one before the beginning.
                    seen = dataclasses.replace(seen, started_at=old.started_at or datetime.now(UTC))
                self._seen[key] = seen
                if seen.phase is not Phase.RUNNING:
                    self._ended.set()
        if self._seen:
            self._something.set()

    async def take(self, limit: int) -> list[Observation]:
        """At least one, at most `limit`, oldest first. An end is taken at once; what only runs waits a moment for others, since
        the end of a short job makes it no news."""
        await self._something.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_RUNNING):
                await self._ended.wait()
        self._ended.clear()
        keys = list(self._seen)[:limit]
        taken = [self._seen.pop(key) for key in keys]
        if not self._seen:
            self._something.clear()
        elif any(seen.phase is not Phase.RUNNING for seen in self._seen.values()):
            self._ended.set()
        return taken


@dataclass(frozen=True, slots=True)
class Context:
    """All that the watcher may touch."""

    name: str
    """Of this replica."""
    database: Database
    runtime: Runtime
    objects: ObjectStore
    settings: StatusWatcherSettings
    shares: Shares = field(default_factory=Shares)
    pending: Pending = field(default_factory=Pending)
    orphans: dict[tuple[str, str], float] = field(default_factory=dict)
    """Containers that nobody needs -> since when this process has known (monotonic seconds)."""
    fetching: dict[tuple[str, str], asyncio.Task[None]] = field(default_factory=dict)
    """Result documents being fetched from object storage."""


async def on_observations(observations: Sequence[Observation], context: Context) -> None:
    """Record what is news, all in one transaction. A result document that lies elsewhere is fetched first, on its own."""
    running: list[Running] = []
    outcomes: list[Outcome] = []
    for seen in observations:
        if seen.phase is Phase.RUNNING:
            running.append(Running(seen.name, seen.uid, seen.started_at))
        elif core.overflowed(seen):
            _fetch_result(seen, context)
        else:
            outcomes.append(core.outcome_of(seen))
    if not (running or outcomes):
        return
    async with context.database.transaction() as tx:
        await record_running(tx, running)
        told = await record_outcomes(tx, outcomes)
    for outcome in outcomes:
        if outcome.container in told:
            _log.info(
                "attempt finished", container=outcome.container, state=outcome.state, reason=outcome.reason or None,
                exit_code=outcome.exit_code,
            )  # fmt: skip


def _fetch_result(seen: Observation, context: Context) -> None:
    key = (seen.name, seen.uid)
    if key in context.fetching:
        return
    task = asyncio.create_task(_fetch(seen, context), name=f"result of {seen.name}")
    context.fetching[key] = task
    task.add_done_callback(lambda _: context.fetching.pop(key, None))


async def _fetch(seen: Observation, context: Context) -> None:
    """Put the observation back with its whole document. While object storage is away the sweep brings it again."""
    small = {name: value for name, value in (seen.result or {}).items() if name != "overflow"}
    try:
        whole = await _whole_result(seen, context.objects)
    except TemporaryError as error:
        _log.warning("result not fetched, it will be tried again", container=seen.name, error=str(error))
        return
    except PermanentError as error:
        small["warnings"] = [f"the outputs of this job are lost: {error}"]
        _log.error("result lost", container=seen.name, error=str(error))
        whole = {}
    context.pending.put(dataclasses.replace(seen, result={**small, **whole}))


async def _whole_result(seen: Observation, objects: ObjectStore) -> Mapping[str, object]:
    """The document at the place where the executor told the wrapper to put it, whatever the document itself claims."""
    try:
        key = object_keys.result(seen.labels["tenant"], uuid.UUID(seen.labels["run"]), seen.name)
        body = await objects.get(key, 0, RESULT_BYTES)
    except KeyError:
        raise PermanentError("it was not uploaded; was object storage away?", reason=Reason.WRAPPER_FAILED) from None
    expected = ((seen.result or {}).get("overflow") or {}).get("sha256")
    if expected and hashlib.sha256(body).hexdigest() != expected:
        raise PermanentError("its digest is wrong", reason=Reason.WRAPPER_FAILED)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise PermanentError("it is not JSON", reason=Reason.WRAPPER_FAILED) from None
    return {name: value for name, value in document.items() if name != "overflow"} if isinstance(document, dict) else {}


# ---------------------------------------------------------------- tasks


async def watch(context: Context) -> None:
    """Follow the runtime's watch, again and again. A watch that is broken is reopened, one that just ends is a bug (T17)."""
    wait = 0.2
    while True:
        try:
            async for seen in context.runtime.watch():
                wait = 0.2
                if context.shares.hold(seen.name):
                    context.pending.put(seen)
        except TemporaryError as error:
            _log.warning("watch broken, it will be opened again", seconds=wait, error=str(error))
        else:
            raise RuntimeError("the runtime's watch ended by itself")
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


async def share(context: Context) -> None:
    """Divide the work among the replicas, every second. While the database is away each keeps what it has."""
    while True:
        try:
            context.shares.update(await store.share(context.database, context.name, context.settings.lease_seconds))
        except TemporaryError as error:
            _log.warning("lease not renewed", error=str(error))
        await asyncio.sleep(RENEWAL)


async def catch_up(context: Context) -> None:
    """Look at all containers of shares that have become ours: what their holder before has heard may not be recorded."""
    wait = 0.2
    while True:
        gained = await context.shares.take_gained()
        try:
            found = await _unrecorded(gained, context)
        except TemporaryError as error:
            context.shares.put_back(gained)
            _log.warning("shares not caught up with, they will be", seconds=wait, error=str(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            continue
        wait = 0.2
        context.pending.put(*found)
        _log.info("shares gained", gained="".join(sorted(gained)), held=len(context.shares.held), found=len(found))


async def _unrecorded(shares: frozenset[str], context: Context) -> list[Observation]:
    listed = [seen for seen in await context.runtime.list() if core.share_of(seen.name) in shares]
    standings = await store.standings(context.database, [seen.name for seen in listed])
    return [seen for seen in listed if seen.name in standings and not standings[seen.name].told]


async def tell(context: Context) -> None:
    """Record what the watch has put into `pending`. What the database cannot take now stays there (T04)."""
    wait = 0.1
    while True:
        batch = await context.pending.take(BATCH)
        try:
            await _tell(batch, context)
            wait = 0.1
        except TemporaryError as error:
            context.pending.put(*batch)
            _log.warning("outcomes not recorded, they will be", seconds=wait, error=str(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


async def _tell(batch: Sequence[Observation], context: Context) -> None:
    """One poisoned observation fails alone (T28); the sweep brings it again, so it is loud for as long as it is there."""
    try:
        await on_observations(batch, context)
    except HubflowError:
        raise
    except Exception:
        if len(batch) == 1:
            _log.exception("observation not understood", container=batch[0].name)
            return
        for seen in batch:
            await _tell([seen], context)


async def sweep(context: Context) -> None:
    """Compare database and runtime, and clean up, every `sweep_seconds`, in our shares."""
    while True:
        for duty in (reconcile, remove_finished):
            try:
                await duty(context)
            except HubflowError as error:
                _log.warning("sweep failed, it goes on", error=str(error))
        await asyncio.sleep(context.settings.sweep_seconds)


async def reconcile(context: Context) -> None:
    """Find ends that no watch has shown, attempts whose container is not there, and containers that nobody needs."""
    # The database first: what it expects now was accepted by the runtime long before the list is made.
    expected = await store.unfinished(context.database, context.settings.lost_seconds, context.shares.held)
    listed = {seen.name: seen for seen in await context.runtime.list() if context.shares.hold(seen.name)}
    for name, known in expected.items():
        seen = listed.get(name)
        if seen is None or (known.uid and seen.uid and seen.uid != known.uid):
            await _confirm_lost(name, known, context)
        else:
            context.pending.put(seen)
    await _end_orphans(listed.values(), context)


async def _confirm_lost(name: str, known: core.Expected, context: Context) -> None:
    seen = await context.runtime.inspect(name)
    if seen is not None and (not known.uid or seen.uid == known.uid):
        context.pending.put(seen)
        return
    message = (
        "the container is not there any more and left no outcome: removed by hand, or its node was lost? Try again"
    )
    started_at = known.started_at
    if started_at is None and context.runtime.name != "kubernetes":
        # What these runtimes accept has begun, though nobody saw it; a pod may have waited for its node or image all the time.
        started_at = known.submitted_at
    context.pending.put(
        Observation(
            name, known.uid, Phase.GONE, {}, reason=Reason.CONTAINER_GONE, message=message, started_at=started_at
        )
    )


async def _end_orphans(listed: Iterable[Observation], context: Context) -> None:
    containers = {seen.name: seen for seen in listed}
    standings = await store.standings(context.database, list(containers))
    orphans = [seen for seen in containers.values() if core.is_orphan(seen, standings.get(seen.name))]
    present = {(seen.name, seen.uid) for seen in orphans}
    for key in context.orphans.keys() - present:
        del context.orphans[key]
    now = time.monotonic()
    for seen in orphans:
        age = now - context.orphans.setdefault((seen.name, seen.uid), now) - context.settings.orphan_seconds
        if age < 0:
            continue
        try:
            if seen.phase is not Phase.FINISHED and age < 2 * STOP_GRACE and seen.name in standings:
                _log.warning("orphan stopped", container=seen.name)
                await context.runtime.stop(seen.name, STOP_GRACE)
            else:
                _log.warning("orphan removed", container=seen.name)
                await context.runtime.remove(seen.name)
        except HubflowError as error:
            _log.warning("orphan not ended, it will be tried again", container=seen.name, error=str(error))


async def remove_finished(context: Context) -> None:
    """Remove containers that have been told and whose log is stored, oldest first."""
    gate = asyncio.Semaphore(REMOVALS_AT_ONCE)

    async def remove(name: str) -> str | None:
        async with gate:
            try:
                await context.runtime.remove(name)
            except HubflowError as error:
                _log.warning("container not removed, it will be tried again", container=name, error=str(error))
                return None
            return name

    while names := await store.removable(
        context.database, context.settings.keep_finished, REMOVALS, context.shares.held
    ):
        removed = [name for name in await asyncio.gather(*map(remove, names)) if name is not None]
        if removed:
            await store.note_removed(context.database, removed)
        if len(removed) < REMOVALS:
            return


TASKS = {"share": share, "catch up": catch_up, "watch": watch, "tell": tell, "sweep": sweep}
"""What goes on for as long as the service lives. It hears no events: the runtime is what it listens to."""
