"""What the scheduler reads: runs with their stages and jobs, and what holds them back. `saving.py` writes.

`load` locks the runs (in the order of their ids, so that two transactions never wait for one another in a circle); `look` does
not, for steps that are written only if nobody else was quicker.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.scheduler.admission import Full, Quota, Usage
from services.scheduler.model import Decision, JobStatus, PlanIndex, Run, StageStatus, fresh
from shared.clock import parse_timestamp
from shared.db.forgetting import DAY, Old
from shared.events import RunCancelRequested
from shared.states import JobState, Reason, RunState, StageState
from shared.workflow.plan import Plan

_PLANS_KEPT = 1000
_RUNS_REMEMBERED = 2000
_JOBS_REMEMBERED = 1000
"""A run with more jobs is read anew for each step; a remembered job takes about half a kilobyte."""

OLD = (
    # An event of a run that is over means nothing to it, were it heard again; one of a run that is not would be done twice, and
    # `unheard` would take it for lost.
    Old("inbox", "handled_at", 7 * DAY, only="""
        (SELECT r.finished_at IS NULL OR r.finished_at > now() - make_interval(secs => $1)
        FROM events e JOIN runs r ON r.id = e.run WHERE e.id = t.event) IS NOT TRUE"""),
)  # fmt: skip

_RUN_COLUMNS = """r.id, r.number, r.tenant, r.workflow, r.version, r.concurrency_group, r.retry_of, r.state, r.reason,
    r.message, r.ending_state, r.paused_seconds, r.created_at, r.admitted_at, r.started_at, r.finished_at"""


@dataclass(slots=True)
class Loaded:
    """A run as it is in the database, and its tenant's quota."""

    run: Run
    quota: Quota
    new: bool
    """It has no rows of stages and jobs yet."""
    revision: str
    """PostgreSQL's version of its row (xmin)."""
    free: bool
    """No quota of its tenant and no concurrency group may hold it."""


class Remembered:
    """Runs as this process has written them last. Somebody else may have changed them since: their revisions tell."""

    def __init__(self) -> None:
        self._runs: OrderedDict[uuid.UUID, Loaded] = OrderedDict()

    def get(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Loaded]:
        return {id: self._runs[id] for id in ids if id in self._runs}

    def keep(self, changed: Iterable[tuple[Loaded, Run]], revisions: Mapping[uuid.UUID, str]) -> None:
        """After a commit: runs that moved, as they are now. The others are forgotten."""
        for loaded, run in changed:
            self._runs.pop(run.id, None)
            if run.id in revisions and not run.state.final and len(run.jobs) <= _JOBS_REMEMBERED:
                self._runs[run.id] = Loaded(run, loaded.quota, False, revisions[run.id], loaded.free)
        while len(self._runs) > _RUNS_REMEMBERED:
            self._runs.popitem(last=False)

    def forget(self, ids: Iterable[uuid.UUID]) -> None:
        for id in ids:
            self._runs.pop(id, None)


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


# Not "finished_at IS NULL", which would tempt PostgreSQL to go through all runs that are not over.
_LOOK = f"""
SELECT {_RUN_COLUMNS}, r.xmin::text AS revision, t.quota, EXISTS (SELECT FROM stages s WHERE s.run = r.id) AS begun
FROM runs r JOIN tenants t ON t.name = r.tenant
WHERE r.id = ANY ($1) AND coalesce(r.finished_at, 'infinity') = 'infinity' ORDER BY r.id
"""  # noqa: S608 - constants


async def look(connection: Any, plans: Plans, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Loaded]:
    """The runs with these ids, as they are at this moment. Finished and unknown ones are left out."""
    rows = await connection.fetch(_LOOK, list(ids))
    return await _loaded(connection, plans, rows, begun=[row["id"] for row in rows if row["begun"]])


async def load(
    connection: Any, plans: Plans, ids: Sequence[uuid.UUID], *, skip_locked: bool = False
) -> dict[uuid.UUID, Loaded]:
    """The same, locked."""
    locking = "FOR NO KEY UPDATE OF r SKIP LOCKED" if skip_locked else "FOR NO KEY UPDATE OF r"
    rows = await connection.fetch(f"{_LOOK} {locking}", list(ids))
    # Not by `begun`: who has waited for the lock gets the row as it is now, and everything else as it was before.
    return await _loaded(connection, plans, rows, begun=[row["id"] for row in rows])


async def _loaded(
    connection: Any, plans: Plans, rows: Sequence[Any], begun: Sequence[uuid.UUID]
) -> dict[uuid.UUID, Loaded]:
    """`begun`: those that have rows of stages and jobs, or may have."""
    stages: dict[uuid.UUID, dict[str, StageStatus]] = {row["id"]: {} for row in rows}
    jobs: dict[uuid.UUID, dict[str, JobStatus]] = {row["id"]: {} for row in rows}
    if begun:
        for row in await connection.fetch("SELECT * FROM stages WHERE run = ANY ($1) ORDER BY run, position", begun):
            stages[row["run"]][row["name"]] = _stage(row)
        for row in await connection.fetch("SELECT * FROM jobs WHERE run = ANY ($1) ORDER BY run, position", begun):
            jobs[row["run"]][row["name"]] = _job(row)
    loaded = {}
    for row in rows:
        plan, index = await plans.of(connection, row["tenant"], row["workflow"], row["version"])
        run = _run(row, plan, index, stages[row["id"]], jobs[row["id"]])
        new = not run.stages
        if new:
            run = fresh(run) if row["retry_of"] is None else await _carry_over(connection, fresh(run), row["retry_of"])
        free = row["quota"] == {} and row["concurrency_group"] is None
        loaded[row["id"]] = Loaded(run, Quota.from_json(row["quota"]), new, row["revision"], free)
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


# ---------------------------------------------------------------- what holds runs and jobs back


async def lock_tenants(connection: Any, tenants: Sequence[str]) -> None:
    """Whoever counts what tenants use, to let something in, does it alone. "" stands for the whole installation.

    All in one statement, and in the same order everywhere (`OFFSET 0`: it is not sorted after locking).
    """
    await connection.execute(
        "SELECT pg_advisory_xact_lock(key) FROM (SELECT DISTINCT hashtextextended(name, 1) AS key "
        "FROM unnest($1::text[]) AS t (name) ORDER BY key OFFSET 0) AS keys",
        list(tenants),
    )


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


async def jobs_about_to_start(connection: Any, since: datetime) -> tuple[int, bool]:
    """How many jobs wait for an executor and have become ready after `since`, and whether any waits for a place among these."""
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM jobs WHERE state = 'ready' AND ready_at > $2) AS ready, EXISTS "
        "(SELECT 1 FROM jobs WHERE eligible_at IS NOT NULL AND state = 'waiting' AND reason = $1) AS waiting",
        Reason.CAPACITY,
        since,
    )
    return row["ready"], row["waiting"]


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


async def newest_ended(connection: Any, tenant: str, group: str, number: int) -> int | None:
    """Number of the newest run of a concurrency group after `number` that came to its own end; None if there is none."""
    newest: int | None = await connection.fetchval(
        "SELECT number FROM runs WHERE tenant = $1 AND number > $3 AND concurrency_group = $2 "
        "AND finished_at IS NOT NULL AND ending_state IS NULL ORDER BY number DESC LIMIT 1",
        tenant,
        group,
        number,
    )
    return newest


async def asked_to_end(connection: Any, runs: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Those of which somebody has requested to cancel them, whether or not the scheduler has heard of it."""
    rows = await connection.fetch(
        # (a scalar subquery is looked up for each run; what is joined may be read whole)
        "SELECT r.id FROM unnest($1::uuid[]) AS r (id) "
        "WHERE (SELECT e.id FROM events e WHERE e.run = r.id AND e.type = $2 LIMIT 1) IS NOT NULL",
        list(runs),
        RunCancelRequested.TYPE,
    )
    return {row["id"] for row in rows}


async def runs_waiting(
    connection: Any, tenants: Sequence[str] | None, full: Full, limit: int, but: Sequence[uuid.UUID] = ()
) -> list[uuid.UUID]:
    """Runs that wait to be let in, or have jobs that do, in fair order: tenants take turns, those that hold least first, and of
    these the one that was served longest ago: a newcomer is before all who have ever had a turn.

    `tenants` None: of all. Left out are those that wait for what is `full`, and those of `but`.
    """
    groups = sorted(full.groups)
    rows = await connection.fetch(
        """
        WITH waiting AS (
            SELECT r.id, r.tenant, r.number, row_number() OVER (PARTITION BY r.tenant ORDER BY r.number) AS turn FROM runs r
            WHERE r.finished_at IS NULL AND ($1::text[] IS NULL OR r.tenant = ANY ($1)) AND r.id <> ALL ($7::uuid[]) AND (
                (r.state = 'pending' AND r.admitted_at IS NULL AND r.tenant <> ALL ($3::text[]) AND NOT EXISTS (
                    SELECT FROM unnest($5::text[], $6::text[]) AS f (tenant, name)
                    WHERE f.tenant = r.tenant AND f.name = r.concurrency_group))
                OR r.id IN (SELECT run FROM jobs j WHERE j.eligible_at IS NOT NULL AND j.state = 'waiting'
                    AND ($1::text[] IS NULL OR j.tenant = ANY ($1)) AND j.tenant <> ALL ($4::text[])))
        )
        SELECT w.id FROM waiting w JOIN tenants t ON t.name = w.tenant LEFT JOIN (
            SELECT tenant, count(*) AS held FROM jobs WHERE state IN ('ready', 'submitted', 'running') GROUP BY tenant
        ) h ON h.tenant = w.tenant
        WHERE w.turn <= $2 ORDER BY w.turn + coalesce(h.held, 0), t.served_at NULLS FIRST, w.number LIMIT $2
        """,
        None if tenants is None else list(tenants),
        limit,
        sorted(full.runs),
        sorted(full.jobs),
        [tenant for tenant, _ in groups],
        [group for _, group in groups],
        list(but),
    )
    return [row["id"] for row in rows]


async def note_served(connection: Any, tenants: Iterable[str]) -> None:
    """These have just been given places of the installation. The caller holds the installation's lock."""
    await connection.execute("UPDATE tenants SET served_at = now() WHERE name = ANY ($1::text[])", sorted(set(tenants)))


async def due(connection: Any, now: datetime, limit: int) -> list[uuid.UUID]:
    """Runs for which time will have changed something by `now`."""
    rows = await connection.fetch("SELECT id FROM runs WHERE wake_at <= $1 ORDER BY wake_at LIMIT $2", now, limit)
    return [row["id"] for row in rows]


async def put_off(connection: Any, run: uuid.UUID, until: datetime) -> None:
    """Time is not asked about this run before `until`."""
    await connection.execute("UPDATE runs SET wake_at = $2 WHERE id = $1 AND finished_at IS NULL", run, until)


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
