"""The scheduler's one write: what a batch of events has made of its runs, in one statement.

The statement changes a run only if its row is still the one that was looked at (`runs.xmin`, PostgreSQL's own version of a row)
and none of its events was handled before; everything else in it (stages, jobs, attempts, inbox, events) follows the runs that
moved. So a step needs no lock, no BEGIN and no COMMIT, and whoever remembers a run needs not even read it. Runs that did not
move are left as they are; the caller takes them up again under a lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.scheduler.core import next_wake
from services.scheduler.model import Decision, Run
from services.scheduler.store import Loaded
from shared.clock import timestamp
from shared.db import outbox
from shared.db.database import Database
from shared.events import Event, JobReady, JobStopRequested
from shared.runtime.protocol import container_name

Changed = Sequence[tuple[Loaded, Run]]
"""Runs as they were loaded, and as they are now."""

_TABLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "given": (
        ("id", "uuid"), ("revision", "text"), ("state", "text"), ("reason", "text"), ("message", "text"),
        ("ending_state", "text"), ("paused_seconds", "float8"), ("admitted_at", "timestamptz"),
        ("started_at", "timestamptz"), ("finished_at", "timestamptz"), ("wake_at", "timestamptz"),
    ),
    "heard": (("run", "uuid"), ("event", "uuid")),
    "new_stages": (
        ("run", "uuid"), ("position", "int"), ("name", "text"), ("state", "text"), ("reason", "text"), ("message", "text"),
        ("decision", "jsonb"), ("started_at", "timestamptz"), ("paused_at", "timestamptz"), ("finished_at", "timestamptz"),
    ),
    "new_jobs": (
        ("run", "uuid"), ("position", "int"), ("tenant", "text"), ("stage", "text"), ("name", "text"), ("state", "text"),
        ("reason", "text"), ("message", "text"), ("attempt", "int"), ("retries", "int"), ("infrastructure_retries", "int"),
        ("stopping", "text"), ("cpu_millis", "int"), ("memory_bytes", "bigint"), ("eligible_at", "timestamptz"),
        ("retry_at", "timestamptz"), ("ready_at", "timestamptz"), ("submitted_at", "timestamptz"),
        ("started_at", "timestamptz"), ("finished_at", "timestamptz"), ("reminded_at", "timestamptz"),
        ("carried_from", "uuid"),
    ),
    "new_attempts": (("container", "text"), ("run", "uuid"), ("job", "text"), ("attempt", "int"), ("stop", "boolean")),
}  # fmt: skip
"""CTE -> its columns; each column is one parameter, an array."""
_FREE = 1 + sum(map(len, _TABLES.values()))
"""Number of the parameter after these."""


def _names(table: str, *without: str) -> list[str]:
    return [name for name, _ in _TABLES[table] if name not in without]


def _given() -> str:
    """The CTEs that make rows of the parameters."""
    ctes, first = [], 1
    for table, columns in _TABLES.items():
        arrays = ", ".join(f"${first + n}::{kind}[]" for n, (_, kind) in enumerate(columns))
        ctes.append(f"{table} AS (SELECT * FROM unnest({arrays}) AS u ({', '.join(_names(table))}))")  # noqa: S608
        first += len(columns)
    return ",\n".join(ctes)


def _follow(table: str, source: str, key: str, fixed: Sequence[str]) -> str:
    """An insert, or update of all but `fixed`, of the rows whose runs have moved."""
    columns = ", ".join(_names(source))
    changes = ", ".join(f"{name} = excluded.{name}" for name in _names(source, *fixed))
    return (
        f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {source} WHERE run IN (SELECT id FROM moved) "  # noqa: S608
        f"ON CONFLICT ({key}) DO UPDATE SET {changes}"
    )


_RUN_CHANGES = ", ".join(f"{name} = n.{name}" for name in _names("given", "id", "revision"))

# Attempts are locked before the counters of runs, as by whoever records that a container was submitted: what nothing refers to
# would be done last.
_TOLD = "g.run IN (SELECT id FROM moved) AND (SELECT count(*) FROM moved_attempts) >= 0"

_SAVE = f"""
WITH {_given()}, locked AS (
    -- In the order of their ids, so that two batches never wait for one another in a circle.
    SELECT r.id FROM runs r JOIN given n ON n.id = r.id JOIN tenants t ON t.name = r.tenant
    WHERE r.xmin::text = n.revision AND (NOT ${_FREE} OR t.quota = '{{}}')
        -- (a scalar subquery is looked up for each event; what is joined may be read whole)
        AND NOT EXISTS (SELECT FROM heard h WHERE h.run = r.id
            AND (SELECT i.event FROM inbox i WHERE i.consumer = 'scheduler' AND i.event = h.event) IS NOT NULL)
    ORDER BY r.id FOR NO KEY UPDATE OF r
), moved AS (
    UPDATE runs r SET {_RUN_CHANGES} FROM given n JOIN locked l ON l.id = n.id WHERE r.id = n.id
    RETURNING r.id, r.xmin::text AS revision
), noted AS (
    INSERT INTO inbox (consumer, event) SELECT 'scheduler', h.event FROM heard h WHERE h.run IN (SELECT id FROM moved)
    ON CONFLICT DO NOTHING
), moved_stages AS (
    {_follow("stages", "new_stages", "run, position", ("run", "position", "name"))}
), moved_jobs AS (
    {
    _follow(
        "jobs",
        "new_jobs",
        "run, position",
        ("run", "position", "tenant", "stage", "name", "cpu_millis", "memory_bytes", "carried_from"),
    )
}
), moved_attempts AS (
    INSERT INTO attempts (container, run, job, attempt, stop_requested_at)
    SELECT container, run, job, attempt, CASE WHEN stop THEN now() END FROM new_attempts
    WHERE run IN (SELECT id FROM moved)
    ON CONFLICT (container) DO UPDATE SET stop_requested_at = coalesce(attempts.stop_requested_at, excluded.stop_requested_at)
    WHERE excluded.stop_requested_at IS NOT NULL RETURNING container
), {outbox.recording(_FREE + 1, _TOLD)}
SELECT m.ids, m.revisions, r.events, r.seqs
FROM (SELECT array_agg(id) AS ids, array_agg(revision) AS revisions FROM moved) m,
    (SELECT array_agg(id) AS events, array_agg(seq) AS seqs FROM recorded) r
"""  # noqa: S608 - constants


async def save(
    database: Database, changed: Changed, heard: Iterable[tuple[uuid.UUID, uuid.UUID]], events: Sequence[Event]
) -> dict[uuid.UUID, str]:
    """Write runs of tenants without a quota that nobody else has changed, with the (run, event) they have `heard`, and tell
    their events. Returns the revisions of those that moved."""
    [row] = await database.change(
        _SAVE, *_parameters(changed, heard, events), True,
        told=events, seqs=lambda rows: dict(zip(rows[0]["events"] or (), rows[0]["seqs"] or (), strict=True)),
    )  # fmt: skip
    return _revisions(row)


async def save_locked(connection: Any, changed: Changed, events: Sequence[Event]) -> dict[uuid.UUID, str]:
    """The same for runs that the caller's transaction has locked, whatever limits them; it notes and tells by itself."""
    row = await connection.fetchrow(_SAVE, *_parameters(changed, (), events), False, *outbox.columns(()))
    return _revisions(row)


def _revisions(row: Any) -> dict[uuid.UUID, str]:
    return dict(zip(row["ids"] or (), row["revisions"] or (), strict=True))


# ---------------------------------------------------------------- rows


def _parameters(
    changed: Changed, heard: Iterable[tuple[uuid.UUID, uuid.UUID]], events: Sequence[Event]
) -> list[list[Any]]:
    tables = {
        "given": [_run(loaded, now) for loaded, now in changed],
        "heard": list(heard),
        "new_stages": [row for loaded, now in changed for row in _stages(loaded, now)],
        "new_jobs": [row for loaded, now in changed for row in _jobs(loaded, now)],
        "new_attempts": list(_attempts(events)),
    }
    return [column for table, rows in tables.items() for column in _columns(rows, len(_TABLES[table]))]


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows turned into one list a column, as unnest wants them."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _run(loaded: Loaded, now: Run) -> tuple[Any, ...]:
    return (
        now.id, loaded.revision, now.state, now.reason, now.message, now.ending_state, now.paused_seconds, now.admitted_at,
        now.started_at, now.finished_at, next_wake(now),
    )  # fmt: skip


def _stages(loaded: Loaded, now: Run) -> Iterable[tuple[Any, ...]]:
    for position, (name, stage) in enumerate(now.stages.items()):
        if loaded.new or stage is not loaded.run.stages[name]:
            yield (
                now.id, position, name, stage.state, stage.reason, stage.message, _decision(stage.decision),
                stage.started_at, stage.paused_at, stage.finished_at,
            )  # fmt: skip


def _jobs(loaded: Loaded, now: Run) -> Iterable[tuple[Any, ...]]:
    for position, (name, job) in enumerate(now.jobs.items()):
        if loaded.new or job is not loaded.run.jobs[name]:
            plan, stage = now.index.jobs[name], now.index.stage_of[name]
            yield (
                now.id, position, now.tenant, stage.name, name, job.state, job.reason, job.message, job.attempt,
                job.retries, job.infrastructure_retries, job.stopping, plan.cpu_millis, plan.memory_bytes,
                job.eligible_at, job.retry_at, job.ready_at, job.submitted_at, job.started_at, job.finished_at,
                job.reminded_at, job.carried_from,
            )  # fmt: skip


def _attempts(events: Sequence[Event]) -> Iterable[tuple[Any, ...]]:
    """Those that the events start or stop, in the order of their names, in which everybody locks them. One that is stopped in
    the step that starts it is one row."""
    rows: dict[str, tuple[Any, ...]] = {}
    for event in events:
        if isinstance(event, JobReady | JobStopRequested):
            container = container_name(str(event.run), event.job, event.attempt)
            stop = isinstance(event, JobStopRequested) or (container in rows and rows[container][-1])
            rows[container] = (container, event.run, event.job, event.attempt, stop)
    return [rows[container] for container in sorted(rows)]


def _decision(decision: Decision | None) -> dict[str, str] | None:
    if decision is None:
        return None
    return {"action": decision.action, "by": decision.by, "comment": decision.comment, "at": timestamp(decision.at)}
