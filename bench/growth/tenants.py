"""Many tenants with quotas, each of which has had a turn and has more work than it may do at once: how long does a newcomer's
first job wait?"""

from __future__ import annotations

import asyncio
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from bench.client import workflow
from bench.growth.place import Place, opened

RUNS_EACH = 4
NEWCOMERS = 10
SENDERS = 64
QUOTA = '{"runs": 2, "jobs": 1}'

_WITHOUT_A_TURN = """
SELECT count(*) FROM tenants t WHERE name LIKE 'tenant-%' AND NOT EXISTS (
    SELECT FROM jobs j WHERE j.tenant = t.name AND j.started_at IS NOT NULL)
"""


async def measure(folder: Path, tenants: int, max_jobs: int) -> dict[str, Any]:
    """With the installation's own limit (HUBFLOW_SCHEDULER_MAX_JOBS), which makes tenants take turns, and with quotas alone."""
    return {
        "tenants": tenants, "max_jobs": max_jobs,
        "with_max_jobs": await _measure(folder / "turns", tenants, max_jobs),
        "with_quotas_alone": await _measure(folder / "quotas", tenants, 0),
    }  # fmt: skip


async def _measure(folder: Path, tenants: int, max_jobs: int) -> dict[str, Any]:
    folder.mkdir()
    async with opened(folder, scheduler_max_jobs=str(max_jobs)) as place:
        names = [f"tenant-{n}" for n in range(tenants)]
        newcomers = [f"newcomer-{n}" for n in range(NEWCOMERS)]
        connection = await asyncpg.connect(place.dsn)
        await connection.execute(
            "INSERT INTO tenants (name, quota) SELECT unnest($1::text[]), $2::jsonb", [*names, *newcomers], QUOTA
        )
        await _each(place, [*names, *newcomers], "PUT", "/workflows/l1", {"source": workflow("l1", 1, serial=False)})
        for _ in range(RUNS_EACH):
            await _each(place, names, "POST", "/workflows/l1/runs", {})
        # Until then all of them are newcomers.
        while await connection.fetchval(_WITHOUT_A_TURN):
            await asyncio.sleep(0.1)
        unfinished = await connection.fetchval("SELECT count(*) FROM runs WHERE finished_at IS NULL")
        # All at once: one after the other, the later ones would find the queue empty.
        waits = await asyncio.gather(*(_first_job(place, name) for name in newcomers))
        await connection.close()
    return {"unfinished": unfinished, "newcomer_s": {"median": statistics.median(waits), "max": max(waits)}}


async def _each(place: Place, tenants: list[str], method: str, path: str, body: dict[str, Any]) -> None:
    waiting = iter(tenants)

    async def send() -> None:
        for tenant in waiting:
            await place.client(tenant).ask(method, path, body)

    await asyncio.gather(*(send() for _ in range(SENDERS)))


async def _first_job(place: Place, tenant: str) -> float:
    """Seconds from the start of the tenant's first run until its job runs."""
    client = place.client(tenant)
    run = (await client.ask("POST", "/workflows/l1/runs", {}))["id"]
    while True:
        view = await client.ask("GET", f"/runs/{run}?wait=30&until=finished")
        if view["finished_at"]:
            [job] = view["stages"][0]["jobs"]
            begin, start = (datetime.fromisoformat(moment) for moment in (view["created_at"], job["started_at"]))
            return (start - begin).total_seconds()
