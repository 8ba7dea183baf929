"""A database that holds many runs that are over: what people look up reads the rows that it shows, not all that there are."""

from __future__ import annotations

import uuid

import pytest

from services.console.store import runs
from services.executor.store import note_submitted
from services.scheduler.store import asked_to_end
from shared.clock import new_id
from shared.db import outbox
from shared.db.database import Database, open_database
from shared.events import JobReady, JobSubmitted, RunCancelRequested
from shared.outcomes import Outcome, record_outcomes
from shared.runtime.protocol import container_name
from tests.integration.scheduling import Scheduling

MANY = 20_000
PAGE = 50


async def rows_read(database: Database, table: str) -> int:
    """Of a table, so far. Counts of this very connection are told at once, so that a pool of one knows all."""
    await database.execute("SELECT pg_stat_force_next_flush()")
    return int(
        await database.fetchval(
            "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = $1",
            table,
        )
    )


@pytest.mark.parametrize(
    ("tenant", "workflow", "states", "found"),
    [
        ("acme", None, [], PAGE + 1),
        ("acme", None, ["failed"], 3),
        ("acme", None, ["timed_out"], 0),
        ("acme", None, ["succeeded"], PAGE + 1),
        ("acme", "rare", [], 3),
        ("small", None, [], 2),
    ],
)
async def test_a_page_of_runs_reads_only_what_it_shows(
    database: str, tenant: str, workflow: str | None, states: list[str], found: int
) -> None:
    async with open_database(database, max_connections=1) as opened:
        await opened.execute("INSERT INTO tenants (name) VALUES ('acme'), ('small')")
        for owner, name, state, count in (
            ("small", "w", "succeeded", 2), ("acme", "rare", "failed", 3), ("acme", "w", "succeeded", MANY)
        ):  # fmt: skip
            await opened.execute(
                "INSERT INTO runs (id, tenant, workflow, version, trigger, state, finished_at) "
                "SELECT gen_random_uuid(), $1, $2, 1, '{}', $3, now() FROM generate_series(1, $4::int)",
                owner, name, state, count,
            )  # fmt: skip
        await opened.execute("ANALYZE runs")
        before = await rows_read(opened, "runs")
        page = await runs.page(opened, tenant, workflow, states, PAGE, None)
        read = await rows_read(opened, "runs") - before
        assert len(page) == found
        assert [row["number"] for row in page] == sorted((row["number"] for row in page), reverse=True)
        assert read <= PAGE + 1


async def test_who_cancelled_a_run_is_found_among_all_that_was_ever_done(database: str) -> None:
    run = uuid.uuid4()
    async with open_database(database, max_connections=1) as opened:
        await opened.execute(
            "INSERT INTO audit (id, tenant, actor, action, subject) "
            "SELECT gen_random_uuid(), 'acme', 'token:a', 'run.cancel', gen_random_uuid() FROM generate_series(1, $1::int)",
            MANY,
        )
        await opened.execute(
            "INSERT INTO audit (id, tenant, actor, action, subject) VALUES ($1, 'acme', 'token:b', 'run.cancel', $2)",
            new_id(), str(run),
        )  # fmt: skip
        await opened.execute("ANALYZE audit")
        before = await rows_read(opened, "audit")
        async with opened.transaction() as tx:
            cancel = await runs.cancelled_by(tx, run)
        assert cancel is not None
        assert cancel["actor"] == "token:b"
        assert await rows_read(opened, "audit") - before == 1


async def test_who_was_asked_to_end_is_found_among_all_that_was_ever_told(database: str) -> None:
    async with open_database(database, max_connections=1) as opened:
        scheduling = Scheduling(opened)
        await scheduling.tenant()
        await scheduling.workflow(LIFE)
        asked, other = await scheduling.start("w"), await scheduling.start("w")
        async with opened.transaction() as tx:
            tx.tell(RunCancelRequested(tenant="acme", run=asked, by="ann"))
        told = len(await scheduling.told(asked)) + len(await scheduling.told(other))
        await opened.execute(
            "INSERT INTO events (id, tenant, run, seq, type, body) "
            "SELECT gen_random_uuid(), 'acme', gen_random_uuid(), 1, 'run.cancel_requested', '' "
            "FROM generate_series(1, $1::int)",
            MANY,
        )
        await opened.execute("ANALYZE events")
        before = await rows_read(opened, "events")
        async with opened.connection() as connection:
            assert await asked_to_end(connection, [asked, other]) == {asked}
        assert await rows_read(opened, "events") - before <= told


LIFE = """
name: w
stages: [{name: s, jobs: [{name: j, script: "true"}]}]
"""
TABLES = ["runs", "stages", "jobs", "attempts", "attempt_outcomes", "events", "inbox", "run_counters"]


async def one_life(scheduling: Scheduling) -> dict[str, int]:
    """Take a run from its start to its end with the statements that the services use; rows read of each table."""
    database = scheduling.database
    before = {table: await rows_read(database, table) for table in TABLES}
    run = await scheduling.start("w")
    [ready] = await scheduling.told(run, JobReady)
    container = container_name(str(run), "j", 1)
    place = {"tenant": "acme", "run": run, "stage": "s", "job": "j", "attempt": 1}
    await note_submitted(database, {container: JobSubmitted(**place, container=container)})
    async with database.transaction() as tx:
        assert await record_outcomes(tx, [Outcome(container=container, state="succeeded")]) == {container}
    await scheduling.finish(run, "j")
    await database.execute(outbox._MARK, [ready.id])
    tree = await runs.tree(database, "acme", runs.RunRef.of(run))
    assert tree is not None
    assert tree["state"] == "succeeded"
    return {table: await rows_read(database, table) - before[table] for table in TABLES}


async def test_plans_made_while_the_tables_were_empty_read_no_more_when_they_are_full(database: str) -> None:
    async with open_database(database, max_connections=1) as opened:  # a connection keeps its plans
        scheduling = Scheduling(opened)
        await scheduling.tenant()
        await scheduling.workflow(LIFE)
        await one_life(scheduling)
        few = await one_life(scheduling)
        for _ in range(30):
            await scheduling.start("w")
            await opened.execute(
                "INSERT INTO inbox (consumer, event) SELECT c, gen_random_uuid() "
                "FROM unnest(ARRAY['scheduler', 'executor']) c, generate_series(1, 100)"
            )
            await opened.execute(
                "INSERT INTO events (id, tenant, type, body) SELECT gen_random_uuid(), 'acme', 'test', '\\x80' "
                "FROM generate_series(1, 100)"
            )
        many = await one_life(scheduling)
    assert {table: many[table] - few[table] for table in TABLES if many[table] > few[table] + 5} == {}
