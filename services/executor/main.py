"""Wires the executor."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.executor.components import Components
from services.executor.config import ExecutorSettings
from services.executor.handlers import CONSUMER, IN_HAND, Context, handle
from shared.bus.protocol import Consumer
from shared.bus.topology import TOPICS
from shared.service import Host, Parts, Service


@asynccontextmanager
async def open_executor(host: Host, settings: ExecutorSettings) -> AsyncIterator[Parts]:
    """Its consumer on this host."""
    async with Components.open(host.runtime.name, settings.insecure_registries, host.pull) as components:
        context = Context.of(
            database=host.database, runtime=host.runtime, objects=host.objects, vault=host.vault, clock=host.clock,
            settings=settings, components=components, public_url=lambda: host.public_url,
        )  # fmt: skip
        consumer = Consumer(
            CONSUMER, TOPICS[CONSUMER], functools.partial(handle, context=context),
            concurrency=settings.concurrency + IN_HAND, says_when_begun=True,
        )  # fmt: skip
        yield Parts(consumers=[consumer], leave=context.turns.close)


SERVICE = Service(
    name="executor", open=open_executor, settings=ExecutorSettings, needs=frozenset({"objects", "runtime"})
)
