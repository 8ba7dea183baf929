"""Hears that a container has been accepted, and follows its log until that is complete.

A log is taken by making its row; the delivery is acknowledged then, and the process's lease says that it is alive. Logs of a
process without a lease are taken over by whoever sweeps first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.log_collector import store
from services.log_collector.config import LogCollectorSettings
from services.log_collector.flushing import Stream
from services.log_collector.following import Tools, follow
from services.log_collector.store import Completion, Log, Taking
from shared.batching import Batcher
from shared.bus.protocol import Message
from shared.db.database import Database
from shared.errors import HubflowError, TemporaryError
from shared.events import Event, JobSubmitted, decode
from shared.log import get_logger
from shared.masking import Masker
from shared.secret_masks import RunSecrets, SecretMasks

CONSUMER = "log_collector"
RENEWAL = 1.0
"""Seconds between two signs of life."""
FORGOTTEN_AFTER = 30.0
"""Seconds after which the log of a container that was seen to run is taken, though nobody has told that it was submitted."""
LATE = 10.0
"""Seconds after which somebody who hears of a container may have missed the beginning of its log."""

_log = get_logger("log_collector")


@dataclass(frozen=True, slots=True)
class Context:
    """All that the collector may touch."""

    database: Database
    settings: LogCollectorSettings
    tools: Tools
    masks: SecretMasks
    takes: Batcher[Taking]
    following: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Container -> the task that follows its log."""


async def on_job_submitted(event: JobSubmitted, context: Context) -> None:
    """Take the log of a new container, unless somebody has it."""
    taking = Taking(event)
    await context.takes.submit(taking)
    if taking.log is not None:
        late = abs((datetime.now(UTC) - event.time).total_seconds()) > LATE
        begin(taking.log, context, taking.secrets, doubtful=late)


def begin(log: Log, context: Context, secrets: RunSecrets | None = None, *, doubtful: bool = True) -> None:
    """Follow a log that is ours, in a task of its own. `doubtful`: somebody may have missed some of it."""
    if log.container in context.following:
        return
    task = asyncio.create_task(_follow(log, context, secrets, doubtful=doubtful), name=f"log of {log.container}")
    context.following[log.container] = task
    task.add_done_callback(lambda _: context.following.pop(log.container, None))


async def _follow(log: Log, context: Context, secrets: RunSecrets | None, *, doubtful: bool) -> None:
    try:
        stream = Stream.of(log, Masker(await context.masks.patterns(log.tenant, log.run, secrets)))
        stream.doubtful = doubtful
        await follow(stream, context.tools)
    except TemporaryError as error:
        _log.warning("log left to the next sweep", container=log.container, error=str(error))
    except Exception:
        _log.exception("log left to the next sweep", container=log.container)


async def complete(batch: Sequence[Completion], database: Database, holder: str) -> None:
    """Several logs are complete, in one statement. Those that are not ours any more are another's to complete."""
    done = await store.complete(database, batch, holder)
    for each in batch:
        if each.log.container in done:
            _log.info("log stored", container=each.log.container, bytes=each.size, truncated=each.truncated or None)


# ---------------------------------------------------------------- tasks


async def show_life(context: Context) -> None:
    """Renew this process's lease every second."""
    while True:
        try:
            await store.renew(context.database, context.tools.holder, context.settings.lease_seconds)
        except TemporaryError as error:
            _log.warning("lease not renewed", error=str(error))
        await asyncio.sleep(RENEWAL)


async def take_over(context: Context) -> None:
    """Take logs whose process has died, again and again."""
    while True:
        try:
            await take_over_once(context)
        except HubflowError as error:
            _log.warning("sweep failed, it goes on", error=str(error))
        await asyncio.sleep(context.settings.lease_seconds / 2)


async def take_over_once(context: Context) -> int:
    """Returns how many logs were taken."""
    taken = 0
    while True:
        logs = await store.take_over(context.database, context.tools.holder, list(context.following))
        logs += await store.take_forgotten(context.database, context.tools.holder, FORGOTTEN_AFTER)
        for log in logs:
            _log.info("log taken over", container=log.container, offset=log.raw_offset)
            begin(log, context)
        taken += len(logs)
        if len(logs) < store.TAKE_OVER_LIMIT:
            return taken


async def flush(context: Context) -> None:
    """Write what was read."""
    await context.tools.flusher.run()


TASKS = {"lease": show_life, "take over": take_over, "flush": flush}

# ---------------------------------------------------------------- who hears what

HANDLERS = {JobSubmitted: on_job_submitted}


async def handle(message: Message, context: Context) -> None:
    """The handler of the message's event."""
    event: Event = decode(message.body)
    if isinstance(event, JobSubmitted):
        await HANDLERS[JobSubmitted](event, context)
