"""How many jobs wait for an executor: so few that a newcomer's is soon taken up, so many that no executor is idle (T42).

What is published stands in one queue, first come first served, and nobody can be put before it any more. So little is
published at a time; the rest waits in the database, in fair order. A job that takes long to start (its image is pulled) is not
counted after a while: many of them would keep out those that can start at once.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from services.scheduler import store
from shared.clock import Clock
from shared.states import JobState

COUNTED_FOR = 0.5
"""Seconds for which a count is good; what this process lets in meanwhile is added to it."""
COUNTED_WHEN_FULL = 0.05
SLOW = timedelta(seconds=10)
"""After which a job that has not started is not counted any more."""
STEP = 8
"""One part in so many must be free before those that wait are looked at: a look costs as much for one as for many."""


class Window:
    """Room for `limit` jobs in state ready; 0: for any number.

    What other schedulers let in is seen when it counts anew, so that all together may let in a few more.
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
        age = time.monotonic() - self._counted_at
        if exact or age > COUNTED_FOR or (age > COUNTED_WHEN_FULL and (self.closed or self._ready >= self.limit)):
            self._ready, self.closed = await store.jobs_about_to_start(connection, self._clock.now() - SLOW)
            self._counted_at = time.monotonic()
        return max(0, self.limit - self._ready)

    def worth_a_look(self, room: int) -> bool:
        """Whether those who wait should be looked at while so much room is free."""
        return room >= (max(1, self.limit // STEP) if self.closed else 1)

    def let_in(self, before: Any, after: Any) -> None:
        """A run has become another one."""
        self._ready += newly_ready(before, after)


def newly_ready(before: Any, after: Any) -> int:
    """How many jobs of a run have become ready."""
    return sum(
        job.state is JobState.READY
        and (
            name not in before.jobs or (job.state, job.attempt) != (before.jobs[name].state, before.jobs[name].attempt)
        )
        for name, job in after.jobs.items()
    )
