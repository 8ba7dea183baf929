"""Sends events once more that were sent long ago and that the scheduler has not handled: parked, or lost with a broker's disks.

Only those of runs that are not over: such a run would wait for ever, and hold its places. The event is the same one, with its
id and seq, so that whoever has handled it drops it. What is still in the queue comes twice then, which does no harm.
"""

from __future__ import annotations

import asyncio

from shared.db.database import Database
from shared.errors import TemporaryError
from shared.log import get_logger

LOOK_EVERY = 60.0
"""Seconds between two looks."""
SENT_BEFORE = 600.0
"""Seconds since an event was sent (the last time) after which it counts as lost: a queue of ten thousand drains in less."""
LIMIT = 500
"""Events that one look gives back at most."""
_log = get_logger("scheduler")

_SEND_AGAIN = """
UPDATE events SET sent_at = NULL, claimed_at = NULL WHERE id IN (
    SELECT e.id FROM runs r CROSS JOIN LATERAL (
        SELECT id, type, sent_at FROM events WHERE run = r.id
            AND type IN ('run.created', 'run.cancel_requested', 'stage.decided', 'job.finished')
    ) e
    WHERE r.finished_at IS NULL AND e.sent_at < now() - make_interval(secs => $1)
        AND (SELECT i.event FROM inbox i WHERE i.consumer = 'scheduler' AND i.event = e.id) IS NULL
    LIMIT $2
) RETURNING run, type
"""


async def send_again(database: Database, sent_before: float = SENT_BEFORE) -> int:
    """Give what was not heard back to the outbox. Returns how many events that were."""
    rows = await database.fetch(_SEND_AGAIN, sent_before, LIMIT)
    for row in rows:
        _log.warning("event was not heard, it is sent again", run=str(row["run"]), type=row["type"])
    return len(rows)


async def run_send_again(database: Database) -> None:
    """Look from time to time, for ever."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            await send_again(database)
        except TemporaryError as error:
            _log.warning("unheard events are looked for later", error=str(error))
