"""What is too old is deleted, and nothing that is still needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.console.main import SERVICE as CONSOLE
from services.scheduler.main import SERVICE as SCHEDULER
from services.scheduler.store import OLD as OF_SCHEDULER
from services.scheduler.unheard import send_again
from services.trigger.main import SERVICE as TRIGGER
from services.trigger.store import OLD as OF_TRIGGER
from shared.db import forgetting
from shared.db.database import Database, open_database
from shared.db.forgetting import Old, forget
from shared.events import JobFinished, StageDecided
from tests.integration.scheduling import Scheduling
from tests.integration.serving import serving
from tests.integration.test_long_past import rows_read
from tests.integration.test_scheduler import ONE_JOB

WORKFLOW = "name: w\nstages: [{name: s, jobs: {j: {script: 'true'}}}]\n"


async def keys(database: Database, table: str = "idempotency_keys", name: str = "key") -> list[str]:
    return [row[0] for row in await database.fetch(f"SELECT {name} FROM {table} ORDER BY 1")]


def old(table: str) -> Old:
    (found,) = [each for each in (*OF_TRIGGER, *OF_SCHEDULER) if each.table == table]
    return found


async def test_old_answers_and_messages_are_deleted_a_few_at_a_time(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "PAUSE", 0.0)
    async with open_database(database) as opened:
        for ages, many in (("1 day 1 minute", 5), ("23 hours", 2)):
            await opened.execute(
                "INSERT INTO idempotency_keys (tenant, key, request_hash, status, response, created_at) "
                "SELECT 'acme', $1 || n, '', 200, '{}', now() - $1::text::interval FROM generate_series(1, $2::int) n",
                ages, many,
            )  # fmt: skip
        for age in ("31 days", "29 days"):
            await opened.execute(
                "INSERT INTO hook_deliveries (tenant, workflow, source, delivery, fingerprint, outcome, received_at) "
                "VALUES ('acme', 'w', 'github', $1, '', 'started', now() - $1::text::interval)",
                age,
            )
        assert await forget(opened, old("idempotency_keys"), limit=2) == 5
        assert await keys(opened) == ["23 hours1", "23 hours2"]
        assert await forget(opened, old("hook_deliveries")) == 1
        assert await keys(opened, "hook_deliveries", "delivery") == ["29 days"]


@pytest.mark.parametrize("table", ["idempotency_keys", "hook_deliveries", "inbox"])
async def test_a_plan_made_while_the_table_was_empty_reads_no_more_than_is_deleted(
    database: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "PAUSE", 0.0)
    async with open_database(database, max_connections=1) as opened:  # a connection keeps its plans
        assert await forget(opened, old(table), limit=100) == 0
        columns, values = {
            "idempotency_keys": ("tenant, key, request_hash, status, response", "'acme', n, '', 200, '{}'"),
            "hook_deliveries": (
                "tenant, workflow, source, delivery, fingerprint, outcome", "'acme', 'w', 'github', n, '', 'started'"
            ),
            "inbox": ("consumer, event", "'scheduler', gen_random_uuid()"),
        }[table]  # fmt: skip
        await opened.execute(
            f"INSERT INTO {table} ({columns}, {old(table).column}) "
            f"SELECT {values}, now() - interval '40 days' FROM generate_series(1, 2000) n"
        )
        before = await rows_read(opened, table)
        assert await forget(opened, old(table), limit=100) == 2000
        assert await rows_read(opened, table) - before < 3 * 2000


async def test_two_at_once_do_not_wait_for_one_another(database: str) -> None:
    async with open_database(database) as opened:
        await opened.execute(
            "INSERT INTO idempotency_keys (tenant, key, request_hash, status, response, created_at) "
            "SELECT 'acme', n, '', 200, '{}', now() - interval '2 days' FROM generate_series(1, 3) n"
        )
        wanted = old("idempotency_keys")
        async with opened.transaction() as tx:
            assert await tx.connection.fetchval(wanted.deletion, wanted.seconds, 2) == 2
            assert await forget(opened, wanted) == 1
        assert await keys(opened) == []


async def test_what_a_run_has_heard_is_known_until_a_week_after_its_end(database: str) -> None:
    async with open_database(database) as opened:
        scheduling = Scheduling(opened)
        await scheduling.tenant()
        workflow = await scheduling.workflow(ONE_JOB)
        over, fresh, waiting = [await scheduling.start(workflow) for _ in range(3)]
        for run in (over, fresh):
            await scheduling.finish(run, "a")
        await opened.execute("UPDATE inbox SET handled_at = now() - interval '8 days'")
        await opened.execute("UPDATE runs SET finished_at = now() - interval '8 days' WHERE id = $1", over)
        await opened.execute("UPDATE events SET sent_at = now() - interval '8 days'")
        before = await opened.fetchval("SELECT count(*) FROM inbox")
        # Who finishes a run in this test does not record it as an event: nothing says whose it is.
        recorded = await opened.fetchval(
            "SELECT count(*) FROM inbox i JOIN events e ON e.id = i.event WHERE e.run = $1", over
        )
        unknown = await opened.fetchval("SELECT count(*) FROM inbox WHERE event NOT IN (SELECT id FROM events)")
        assert (recorded, unknown) == (1, 2)
        assert await forget(opened, old("inbox")) == recorded + unknown
        assert await opened.fetchval("SELECT count(*) FROM inbox") == before - recorded - unknown
        assert await send_again(opened) == 0
        # What is heard once more means nothing to a run that is over.
        told = await scheduling.told(over)
        place: dict[str, Any] = {"tenant": "acme", "run": over, "stage": "s"}
        again = [*told, JobFinished(**place, job="a", attempt=1, state="failed", reason="ExitCode")]
        await scheduling.hear([*again, StageDecided(**place, action="approve", by="ann")])
        assert await scheduling.told(over) == told
        assert await scheduling.state(over) == "succeeded"
        assert await scheduling.state(waiting) != "succeeded"


async def test_services_forget_by_themselves(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "LOOK_EVERY", 0.05)
    async with serving(database, [TRIGGER, CONSOLE, SCHEDULER]) as served:
        acme = await served.tenant("acme")
        await acme.ok("PUT", "/api/v1/workflows/w", WORKFLOW, headers={"Content-Type": "application/yaml"})
        await acme.ok("POST", "/api/v1/workflows/w/runs", {}, headers={"Idempotency-Key": "k"})
        opened = served.host.database
        await opened.execute("INSERT INTO inbox VALUES ('scheduler', gen_random_uuid(), now() - interval '8 days')")
        assert await keys(opened) == ["k"]
        await opened.execute("UPDATE idempotency_keys SET created_at = now() - interval '2 days'")
        async with asyncio.timeout(10):
            while await keys(opened) or await opened.fetchval(
                "SELECT count(*) FROM inbox WHERE handled_at < now() - interval '1 day'"
            ):
                await asyncio.sleep(0.02)
