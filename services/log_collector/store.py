"""The tables `logs` and `log_tails`. Who has lost a log to another process writes nothing: every write is fenced."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.db import outbox
from shared.db.database import Database
from shared.events import JobLogStored, JobSubmitted
from shared.secret_masks import RUN_AND_VERSION, SECRETS_OF_RUN, RunSecrets, run_secrets_of

LEASE = "log_collector:"
"""Prefix of the leases of the collectors; the holder's name follows."""
TAKE_OVER_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Log:
    """A log as the database holds it when somebody takes it."""

    container: str
    tenant: str
    run: uuid.UUID
    stage: str
    job: str
    attempt: int
    raw_offset: int = 0
    """Bytes of the container's output that are dealt with."""
    size: int = 0
    """Bytes kept of them."""
    stored: int = 0
    """Bytes of these in object storage."""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes to be added to a log's tail."""

    container: str
    start: int
    data: bytes
    raw_offset: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """The last change of a log. `segment`: its last piece, or None; `expected` is the size recorded so far."""

    log: Log
    expected: int
    size: int
    raw_offset: int
    segment: dict[str, Any] | None
    truncated: bool


_COLUMNS = """container, tenant, run, stage, job, attempt, raw_offset, size, truncated,
    coalesce((segments -> -1 ->> 'offset')::bigint + (segments -> -1 ->> 'size')::bigint, 0) AS stored"""

_TAKE_OVER = f"""
UPDATE logs SET holder = $1 WHERE container IN (
    SELECT container FROM logs l
    WHERE completed_at IS NULL AND container <> ALL ($2::text[]) AND (l.holder = $1 OR NOT EXISTS (
        SELECT 1 FROM leases WHERE name = '{LEASE}' || l.holder AND expires_at > now()))
    ORDER BY container LIMIT {TAKE_OVER_LIMIT} FOR UPDATE SKIP LOCKED
) RETURNING {_COLUMNS}
"""  # noqa: S608 - constants

_TAKE_FORGOTTEN = f"""
INSERT INTO logs (container, run, job, attempt, tenant, stage, holder)
SELECT o.container, o.run, o.job, o.attempt, j.tenant, j.stage, $1
FROM attempt_outcomes o JOIN jobs j ON j.run = o.run AND j.name = o.job
WHERE o.removed_at IS NULL AND o.uid <> '' AND coalesce(o.running_at, o.finished_at) < now() - make_interval(secs => $2)
    AND NOT EXISTS (SELECT 1 FROM logs l WHERE l.container = o.container)
LIMIT {TAKE_OVER_LIMIT}
ON CONFLICT DO NOTHING
RETURNING {_COLUMNS}
"""  # noqa: S608 - constants

_GROW = """
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[], $5::boolean[])
        AS g (container, start, data, raw_offset, truncated)
), grown AS (
    UPDATE logs l SET raw_offset = g.raw_offset, size = g.start + length(g.data), truncated = g.truncated
    FROM given g
    WHERE l.container = g.container AND l.holder = $6 AND l.size = g.start AND l.completed_at IS NULL
    RETURNING l.container
), kept AS (
    INSERT INTO log_tails (container, start, data)
    SELECT g.container, g.start, g.data FROM given g JOIN grown ON grown.container = g.container WHERE length(g.data) > 0
)
SELECT container FROM grown
"""

_TAIL = """
SELECT string_agg(data, ''::bytea ORDER BY start) FROM (
    SELECT start, data, sum(length(data)) OVER (ORDER BY start) AS total FROM log_tails WHERE container = $1 AND start >= $2
) piece WHERE total - length(data) < $3 HAVING min(start) = $2
"""

_SEGMENT = """
WITH moved AS (
    UPDATE logs SET segments = segments || $2::jsonb
    WHERE container = $1 AND holder = $3 AND completed_at IS NULL
        AND coalesce((segments -> -1 ->> 'offset')::bigint + (segments -> -1 ->> 'size')::bigint, 0) = $4
    RETURNING container
), dropped AS (
    DELETE FROM log_tails t USING moved m WHERE t.container = m.container AND t.start < $5
)
SELECT container FROM moved
"""

_COMPLETE = f"""
WITH given AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb)
        AS g (container text, event uuid, expected bigint, size bigint, raw_offset bigint, segments jsonb, truncated boolean)
), done AS (
    UPDATE logs l SET size = g.size, raw_offset = g.raw_offset, truncated = g.truncated, completed_at = now(),
        segments = l.segments || g.segments
    FROM given g
    WHERE l.container = g.container AND l.holder = $2 AND l.size = g.expected AND l.completed_at IS NULL
    RETURNING l.container, g.event
), dropped AS (
    DELETE FROM log_tails t USING done d WHERE t.container = d.container
), {outbox.recording(3, "g.id IN (SELECT event FROM done)")}
SELECT d.container, r.id, r.seq FROM done d JOIN recorded r ON r.id = d.event
"""  # noqa: S608 - constants

_RENEW = f"""
INSERT INTO leases (name, holder, expires_at) VALUES ('{LEASE}' || $1, $1, now() + make_interval(secs => $2))
ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at
"""  # noqa: S608 - a constant

_TAKE = f"""
WITH taken AS (
    INSERT INTO logs (container, run, job, attempt, tenant, stage, holder)
    SELECT *, $7 FROM unnest($1::text[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[])
    ON CONFLICT DO NOTHING RETURNING container, run
)
SELECT t.container, {SECRETS_OF_RUN} FROM taken t JOIN ({RUN_AND_VERSION}) ON r.id = t.run
"""  # noqa: S608 - constants


@dataclass(slots=True)
class Taking:
    """A new container whose log somebody should follow, and what came of asking for it."""

    event: JobSubmitted
    log: Log | None = None
    """None: somebody has it."""
    secrets: RunSecrets | None = None


async def take(batch: Sequence[Taking], database: Database, holder: str) -> None:
    """Make the logs of new containers ours, with what must not be seen in them."""
    logs = {
        each.event.container: Log(
            each.event.container,
            each.event.tenant,
            each.event.run,
            each.event.stage,
            each.event.job,
            each.event.attempt,
        )
        for each in batch
    }
    rows_of = [(each.container, each.run, each.job, each.attempt, each.tenant, each.stage) for each in logs.values()]
    columns = [list(column) for column in zip(*rows_of, strict=True)]
    rows = {row["container"]: row for row in await database.fetch(_TAKE, *columns, holder)}
    for each in batch:
        if (row := rows.pop(each.event.container, None)) is not None:
            each.log, each.secrets = logs[each.event.container], run_secrets_of(row)


async def take_over(database: Database, holder: str, ours: Sequence[str]) -> list[Log]:
    """Make logs ours whose holder shows no sign of life, or that we hold without following them; at most 200."""
    rows = await database.fetch(_TAKE_OVER, holder, list(ours))
    return [Log(**dict(row.items())) for row in rows]


async def take_forgotten(database: Database, holder: str, seconds: float) -> list[Log]:
    """Make logs ours of containers that were seen more than `seconds` ago and whose submission nobody has told; at most 200.

    Their executor died before it could note it, and they were over before another one was asked.
    """
    return [Log(**dict(row.items())) for row in await database.fetch(_TAKE_FORGOTTEN, holder, seconds)]


async def renew(database: Database, holder: str, seconds: float) -> None:
    """A sign of life of this process, good for so many seconds."""
    await database.execute_relaxed(_RENEW, holder, seconds)


async def give_up(database: Database, holder: str) -> None:
    """This process ends: others may take its logs at once. Removes leases of processes long gone, too."""
    await database.execute(
        "DELETE FROM leases WHERE name = $1 OR (name LIKE $2 AND expires_at < now() - interval '1 hour')",
        LEASE + holder, LEASE + "%",
    )  # fmt: skip


async def grow(database: Database, growths: Sequence[Growth], holder: str) -> set[str]:
    """Keep the bytes of all of them, with how far each has been read. Returns those that are still ours."""
    rows = await database.fetch(
        _GROW,
        [each.container for each in growths], [each.start for each in growths], [each.data for each in growths],
        [each.raw_offset for each in growths], [each.truncated for each in growths], holder,
    )  # fmt: skip
    return {row["container"] for row in rows}


async def tail(database: Database, container: str, start: int, limit: int) -> bytes:
    """Bytes of the tail from `start`: whole rows, the last of which may go beyond `limit`. Nothing where the tail begins
    elsewhere: what was there is stored, though whoever did that may not have heard so."""
    data: bytes | None = await database.fetchval(_TAIL, container, start, limit)
    return data or b""


async def note_segment(database: Database, container: str, segment: dict[str, Any], holder: str) -> bool:
    """A piece is in object storage; its rows of the tail go in the same statement. False: the log is not ours any more."""
    end = segment["offset"] + segment["size"]
    moved = await database.fetchval(_SEGMENT, container, [segment], holder, segment["offset"], end)
    return moved is not None


async def complete(database: Database, completions: Sequence[Completion], holder: str) -> set[str]:
    """All of these logs are in object storage: tell job.log.stored. Returns those that were ours."""
    events = [_stored(each) for each in completions]
    given = [
        {
            "container": each.log.container,
            "event": str(event.id),
            "expected": each.expected,
            "size": each.size,
            "raw_offset": each.raw_offset,
            "segments": [each.segment] if each.segment else [],
            "truncated": each.truncated,
        }
        for each, event in zip(completions, events, strict=True)
    ]
    rows = await database.change(
        _COMPLETE, given, holder, told=events, seqs=lambda rows: {row["id"]: row["seq"] for row in rows}
    )
    return {row["container"] for row in rows}


def _stored(each: Completion) -> JobLogStored:
    log = each.log
    return JobLogStored(
        tenant=log.tenant, run=log.run, stage=log.stage, job=log.job, attempt=log.attempt,
        container=log.container, size=each.size, truncated=each.truncated,
    )  # fmt: skip
