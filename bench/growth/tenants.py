"""Many tenants with quotas, each with more work than it may do at once: how long does a newcomer's first job wait?"""

from __future__ import annotations

import asyncio
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from bench.growth.place import Place, opened
from bench.main_line import workflow

RUNS_EACH = 3
NEWCOMERS = 10
SENDERS = 64
QUOTA = '{"runs": 2, "jobs": 1}'


async def measure(folder: Path, tenants: int, max_jobs: int) -> dict[str, Any]:
    """`max_jobs`: the installation's own limit, as HUBFLOW_SCHEDULER_MAX_JOBS; 0: only the quotas hold."""
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
        count = "SELECT count(*) FROM runs WHERE finished_at IS NULL"
        unfinished = await connection.fetchval(count)
        # All at once: one after the other, the later ones would find the queue empty.
        waits = await asyncio.gather(*(_first_job(place, name) for name in newcomers))
        await connection.close()
    return {
        "tenants": tenants, "max_jobs": max_jobs, "unfinished": unfinished,
        "newcomer_s": {"median": statistics.median(waits), "max": max(waits)},
    }  # fmt: skip


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
