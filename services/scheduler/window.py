"""How many jobs wait for an executor: so few that a newcomer's is soon taken up, so many that no executor is idle (T42).

What is published stands in one queue, first come first served, and nobody can be put before it any more. So little is
published at a time; the rest waits in the database, in fair order. A job that takes long to start (its image is pulled) is not
counted after a while: many of them would keep out those that can start at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from services.scheduler import store
from shared.clock import Clock
from shared.events import Event, JobReady

COUNTED_FOR = 0.05
"""Seconds for which a count is good that leaves no room."""
SLOW = timedelta(seconds=10)
"""After which a job that has not started is not counted any more."""
STEP = 8
"""One part in so many must be free before those that wait are looked at: a look costs as much for one as for many."""


class Window:
    """Room for `limit` jobs in state ready; 0: for any number.

    It is counted whenever those who wait are looked at, every few seconds at least, and what this process lets in meanwhile is
    added: no step of a run asks for it while there is room. So several schedulers together may let in a few more.
    """

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._clock = clock
        self.closed = False
        """Somebody waits for a place: whoever comes must wait, too, until all who wait have been looked at in order."""
        self._ready = 0
        self._counted_at = float("-inf")

    async def room(self, connection: Any, *, exact: bool = False) -> int:
        """Places that are free, whoever may have them."""
        full = self.closed or self._ready >= self.limit
        if exact or (full and time.monotonic() - self._counted_at > COUNTED_FOR):
            self._ready, self.closed = await store.jobs_about_to_start(connection, self._clock.now() - SLOW)
            self._counted_at = time.monotonic()
        return max(0, self.limit - self._ready)

    def worth_a_look(self, room: int) -> bool:
        """Whether those who wait should be looked at while so much room is free."""
        return room >= (max(1, self.limit // STEP) if self.closed else 1)

    def let_in(self, events: Iterable[Event]) -> None:
        """These have been told."""
        self._ready += starts(events)


def starts(events: Iterable[Event]) -> int:
    """How many jobs become ready by these events. (A reminder counts, too, until the next count.)"""
    return sum(isinstance(event, JobReady) for event in events)
