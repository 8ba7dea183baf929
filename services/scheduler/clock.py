"""The scheduler's time: the database's clock, which all replicas have in common.

What one of them writes as the time of a start, a pause or a retry, another one compares with now.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from typing import Self

from shared.db.database import Database
from shared.errors import TemporaryError
from shared.log import get_logger

LOOK_EVERY = 10.0
"""Seconds between two looks at the database's clock."""
SLOW = 1.0
"""Seconds; of an answer that took longer nobody knows when it was true."""

_log = get_logger("scheduler")


class DatabaseClock:
    """The database's clock as it was when last looked at, carried on by the monotonic one."""

    def __init__(self, database: Database, told: datetime, at: float) -> None:
        self._database = database
        self._told = told
        self._at = at
        """When that was, in monotonic seconds."""

    @classmethod
    async def read(cls, database: Database) -> Self:
        """Begin with a look. Raises TemporaryError while the database does not answer."""
        return cls(database, await _time_of(database), time.monotonic())

    def now(self) -> datetime:
        return self._told + timedelta(seconds=time.monotonic() - self._at)

    async def look(self) -> None:
        """Compare with the database again: the two clocks drift, and a machine may have slept."""
        began = time.monotonic()
        told = await _time_of(self._database)
        if (at := time.monotonic()) - began < SLOW:
            self._told, self._at = told, at

    async def run(self) -> None:
        """Look from time to time, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except TemporaryError as error:
                _log.warning("clock not compared", error=str(error))


async def _time_of(database: Database) -> datetime:
    told: datetime = await database.fetchval("SELECT clock_timestamp()")
    return told
