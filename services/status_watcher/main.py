"""Wires the status watcher."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.status_watcher.config import StatusWatcherSettings
from services.status_watcher.handlers import TASKS, Context
from shared.service import Host, Parts, Service


@asynccontextmanager
async def open_status_watcher(host: Host, settings: StatusWatcherSettings) -> AsyncIterator[Parts]:
    """Its tasks on this host."""
    context = Context(host.database, host.runtime, host.objects, settings)
    try:
        yield Parts(tasks={name: functools.partial(task, context) for name, task in TASKS.items()})
    finally:
        fetches = list(context.fetching.values())
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)


SERVICE = Service(
    name="status_watcher",
    open=open_status_watcher,
    settings=StatusWatcherSettings,
    needs=frozenset({"objects", "runtime"}),
)
