"""Wires the log collector."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.log_collector import store
from services.log_collector.config import LogCollectorSettings
from services.log_collector.flushing import Flusher
from services.log_collector.following import Tools
from services.log_collector.handlers import CONSUMER, TASKS, Context, complete, handle
from services.log_collector.store import Log
from shared.batching import Batcher
from shared.bus.protocol import Consumer
from shared.bus.topology import TOPICS
from shared.errors import TemporaryError
from shared.log import get_logger
from shared.logs import log_topic
from shared.secret_masks import SecretMasks
from shared.service import Host, Parts, Service

_log = get_logger("log_collector")


@asynccontextmanager
async def open_log_collector(host: Host, settings: LogCollectorSettings) -> AsyncIterator[Parts]:
    """Its consumer and tasks on this host. At the end others may take its logs at once."""
    await store.renew(host.database, host.name, settings.lease_seconds)
    context = context_of(host, settings)
    consumer = Consumer(CONSUMER, TOPICS[CONSUMER], functools.partial(handle, context=context))
    try:
        yield Parts(
            consumers=[consumer], tasks={name: functools.partial(task, context) for name, task in TASKS.items()}
        )
    finally:
        followers = list(context.following.values())
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        try:
            await store.give_up(host.database, host.name)
        except TemporaryError as error:
            _log.warning("lease not given up, it will expire", error=str(error))


def context_of(host: Host, settings: LogCollectorSettings) -> Context:
    """All that the handlers may touch."""

    def grown(log: Log) -> None:
        host.bus.nudge(log_topic(log.tenant, log.run, log.job, log.attempt), b"")

    flusher = Flusher(
        host.database, host.name, seconds=settings.flush_seconds, most_bytes=settings.buffer_bytes, grown=grown
    )
    tools = Tools(
        database=host.database,
        runtime=host.runtime,
        objects=host.objects,
        settings=settings,
        holder=host.name,
        flusher=flusher,
        completions=Batcher(functools.partial(complete, database=host.database, holder=host.name)),
        uploads=asyncio.Semaphore(settings.uploads),
        grown=grown,
    )
    takes = Batcher(functools.partial(store.take, database=host.database, holder=host.name))
    return Context(host.database, settings, tools, SecretMasks(host.database, host.vault), takes)


SERVICE = Service(
    name="log_collector",
    open=open_log_collector,
    settings=LogCollectorSettings,
    needs=frozenset({"objects", "runtime"}),
)
