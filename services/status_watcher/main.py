"""Wires the status watcher."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.status_watcher import store
from services.status_watcher.config import StatusWatcherSettings
from services.status_watcher.handlers import TASKS, Context
from shared.errors import TemporaryError
from shared.log import get_logger
from shared.service import Host, Parts, Service

_log = get_logger("status_watcher")


@asynccontextmanager
async def open_status_watcher(host: Host, settings: StatusWatcherSettings) -> AsyncIterator[Parts]:
    """Its tasks on this host. At the end others may take its shares at once."""
    context = Context(host.name, host.database, host.runtime, host.objects, settings)
    try:
        yield Parts(tasks={name: functools.partial(task, context) for name, task in TASKS.items()})
    finally:
        fetches = list(context.fetching.values())
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        try:
            await store.give_back(host.database, host.name)
        except TemporaryError as error:
            _log.warning("shares not given back, others take them when the lease is over", error=str(error))


SERVICE = Service(
    name="status_watcher",
    open=open_status_watcher,
    settings=StatusWatcherSettings,
    needs=frozenset({"objects", "runtime"}),
    works_without=frozenset({"objects"}),  # but for results too large for where the runtime keeps them
)
