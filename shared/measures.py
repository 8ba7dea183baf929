"""What is measured from time to time because no event tells it: what waits in the outbox, and what is parked.

The scheduler does it, each replica for the whole installation: of several the greatest value counts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial

from prometheus_client import Gauge

from shared.bus.protocol import Bus
from shared.db.database import Database
from shared.db.outbox import unsent
from shared.errors import TemporaryError

EVERY = 15.0
"""Seconds between two measurements."""
_UNSENT = Gauge("hubflow_events_unsent", "Events that should be on the bus for five seconds and more, and are not")
_PARKED = Gauge("hubflow_messages_parked", "Messages that could not be handled and are parked")


async def measure(database: Database, bus: Bus) -> None:
    """Once. What cannot be measured is NaN, so that nobody takes an old number for the present one."""
    counts: dict[Gauge, Callable[[], Awaitable[int]]] = {_UNSENT: partial(unsent, database), _PARKED: bus.parked}
    for gauge, count in counts.items():
        try:
            async with asyncio.timeout(EVERY):
                gauge.set(await count())
        except (TemporaryError, TimeoutError):
            gauge.set(math.nan)


async def run_measures(database: Database, bus: Bus) -> None:
    """For ever."""
    while True:
        await measure(database, bus)
        await asyncio.sleep(EVERY)
