"""Wires the scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from services.scheduler.clock import DatabaseClock
from services.scheduler.config import SchedulerSettings
from services.scheduler.handlers import BATCH, CONSUMER, Context, on_message, run_admission, run_timers
from services.scheduler.store import OLD
from services.scheduler.unheard import run_send_again
from shared.bus.protocol import Consumer
from shared.bus.topology import TOPICS
from shared.db.forgetting import run_forgetting
from shared.measures import run_measures
from shared.service import Host, Parts, Service


@asynccontextmanager
async def _open(host: Host, settings: SchedulerSettings) -> AsyncIterator[Parts]:
    clock = await DatabaseClock.read(host.database)
    context = Context(host.database, clock, settings, lambda: host.public_url)
    yield Parts(
        # twice a batch: while one transaction is in progress the next batch gathers
        consumers=[Consumer(CONSUMER, TOPICS[CONSUMER], on_message(context), concurrency=4 * BATCH)],
        tasks={
            "timers": partial(run_timers, context),
            "admission": partial(run_admission, context),
            "clock": clock.run,
            "measures": partial(run_measures, host.database, host.bus),
            "unheard events": partial(run_send_again, host.database),
            "old rows": partial(run_forgetting, host.database, OLD),
        },
    )


SERVICE = Service("scheduler", _open, SchedulerSettings)
