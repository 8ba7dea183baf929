"""Reading logs that log_collector keeps: pieces in object storage, and behind them the tail of a live log in the database.

Both hold the log as it may be shown: secrets are masked before anything is kept. Offsets are bytes of the kept log.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Any

from shared.db.database import Database
from shared.objects import ObjectStore

JOB_BYTES = 100
"""Bytes of a job's name that a topic holds as they are. Names may have 200 characters of any script, a topic of AMQP 255 bytes,
and the tenant (at most 63), the run and the attempt take up to 116 of these."""

_READ = """
SELECT l.segments, t.first, t.data
FROM logs l LEFT JOIN LATERAL (
    SELECT min(start) AS first, string_agg(data, ''::bytea ORDER BY start) AS data
    FROM log_tails WHERE container = l.container AND start < $5 AND start + length(data) > $4
) t ON true
WHERE l.run = $1 AND l.job = $2 AND l.attempt = $3
"""

_STATUS = "SELECT size, completed_at, truncated FROM logs WHERE run = $1 AND job = $2 AND attempt = $3"


@dataclass(frozen=True, slots=True)
class LogStatus:
    """How long a log is now (bytes), and whether it will grow no more."""

    size: int
    complete: bool
    truncated: bool


def log_topic(tenant: str, run: uuid.UUID | str, job: str, attempt: int) -> str:
    """Topic of the nudges that a log has grown or is complete; the body is empty. Listeners then call `read_log`."""
    return f"{tenant}.log.{run}.{_word(job)}.{attempt}"


def _word(job: str) -> str:
    """The job's name as one word of a topic, or its digest where it is long."""
    if len(job.encode()) > JOB_BYTES:
        return hashlib.sha256(job.encode()).hexdigest()
    return job.replace(".", "_")


async def log_status(database: Database, run: uuid.UUID, job: str, attempt: int) -> LogStatus | None:
    """None: there is no log (yet): the attempt has not been submitted, or its collector has not heard of it."""
    row = await database.fetchrow(_STATUS, run, job, attempt)
    return None if row is None else LogStatus(row["size"], row["completed_at"] is not None, row["truncated"])


async def read_log(
    database: Database,
    objects: ObjectStore,
    run: uuid.UUID,
    job: str,
    attempt: int,
    start: int = 0,
    limit: int = 1 << 20,
) -> bytes:
    """Up to `limit` bytes from `start`; fewer at the end of what is there, b"" beyond it.

    To follow: ask `log_status` first, then read until b"", and go on after the next nudge (or a second) until the status
    asked before a read was complete and the read gave b"". Raises TemporaryError while object storage is away.
    """
    end = start + limit
    row = await database.fetchrow(_READ, run, job, attempt, start, end)
    if row is None or limit <= 0:
        return b""
    pieces: list[bytes] = []
    for segment in row["segments"]:
        first, last = max(start, segment["offset"]), min(end, segment["offset"] + segment["size"])
        if first < last:
            pieces.append(await objects.get(segment["key"], first - segment["offset"], last - first))
    pieces.append(_of_tail(row, start, end))
    return b"".join(pieces)


def _of_tail(row: Any, start: int, end: int) -> bytes:
    if row["data"] is None:
        return b""
    first: int = row["first"]
    data: bytes = row["data"]
    return data[max(0, start - first) : max(0, end - first)]
