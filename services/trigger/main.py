"""Wires trigger: HTTP routes, and what is too old is deleted. Any number of replicas may run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from services.trigger.config import TriggerSettings
from services.trigger.handlers import ENDPOINTS, Context
from services.trigger.store import OLD, Workflows
from shared.api import routes
from shared.db.forgetting import run_forgetting
from shared.service import Host, Parts, Service


@asynccontextmanager
async def _open(host: Host, settings: TriggerSettings) -> AsyncIterator[Parts]:
    context = Context(host.database, host.vault, settings, Workflows(), asyncio.Semaphore(settings.large_bodies))
    yield Parts(routes=routes(ENDPOINTS, context), tasks={"old rows": partial(run_forgetting, host.database, OLD)})


SERVICE = Service(name="trigger", open=_open, settings=TriggerSettings)
