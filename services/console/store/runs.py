"""What console reads of runs, stages and jobs (the scheduler's tables), and a run's events."""

# ruff: noqa: S608 - statements are put together of constants; values are always arguments

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.batching import Batcher
from shared.db.database import Database, Transaction
from shared.errors import UserError
from shared.states import FINAL_RUN_STATES, RunState

_RUN = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NUMBER = re.compile(r"[0-9]{1,18}")

GLANCES = 500
"""Runs that one statement looks at."""
GLANCES_GATHER = 0.1
"""Seconds that a reader's look without a cause waits for those of others."""

_GLANCE = "SELECT r.id, r.tenant, r.number, r.state, r.workflow, c.seq FROM runs r JOIN run_counters c ON c.run = r.id"
_BRIEF = (
    "r.id, r.number, r.workflow, r.version, r.state, r.reason, r.message, r.trigger, r.retry_of, "
    "r.created_at, r.started_at, r.finished_at"
)

_TREE = f"""
SELECT {_BRIEF}, r.inputs, r.concurrency_group, r.admitted_at,
    (SELECT c.seq FROM run_counters c WHERE c.run = r.id) AS seq,
    v.document->'inputs' AS declared_inputs,
    jsonb_path_query_array(v.plan, '$.stages[*].type') AS stage_types,
    jsonb_path_query_array(v.plan, '$.stages[*].jobs[*] ? (@.allow_failure == true).name') AS allowed_failures,
    CASE WHEN r.admitted_at IS NULL AND NOT EXISTS (SELECT 1 FROM stages s WHERE s.run = r.id) THEN v.plan END AS plan,
    CASE WHEN r.state = 'pending' THEN
        (SELECT count(*) FROM runs o WHERE o.tenant = r.tenant AND o.state = 'pending' AND o.finished_at IS NULL
            AND o.number < r.number) END AS runs_before,
    CASE WHEN r.finished_at IS NULL THEN
        (SELECT count(*) FROM jobs o WHERE o.tenant = r.tenant AND o.state = 'waiting' AND o.eligible_at < (
            SELECT min(j.eligible_at) FROM jobs j WHERE j.run = r.id AND j.state = 'waiting')) END AS jobs_before,
    (SELECT jsonb_agg(jsonb_build_object('name', s.name, 'state', s.state, 'reason', s.reason, 'message', s.message,
            'decision', s.decision, 'started_at', s.started_at, 'paused_at', s.paused_at, 'finished_at', s.finished_at)
        ORDER BY s.position) FROM stages s WHERE s.run = r.id) AS stages,
    (SELECT jsonb_agg(jsonb_build_object('stage', j.stage, 'name', j.name, 'state', j.state, 'reason', j.reason,
            'message', j.message, 'attempt', j.attempt, 'eligible_at', j.eligible_at, 'retry_at', j.retry_at,
            'ready_at', j.ready_at, 'started_at', j.started_at, 'finished_at', j.finished_at,
            'carried_from', j.carried_from)
        ORDER BY j.position) FROM jobs j WHERE j.run = r.id) AS jobs,
    (SELECT jsonb_object_agg(d.stage, jsonb_build_object('action', d.action, 'by', d.by, 'comment', d.comment, 'at', d.at))
        FROM decisions d WHERE d.run = r.id) AS decisions
FROM runs r JOIN workflow_versions v ON v.tenant = r.tenant AND v.workflow = r.workflow AND v.version = r.version
"""


@dataclass(frozen=True, slots=True)
class RunRef:
    """How a request names a run: by id, by number, or as the newest one (`@latest`)."""

    clause: str
    """SQL that finds the run `r`; $1 is the tenant, $2 the value."""
    value: Any

    @property
    def id(self) -> uuid.UUID | None:
        """Its id, if it is named by that."""
        return self.value if isinstance(self.value, uuid.UUID) else None

    @classmethod
    def parse(cls, text: str) -> RunRef:
        """Raises UserError 404 for what can name no run."""
        if _RUN.fullmatch(text):
            return cls.of(uuid.UUID(text))
        if _NUMBER.fullmatch(text):
            return cls("r.tenant = $1 AND r.number = $2", int(text))
        if text == "@latest":
            # $2 is there in every clause, so that all take the same arguments.
            return cls(
                "$2::boolean AND r.tenant = $1 AND r.number = (SELECT max(o.number) FROM runs o WHERE o.tenant = $1)",
                True,
            )
        raise not_found(text)

    @classmethod
    def of(cls, id: uuid.UUID) -> RunRef:
        # concat() keeps PostgreSQL from going through all runs of the tenant for the one of this id.
        return cls("r.id = $2 AND concat(r.tenant) = $1", id)


def not_found(text: str) -> UserError:
    return UserError(
        f"there is no run {text[:80]!r}", code="run-not-found", status=404,
        hint="a run is named by its id, its number, or @latest; `hubflow run list` shows them",
    )  # fmt: skip


async def tree(database: Database, tenant: str, run: RunRef) -> Any | None:
    """The run with its stages and jobs, in one statement."""
    return await database.fetchrow(f"{_TREE} WHERE {run.clause}", tenant, run.value)


async def glance(database: Database, tenant: str, run: RunRef) -> Any | None:
    """id, tenant, number, state, workflow and seq."""
    return await database.fetchrow(f"{_GLANCE} WHERE {run.clause}", tenant, run.value)


@dataclass(slots=True)
class _Wanted:
    tenant: str
    run: uuid.UUID
    found: Any = None


class Glances:
    """What `glance` tells, for the many readers that look again though they have heard nothing: one statement for all."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batch = Batcher(self._look, limit=GLANCES, gather=GLANCES_GATHER)

    async def at(self, tenant: str, run: uuid.UUID) -> Any | None:
        """The same as `glance`, at most GLANCES_GATHER seconds later."""
        wanted = _Wanted(tenant, run)
        await self._batch.submit(wanted)
        return wanted.found

    async def _look(self, batch: Sequence[_Wanted]) -> None:
        runs = list({wanted.run for wanted in batch})
        rows = await self._database.fetch(f"{_GLANCE} WHERE r.id = ANY ($1::uuid[])", runs)
        found = {(row["tenant"], row["id"]): row for row in rows}
        for wanted in batch:
            wanted.found = found.get((wanted.tenant, wanted.run))


async def brief(database: Database, tenant: str, run: RunRef, text: str) -> Any:
    """The same. Raises UserError 404, naming `text`."""
    row = await glance(database, tenant, run)
    if row is None:
        raise not_found(text)
    return row


async def locked(tx: Transaction, tenant: str, run: RunRef, text: str) -> Any:
    """The run's row, which stays as it is until the transaction ends. Raises UserError 404."""
    row = await tx.connection.fetchrow(
        "SELECT r.id, r.number, r.state, r.workflow, r.version, r.trigger, r.inputs, r.concurrency_group, r.finished_at "
        f"FROM runs r WHERE {run.clause} FOR SHARE OF r",
        tenant, run.value,
    )  # fmt: skip
    if row is None:
        raise not_found(text)
    return row


async def page(
    database: Database, tenant: str, workflow: str | None, states: list[str], limit: int, before: int | None
) -> list[Any]:
    """Newest first."""
    # Only the filters that are there are put in: PostgreSQL plans a statement once, for all values.
    filters: list[tuple[str, Any]] = []
    if workflow is not None:
        filters.append(("r.workflow = ${}", workflow))
    known = [state.value for state in RunState if state in states]
    if known:
        # Not as arguments: only so does PostgreSQL know which states are rare. One alone comes in the order of its index.
        words = ", ".join(f"'{state}'" for state in known)
        filters.append((f"r.state IN ({words}) AND ${{}}::boolean", True))
        if set(known) <= FINAL_RUN_STATES:
            filters.append(("r.finished_at IS NOT NULL AND ${}::boolean", True))
        elif not set(known) & FINAL_RUN_STATES:
            filters.append(("r.finished_at IS NULL AND ${}::boolean", True))
    if before is not None:
        filters.append(("r.number < ${}", before))
    clauses = "".join(f" AND {clause.format(number)}" for number, (clause, _) in enumerate(filters, 3))
    return await database.fetch(
        # Ordered by the tenant too, and that not known to be one, so that the index on numbers alone cannot serve: it would,
        # for a tenant or a workflow that has not run for long, go through the runs of all others.
        f"SELECT {_BRIEF} FROM runs r WHERE r.tenant = ANY (ARRAY[$1::text]){clauses} "
        "ORDER BY r.tenant, r.number DESC LIMIT $2",
        tenant, limit + 1, *(value for _, value in filters),
    )  # fmt: skip


async def events(database: Database, run: uuid.UUID, since: int, limit: int) -> list[Any]:
    """(seq, body) of the run's events after `since`, oldest first."""
    return await database.fetch(
        "SELECT seq, body FROM events WHERE run = $1 AND seq > $2 ORDER BY seq LIMIT $3", run, since, limit
    )


async def job(database: Database, run: uuid.UUID, name: str) -> Any | None:
    return await database.fetchrow(
        "SELECT stage, name, state, reason, message, attempt, eligible_at, retry_at, ready_at, started_at, finished_at, "
        "carried_from, cpu_millis, memory_bytes FROM jobs WHERE run = $1 AND name = $2",
        run, name,
    )  # fmt: skip


async def had_container(database: Database, run: uuid.UUID, job: str, attempt: int) -> bool:
    """Whether a container of the attempt was ever seen."""
    seen: bool = await database.fetchval(
        "SELECT EXISTS (SELECT 1 FROM attempt_outcomes WHERE run = $1 AND job = $2 AND attempt = $3 AND uid <> '')",
        run, job, attempt,
    )  # fmt: skip
    return seen


async def job_document(database: Database, run: uuid.UUID, name: str) -> Any | None:
    """The job as its workflow file says it, with the run's inputs and the declarations of inputs."""
    return await database.fetchrow(
        "SELECT jsonb_path_query_first(v.document, '$.stages[*].jobs[*] ? (@.name == $name)', "
        "jsonb_build_object('name', $2::text)) AS job, "
        "jsonb_path_query_first(v.document, '$.stages[*] ? (exists (@.jobs[*] ? (@.name == $name))).name', "
        "jsonb_build_object('name', $2::text)) AS stage, r.inputs, v.document->'inputs' AS declared_inputs "
        "FROM runs r JOIN workflow_versions v ON v.tenant = r.tenant AND v.workflow = r.workflow AND v.version = r.version "
        "WHERE r.id = $1",
        run, name,
    )  # fmt: skip


async def attempts(database: Database, run: uuid.UUID, job: str) -> list[Any]:
    """Every container ever asked for, with its outcome as far as it is known."""
    return await database.fetch(
        "SELECT a.attempt, a.container, a.created_at, o.state, coalesce(o.reason, '') AS reason, "
        "coalesce(o.message, '') AS message, o.exit_code, o.started_at, o.ended_at, o.outputs, o.result "
        "FROM attempts a LEFT JOIN attempt_outcomes o ON o.container = a.container AND o.finished_at IS NOT NULL "
        "WHERE a.run = $1 AND a.job = $2 ORDER BY a.attempt",
        run, job,
    )  # fmt: skip


async def cancelled_by(tx: Transaction, run: uuid.UUID) -> Any | None:
    """(actor, at, details) of the first request to cancel a run."""
    return await tx.connection.fetchrow(
        "SELECT actor, at, details FROM audit WHERE action = 'run.cancel' AND subject = $1 ORDER BY id LIMIT 1",
        str(run),
    )


async def artifacts(database: Database, run: uuid.UUID) -> list[Any]:
    """Artifacts of all attempts, by job and name, newest attempt first."""
    return await database.fetch(
        "SELECT job, name, attempt, bytes, sha256, files, object_key, index_key, created_at FROM artifacts WHERE run = $1 "
        "ORDER BY job, name, attempt DESC",
        run,
    )
