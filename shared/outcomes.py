"""How attempts end: recorded and told once, whoever sees it first.

Used by status_watcher (what the runtime shows) and executor (what could not start, or was stopped before it did). The row in
`attempt_outcomes` is the arbiter: only the transaction that fills in `finished_at` tells job.finished.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg

from shared import object_keys
from shared.clock import timestamp
from shared.db.database import Transaction
from shared.errors import TemporaryError
from shared.events import JobFinished, JobRunning

MESSAGE_LIMIT = 2000
"""Characters of a message for people."""


@dataclass(frozen=True, slots=True)
class KeptArtifact:
    """An artifact that the wrapper has uploaded. `indexed`: its list of entries too."""

    name: str
    bytes: int
    sha256: str = ""
    files: int = 0
    indexed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of the attempt whose container has this name. All texts are free of NUL and lone surrogates (`clean`)."""

    container: str
    state: str
    """`succeeded`, `failed`, `timed_out`, `cancelled` or `lost`."""
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started: bool | None = None
    """Has the user's code started? None: nobody knows but by whether the container was seen running."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    uid: str = ""
    """Of the container; "" when there was none, or it is not known. An outcome of another uid than seen before is refused."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    """The wrapper's result document without its outputs."""
    artifacts: Sequence[KeptArtifact] = ()


@dataclass(frozen=True, slots=True)
class Running:
    """A container whose first process has started."""

    container: str
    uid: str
    started_at: datetime | None = None


_RECORD = """
WITH given AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g (container text, uid text, state text, reason text, message text,
        exit_code integer, started_at timestamptz, ended_at timestamptz, outputs jsonb, result jsonb)
), known AS (
    SELECT g.*, a.run, a.job, a.attempt, j.tenant, j.stage
    FROM given g JOIN attempts a ON a.container = g.container JOIN jobs j ON j.run = a.run AND j.name = a.job
), told AS (
    INSERT INTO attempt_outcomes AS o (container, run, job, attempt, uid, finished_at, state, reason, message, exit_code,
        started_at, ended_at, outputs, result)
    SELECT container, run, job, attempt, uid, now(), state, reason, message, exit_code,
        started_at, coalesce(ended_at, now()), outputs, result FROM known ORDER BY container
    ON CONFLICT (container) DO UPDATE SET
        uid = CASE o.uid WHEN '' THEN excluded.uid ELSE o.uid END, finished_at = excluded.finished_at,
        state = excluded.state, reason = excluded.reason, message = excluded.message, exit_code = excluded.exit_code,
        started_at = coalesce(excluded.started_at, o.started_at), ended_at = excluded.ended_at,
        outputs = excluded.outputs, result = excluded.result
    WHERE o.finished_at IS NULL AND (o.uid = '' OR excluded.uid = '' OR o.uid = excluded.uid)
    RETURNING o.container, o.running_at, o.started_at, o.ended_at
)
SELECT k.container, k.tenant, k.run, k.stage, k.job, k.attempt, t.running_at, t.started_at, t.ended_at
FROM told t JOIN known k ON k.container = t.container ORDER BY k.container
"""

_RECORD_ARTIFACTS = """
INSERT INTO artifacts (run, job, attempt, name, tenant, object_key, index_key, bytes, sha256, files)
SELECT * FROM jsonb_to_recordset($1::jsonb) AS g (run uuid, job text, attempt integer, name text, tenant text,
    object_key text, index_key text, bytes bigint, sha256 text, files bigint)
ON CONFLICT DO NOTHING
"""

_RECORD_RUNNING = """
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS g (container, uid, started_at)
), told AS (
    INSERT INTO attempt_outcomes (container, run, job, attempt, uid, running_at, started_at)
    SELECT a.container, a.run, a.job, a.attempt, g.uid, now(), coalesce(g.started_at, now())
    FROM given g JOIN attempts a ON a.container = g.container ORDER BY a.container
    ON CONFLICT DO NOTHING RETURNING container, run, job, attempt, started_at
)
SELECT t.run, j.tenant, j.stage, t.job, t.attempt, t.started_at
FROM told t JOIN jobs j ON j.run = t.run AND j.name = t.job ORDER BY t.container
"""


async def record_outcomes(tx: Transaction, outcomes: Iterable[Outcome]) -> set[str]:
    """Record the outcomes that are news and tell job.finished of each. Returns their containers.

    Not among them: what was told before, another uid than the one seen running (T21), and containers of no known attempt.
    Raises TemporaryError if somebody else records one of them at the same moment.
    """
    by_container = {outcome.container: outcome for outcome in reversed(list(outcomes))}
    if not by_container:
        return set()
    try:
        rows = await tx.connection.fetch(_RECORD, [_row(outcome) for outcome in by_container.values()])
    except asyncpg.UniqueViolationError as error:
        # The same by somebody else at the same moment. ON CONFLICT sees to one unique index only, and there are two.
        raise TemporaryError("another process records the end of the same attempt", delay=0.05) from error
    artifacts = [artifact for row in rows for artifact in _artifact_rows(row, by_container[row["container"]])]
    if artifacts:
        await tx.connection.execute(_RECORD_ARTIFACTS, artifacts)
    for row in rows:
        outcome = by_container[row["container"]]
        tx.tell(
            JobFinished(
                tenant=row["tenant"], run=row["run"], stage=row["stage"], job=row["job"], attempt=row["attempt"],
                state=outcome.state, reason=outcome.reason, message=outcome.message[:MESSAGE_LIMIT],
                exit_code=outcome.exit_code,
                started=row["running_at"] is not None if outcome.started is None else outcome.started,
                outputs=list(outcome.outputs), started_at=row["started_at"], finished_at=row["ended_at"],
            )
        )  # fmt: skip
    return {row["container"] for row in rows}


async def record_running(tx: Transaction, running: Iterable[Running]) -> None:
    """Tell job.running of those that were not told yet. One whose outcome is known is not told as running any more."""
    unique = list({each.container: each for each in running}.values())
    if not unique:
        return
    rows = await tx.connection.fetch(
        _RECORD_RUNNING,
        [each.container for each in unique], [each.uid for each in unique], [each.started_at for each in unique],
    )  # fmt: skip
    tx.tell(
        *(
            JobRunning(
                tenant=row["tenant"],
                run=row["run"],
                stage=row["stage"],
                job=row["job"],
                attempt=row["attempt"],
                started_at=row["started_at"],
            )
            for row in rows
        )
    )


def clean(value: Any) -> Any:
    """Plain data without what PostgreSQL cannot keep (NUL, lone surrogates), wherever it stands."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
        return None
    return value


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "container": outcome.container,
        "uid": outcome.uid,
        "state": outcome.state,
        "reason": outcome.reason,
        "message": outcome.message[:MESSAGE_LIMIT],
        "exit_code": outcome.exit_code,
        "started_at": _time(outcome.started_at),
        "ended_at": _time(outcome.ended_at),
        "outputs": dict(outcome.outputs),
        "result": outcome.result,
    }


def _time(moment: datetime | None) -> str | None:
    return timestamp(moment) if moment is not None else None


def _artifact_rows(row: Any, outcome: Outcome) -> list[dict[str, Any]]:
    tenant: str = row["tenant"]
    run: uuid.UUID = row["run"]
    job, attempt = row["job"], row["attempt"]
    return [
        {
            "run": str(run),
            "job": job,
            "attempt": attempt,
            "name": kept.name,
            "tenant": tenant,
            "object_key": object_keys.artifact(tenant, run, job, attempt, kept.name),
            "index_key": object_keys.artifact_index(tenant, run, job, attempt, kept.name) if kept.indexed else None,
            "bytes": kept.bytes,
            "sha256": kept.sha256,
            "files": kept.files,
        }
        for kept in outcome.artifacts
    ]
