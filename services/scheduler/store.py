"""The tables of runs, stages, jobs and attempts. All functions work inside the caller's transaction.

`load` locks the runs (in the order of their ids, so that two transactions never wait for one another in a circle), and
`save` writes only what differs from what was loaded.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.scheduler.admission import Quota, Usage
from services.scheduler.core import next_wake
from services.scheduler.model import Decision, JobStatus, PlanIndex, Run, StageStatus, fresh
from shared.clock import parse_timestamp, timestamp
from shared.events import Event, JobReady, JobStopRequested
from shared.runtime.protocol import container_name
from shared.states import JobState, Reason, RunState, StageState
from shared.workflow.plan import Plan

_PLANS_KEPT = 1000

_RUN_COLUMNS = """r.id, r.number, r.tenant, r.workflow, r.version, r.concurrency_group, r.retry_of, r.state, r.reason,
    r.message, r.ending_state, r.paused_seconds, r.created_at, r.admitted_at, r.started_at, r.finished_at"""


@dataclass(slots=True)
class Loaded:
    """A run as it is in the database, and its tenant's quota."""

    run: Run
    quota: Quota
    new: bool
    """It has no rows of stages and jobs yet."""


class Plans:
    """Plans by tenant, workflow and version, which never change once applied."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, str, int], tuple[Plan, PlanIndex]] = {}

    async def of(self, connection: Any, tenant: str, workflow: str, version: int) -> tuple[Plan, PlanIndex]:
        key = (tenant, workflow, version)
        if (known := self._plans.get(key)) is not None:
            return known
        document = await connection.fetchval(
            "SELECT plan FROM workflow_versions WHERE tenant = $1 AND workflow = $2 AND version = $3", *key
        )
        plan = Plan.from_json(document)
        if len(self._plans) >= _PLANS_KEPT:
            self._plans.pop(next(iter(self._plans)))
        self._plans[key] = (plan, PlanIndex.of(plan))
        return self._plans[key]


async def load(
    connection: Any, plans: Plans, ids: Sequence[uuid.UUID], *, skip_locked: bool = False
) -> dict[uuid.UUID, Loaded]:
    """The runs with these ids, locked. Finished and unknown ones are left out."""
    rows = await connection.fetch(
        f"SELECT {_RUN_COLUMNS}, t.quota FROM runs r JOIN tenants t ON t.name = r.tenant "  # noqa: S608 - constants
        "WHERE r.id = ANY ($1) AND r.finished_at IS NULL ORDER BY r.id FOR NO KEY UPDATE OF r"
        + (" SKIP LOCKED" if skip_locked else ""),
        list(ids),
    )
    if not rows:
        return {}
    locked = [row["id"] for row in rows]
    stages: dict[uuid.UUID, dict[str, StageStatus]] = {id: {} for id in locked}
    jobs: dict[uuid.UUID, dict[str, JobStatus]] = {id: {} for id in locked}
    for row in await connection.fetch("SELECT * FROM stages WHERE run = ANY ($1) ORDER BY run, position", locked):
        stages[row["run"]][row["name"]] = _stage(row)
    for row in await connection.fetch("SELECT * FROM jobs WHERE run = ANY ($1) ORDER BY run, position", locked):
        jobs[row["run"]][row["name"]] = _job(row)
    loaded = {}
    for row in rows:
        plan, index = await plans.of(connection, row["tenant"], row["workflow"], row["version"])
        run = _run(row, plan, index, stages[row["id"]], jobs[row["id"]])
        new = not run.stages
        if new:
            run = fresh(run) if row["retry_of"] is None else await _carry_over(connection, fresh(run), row["retry_of"])
        loaded[row["id"]] = Loaded(run, Quota.from_json(row["quota"]), new)
    return loaded


async def _carry_over(connection: Any, run: Run, origin: uuid.UUID) -> Run:
    """What succeeded in the run that this one retries is not done again: whole stages, and jobs of the stage that failed.

    The jobs of a pause stage that was not approved run again, since they tell the approvers.
    """
    stages = await connection.fetch("SELECT name, state FROM stages WHERE run = $1", origin)
    done = {row["name"] for row in stages if row["state"] == StageState.SUCCEEDED}
    rows = await connection.fetch("SELECT name, stage, state, attempt, carried_from FROM jobs WHERE run = $1", origin)
    for row in rows:
        stage = run.index.stage_of.get(row["name"])
        whole = row["stage"] in done
        if stage is None or row["state"] != JobState.SUCCEEDED or (stage.type == "pause" and not whole):
            continue
        run.jobs[row["name"]] = JobStatus(
            JobState.SUCCEEDED,
            Reason.CARRIED_OVER,
            "it succeeded in the run that this one retries",
            attempt=row["attempt"],
            carried_from=row["carried_from"] or origin,
        )
    for stage in run.plan.stages:
        if stage.name in done and all(job.carried_from for _, job in run.jobs_of(stage)):
            run.stages[stage.name] = StageStatus(StageState.SUCCEEDED, Reason.CARRIED_OVER)
    return run


async def save(connection: Any, changed: Sequence[tuple[Loaded, Run]], events: Sequence[Event]) -> None:
    """Write what differs between each run as loaded and as it is now, and the attempts that the events speak of."""
    await _save_runs(connection, [now for _, now in changed])
    await _save_stages(connection, changed)
    await _save_jobs(connection, changed)
    await _save_attempts(connection, events)


async def _save_runs(connection: Any, runs: Sequence[Run]) -> None:
    await connection.execute(
        """
        UPDATE runs r SET state = n.state, reason = n.reason, message = n.message, ending_state = n.ending_state,
            paused_seconds = n.paused_seconds, admitted_at = n.admitted_at, started_at = n.started_at,
            finished_at = n.finished_at, wake_at = n.wake_at
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::timestamptz[],
            $8::timestamptz[], $9::timestamptz[], $10::timestamptz[])
            AS n (id, state, reason, message, ending_state, paused_seconds, admitted_at, started_at, finished_at, wake_at)
        WHERE r.id = n.id
        """,
        *_columns(
            (
                run.id, run.state, run.reason, run.message, run.ending_state, run.paused_seconds, run.admitted_at,
                run.started_at, run.finished_at, next_wake(run),
            )
            for run in runs
        ),
    )  # fmt: skip


async def _save_stages(connection: Any, changed: Sequence[tuple[Loaded, Run]]) -> None:
    rows = [
        (
            now.id, position, name, stage.state, stage.reason, stage.message, _decision_document(stage.decision),
            stage.started_at, stage.paused_at, stage.finished_at,
        )
        for loaded, now in changed
        for position, (name, stage) in enumerate(now.stages.items())
        if loaded.new or stage is not loaded.run.stages[name]
    ]  # fmt: skip
    if rows:
        await connection.execute(
            """
            INSERT INTO stages (run, position, name, state, reason, message, decision, started_at, paused_at, finished_at)
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[],
                $8::timestamptz[], $9::timestamptz[], $10::timestamptz[])
            ON CONFLICT (run, position) DO UPDATE SET state = excluded.state, reason = excluded.reason,
                message = excluded.message, decision = excluded.decision, started_at = excluded.started_at,
                paused_at = excluded.paused_at, finished_at = excluded.finished_at
            """,
            *_columns(rows),
        )


async def _save_jobs(connection: Any, changed: Sequence[tuple[Loaded, Run]]) -> None:
    rows = []
    for loaded, now in changed:
        for position, (name, job) in enumerate(now.jobs.items()):
            if loaded.new or job is not loaded.run.jobs[name]:
                plan, stage = now.index.jobs[name], now.index.stage_of[name]
                rows.append((
                    now.id, position, now.tenant, stage.name, name, job.state, job.reason, job.message, job.attempt,
                    job.retries, job.infrastructure_retries, job.stopping, plan.cpu_millis, plan.memory_bytes,
                    job.eligible_at, job.retry_at, job.ready_at, job.submitted_at, job.started_at, job.finished_at,
                    job.reminded_at, job.carried_from,
                ))  # fmt: skip
    if rows:
        await connection.execute(_UPSERT_JOBS, *_columns(rows))


_UPSERT_JOBS = """
INSERT INTO jobs (run, position, tenant, stage, name, state, reason, message, attempt, retries, infrastructure_retries,
    stopping, cpu_millis, memory_bytes, eligible_at, retry_at, ready_at, submitted_at, started_at, finished_at, reminded_at,
    carried_from)
SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int[],
    $10::int[], $11::int[], $12::text[], $13::int[], $14::bigint[], $15::timestamptz[], $16::timestamptz[], $17::timestamptz[],
    $18::timestamptz[], $19::timestamptz[], $20::timestamptz[], $21::timestamptz[], $22::uuid[])
ON CONFLICT (run, position) DO UPDATE SET state = excluded.state, reason = excluded.reason, message = excluded.message,
    attempt = excluded.attempt, retries = excluded.retries, infrastructure_retries = excluded.infrastructure_retries,
    stopping = excluded.stopping, eligible_at = excluded.eligible_at, retry_at = excluded.retry_at,
    ready_at = excluded.ready_at, submitted_at = excluded.submitted_at, started_at = excluded.started_at,
    finished_at = excluded.finished_at, reminded_at = excluded.reminded_at
"""


async def _save_attempts(connection: Any, events: Sequence[Event]) -> None:
    started = [_attempt(event) for event in events if isinstance(event, JobReady)]
    if started:
        await connection.execute(
            "INSERT INTO attempts (container, run, job, attempt) "
            "SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::int[]) ON CONFLICT DO NOTHING",
            *_columns(started),
        )
    stopped = [_attempt(event)[0] for event in events if isinstance(event, JobStopRequested)]
    if stopped:
        await connection.execute(
            "UPDATE attempts SET stop_requested_at = coalesce(stop_requested_at, now()) WHERE container = ANY ($1)",
            stopped,
        )


def _attempt(event: JobReady | JobStopRequested) -> tuple[str, uuid.UUID, str, int]:
    return container_name(str(event.run), event.job, event.attempt), event.run, event.job, event.attempt


# ---------------------------------------------------------------- what holds runs and jobs back


async def lock_tenants(connection: Any, tenants: Sequence[str]) -> None:
    """Whoever counts what tenants use, to let something in, does it alone. "" stands for the whole installation."""
    for tenant in sorted(set(tenants)):
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", tenant)


async def usage(connection: Any, tenants: Sequence[str]) -> dict[str, Usage]:
    """What the active runs and jobs of each tenant hold now."""
    rows = await connection.fetch(
        """
        SELECT t.name,
            (SELECT count(*) FROM runs r WHERE r.tenant = t.name AND r.finished_at IS NULL
                AND r.state IN ('pending', 'running', 'cancelling') AND r.admitted_at IS NOT NULL) AS runs,
            coalesce(j.jobs, 0) AS jobs, coalesce(j.cpu, 0) AS cpu, coalesce(j.memory, 0) AS memory
        FROM unnest($1::text[]) AS t (name) LEFT JOIN LATERAL (
            SELECT count(*) AS jobs, sum(cpu_millis) AS cpu, sum(memory_bytes) AS memory
            FROM jobs WHERE tenant = t.name AND state IN ('ready', 'submitted', 'running')) j ON true
        """,
        list(tenants),
    )
    return {row["name"]: Usage(row["runs"], row["jobs"], int(row["cpu"]), int(row["memory"])) for row in rows}


async def active_jobs(connection: Any) -> int:
    """Active jobs of the whole installation."""
    count: int = await connection.fetchval("SELECT count(*) FROM jobs WHERE state IN ('ready', 'submitted', 'running')")
    return count


async def jobs_waiting_elsewhere(connection: Any, runs: Sequence[uuid.UUID]) -> bool:
    """Whether jobs of other runs are waiting to be let in."""
    waiting: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT 1 FROM jobs WHERE eligible_at IS NOT NULL AND state = 'waiting' AND run <> ALL ($1))",
        list(runs),
    )
    return waiting


async def group_members(connection: Any, tenant: str, group: str) -> list[Any]:
    """Unfinished runs of a concurrency group, oldest first: id, number, admitted (bool), ending (bool)."""
    rows: list[Any] = await connection.fetch(
        "SELECT id, number, admitted_at IS NOT NULL AS admitted, ending_state IS NOT NULL AS ending FROM runs "
        "WHERE tenant = $1 AND concurrency_group = $2 AND finished_at IS NULL ORDER BY number",
        tenant,
        group,
    )
    return rows


async def runs_waiting(connection: Any, tenants: Sequence[str] | None, limit: int) -> list[uuid.UUID]:
    """Runs that wait to be let in, or have jobs that do, in fair order: tenants take turns, those that hold least first.

    `tenants` None: of all.
    """
    rows = await connection.fetch(
        """
        WITH waiting AS (
            SELECT r.id, r.tenant, r.number, row_number() OVER (PARTITION BY r.tenant ORDER BY r.number) AS turn FROM runs r
            WHERE r.finished_at IS NULL AND ($1::text[] IS NULL OR r.tenant = ANY ($1)) AND (
                (r.state = 'pending' AND r.admitted_at IS NULL)
                OR r.id IN (SELECT run FROM jobs j WHERE j.eligible_at IS NOT NULL AND j.state = 'waiting'
                    AND ($1::text[] IS NULL OR j.tenant = ANY ($1))))
        )
        SELECT w.id FROM waiting w LEFT JOIN (
            SELECT tenant, count(*) AS held FROM jobs WHERE state IN ('ready', 'submitted', 'running') GROUP BY tenant
        ) h ON h.tenant = w.tenant
        WHERE w.turn <= $2 ORDER BY w.turn + coalesce(h.held, 0), w.number LIMIT $2
        """,
        None if tenants is None else list(tenants),
        limit,
    )
    return [row["id"] for row in rows]


async def due(connection: Any, now: datetime, limit: int) -> list[uuid.UUID]:
    """Runs for which time will have changed something by `now`."""
    rows = await connection.fetch("SELECT id FROM runs WHERE wake_at <= $1 ORDER BY wake_at LIMIT $2", now, limit)
    return [row["id"] for row in rows]


async def decide(connection: Any, run: uuid.UUID, stage: str, decision: Decision) -> bool:
    """Record a decision of the scheduler's own. False: a person was quicker."""
    row = await connection.fetchrow(
        "INSERT INTO decisions (run, stage, action, by, comment, at) VALUES ($1, $2, $3, $4, $5, $6) "
        "ON CONFLICT DO NOTHING RETURNING run",
        run, stage, decision.action, decision.by, decision.comment, decision.at,
    )  # fmt: skip
    return row is not None


async def condition_inputs(connection: Any, run: Run) -> dict[str, Any]:
    """What conditions look at besides states: {"trigger", "inputs", "env", "outputs": {job: {name: value}}}."""
    row = await connection.fetchrow(
        "SELECT r.trigger, r.inputs, v.document->'env' AS env FROM runs r JOIN workflow_versions v "
        "ON v.tenant = r.tenant AND v.workflow = r.workflow AND v.version = r.version WHERE r.id = $1",
        run.id,
    )
    places = {(job.carried_from or run.id, name): job.attempt for name, job in run.jobs.items() if job.attempt}
    outcomes = await connection.fetch(
        "SELECT run, job, attempt, outputs FROM attempt_outcomes WHERE run = ANY ($1) AND outputs <> '{}'",
        list({origin for origin, _ in places}),
    )
    outputs = {o["job"]: o["outputs"] for o in outcomes if places.get((o["run"], o["job"])) == o["attempt"]}
    return {"trigger": row["trigger"], "inputs": row["inputs"], "env": row["env"] or {}, "outputs": outputs}


# ---------------------------------------------------------------- rows and values


def _columns(rows: Any) -> list[list[Any]]:
    """Rows turned into one list a column, as unnest wants them."""
    return [list(column) for column in zip(*rows, strict=True)]


def _run(row: Any, plan: Plan, index: PlanIndex, stages: dict[str, StageStatus], jobs: dict[str, JobStatus]) -> Run:
    return Run(
        id=row["id"], tenant=row["tenant"], number=row["number"], workflow=row["workflow"], version=row["version"],
        plan=plan, index=index, created_at=row["created_at"], concurrency_group=row["concurrency_group"],
        state=RunState(row["state"]), reason=row["reason"], message=row["message"],
        ending_state=RunState(row["ending_state"]) if row["ending_state"] else None,
        paused_seconds=row["paused_seconds"], admitted_at=row["admitted_at"], started_at=row["started_at"],
        finished_at=row["finished_at"], stages=stages, jobs=jobs,
    )  # fmt: skip


def _stage(row: Any) -> StageStatus:
    return StageStatus(
        StageState(row["state"]), row["reason"], row["message"], _decision(row["decision"]),
        row["started_at"], row["paused_at"], row["finished_at"],
    )  # fmt: skip


def _job(row: Any) -> JobStatus:
    return JobStatus(
        state=JobState(row["state"]), reason=row["reason"], message=row["message"], attempt=row["attempt"],
        retries=row["retries"], infrastructure_retries=row["infrastructure_retries"], stopping=row["stopping"],
        eligible_at=row["eligible_at"], retry_at=row["retry_at"], ready_at=row["ready_at"],
        submitted_at=row["submitted_at"], started_at=row["started_at"], finished_at=row["finished_at"],
        reminded_at=row["reminded_at"], carried_from=row["carried_from"],
    )  # fmt: skip


def _decision(document: Mapping[str, Any] | None) -> Decision | None:
    if document is None:
        return None
    return Decision(document["action"], document["by"], document["comment"], parse_timestamp(document["at"]))


def _decision_document(decision: Decision | None) -> dict[str, str] | None:
    if decision is None:
        return None
    return {"action": decision.action, "by": decision.by, "comment": decision.comment, "at": timestamp(decision.at)}
