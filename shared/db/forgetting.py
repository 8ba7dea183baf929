"""Rows that nobody needs any more are deleted. The service that owns a table says which, and deletes them as one of its tasks.

Several replicas may do so at once: each passes over what another one is just deleting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shared.db.database import Database
from shared.errors import TemporaryError
from shared.log import get_logger

DAY = 86400.0
LOOK_EVERY = 600.0
"""Seconds between two looks for old rows."""
LIMIT = 1000
"""Rows that one statement deletes."""
PAUSE = 0.1
"""Seconds between two such statements: after an upgrade there may be millions of rows, and others want the database, too."""
_log = get_logger("forgetting")


@dataclass(frozen=True, slots=True)
class Old:
    """Rows `t` of a table whose `column`, which an index begins with, is more than `seconds` ago."""

    table: str
    column: str
    seconds: float
    only: str = "true"
    """A condition on `t` besides; $1 is `seconds`."""

    @property
    def deletion(self) -> str:
        return (
            f"WITH gone AS (DELETE FROM {self.table} WHERE ctid = ANY (ARRAY("  # noqa: S608 - constants
            f"SELECT t.ctid FROM {self.table} t WHERE t.{self.column} < now() - make_interval(secs => $1) AND {self.only} "
            f"ORDER BY t.{self.column} LIMIT $2 FOR UPDATE OF t SKIP LOCKED)) RETURNING 1) SELECT count(*) FROM gone"
        )


async def forget(database: Database, old: Old, *, limit: int = LIMIT) -> int:
    """Delete these rows, `limit` at a time. Returns how many there were."""
    total = 0
    while True:
        gone: int = await database.fetchval(old.deletion, old.seconds, limit)
        total += gone
        if gone < limit:
            return total
        await asyncio.sleep(PAUSE)


async def run_forgetting(database: Database, everything: Sequence[Old]) -> None:
    """Look from time to time, for ever."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        for old in everything:
            try:
                if gone := await forget(database, old):
                    _log.info("old rows deleted", table=old.table, rows=gone)
            except TemporaryError as error:
                _log.warning("old rows are deleted later", table=old.table, error=str(error))
