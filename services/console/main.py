"""Wires console: HTTP routes, and a listener that wakes whoever waits. Any number of replicas may run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from services.console.config import ConsoleSettings
from services.console.context import Context
from services.console.followers import Followers
from services.console.handlers import ENDPOINTS
from services.console.live import Changes
from services.console.proxy import proxy_endpoints
from services.console.store.runs import Glances
from services.console.store.tenants import ensure_operator_token
from shared.api import routes
from shared.secret_masks import SecretMasks
from shared.service import Host, Parts, Service


@asynccontextmanager
async def _open(host: Host, settings: ConsoleSettings) -> AsyncIterator[Parts]:
    changes = Changes(host.bus)
    masks = SecretMasks(host.database, host.vault)
    followers = Followers(host.database, settings.all_followers, settings.followers)
    context = Context(host, settings, changes, Glances(host.database), masks, followers)
    if settings.operator_token:
        await ensure_operator_token(host.database, settings.operator_token)
    await changes.open()

    async def end_waiting_when_stopped() -> None:
        """Readers that wait would hold up the end of the process."""
        try:
            await asyncio.Future()
        finally:
            changes.close()

    async with AsyncExitStack() as stack:
        endpoints = ENDPOINTS
        if settings.trigger_url:
            endpoints += await stack.enter_async_context(proxy_endpoints(settings.trigger_url))
        yield Parts(
            routes=routes(endpoints, context),
            tasks={"readers": end_waiting_when_stopped, "topics": changes.stop_hearing_the_rest},
        )


_OBJECTS = frozenset({"objects"})
SERVICE = Service(
    name="console", open=_open, settings=ConsoleSettings, needs=_OBJECTS, works_without=_OBJECTS  # but for logs and artifacts
)  # fmt: skip
