"""A database that holds many runs that are over: what people look up reads the rows that it shows, not all that there are."""

from __future__ import annotations

import uuid

import pytest

from services.console.store import runs
from shared.clock import new_id
from shared.db.database import Database, open_database

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
