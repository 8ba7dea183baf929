"""What a database that already holds many finished runs costs: one run, and the pages that people look at."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from bench.growth.past import fill
from bench.growth.place import Place, opened
from bench.main_line import Client, commit_ms, timed

PAGES = {
    "runs": "/runs?limit=50",
    "runs of a workflow": "/runs?limit=50&workflow=broken",
    "runs that failed": "/runs?limit=50&state=failed",
    "runs in a state that none has": "/runs?limit=50&state=timed_out",
    "runs that are active": "/runs?limit=50&state=active",
    "workflows": "/workflows",
    "audit": "/audit?limit=50",
    "deliveries": "/deliveries?limit=50",
}


async def measure(folder: Path, runs: int, rounds: int) -> dict[str, Any]:
    async with opened(folder) as place:
        # As many runs as a page has, so that an empty database answers no less than a full one.
        await place.many(60)
        await fill(place, 60)
        empty = await _figures(place, rounds)
        begin = time.perf_counter()
        await fill(place, runs)
        filled = time.perf_counter() - begin
        full = await _figures(place, rounds)
        connection = await asyncpg.connect(place.dsn)
        size = await connection.fetchval("SELECT pg_database_size(current_database())")
        counts = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM jobs) AS jobs, "
            "(SELECT count(*) FROM events) AS events"
        )
        await connection.close()
    ratios = {name: round(full[name] / empty[name], 2) for name in empty}
    return {
        "rows": dict(counts), "database_gb": round(size / 1e9, 2), "filled_s": round(filled),
        "empty_ms": empty, "full_ms": full, "ratio": ratios, "load": os.getloadavg()[0],
    }  # fmt: skip


async def _figures(place: Place, rounds: int) -> dict[str, float]:
    """Milliseconds, medians."""
    client = place.clients[0]
    figures = {"commit (floor)": await commit_ms(place.dsn, rounds * 5)}
    figures["L1"] = await _ms(lambda: client.run("l1"), rounds * 2)
    for name, path in PAGES.items():
        figures[name] = await _ms(lambda path=path: client.ask("GET", path), rounds)  # type: ignore[misc]
    run = (await client.ask("GET", "/runs?limit=1&workflow=build"))["items"][0]["id"]
    figures["a run"] = await _ms(lambda: client.ask("GET", f"/runs/{run}"), rounds)
    figures["its events"] = await _ms(lambda: client.ask("GET", f"/runs/{run}/events"), rounds)
    figures["cancel, and look at it"] = await _ms(lambda: _cancelled(client), max(3, rounds // 4))
    return {name: round(figure, 2) for name, figure in figures.items()}


async def _cancelled(client: Client) -> None:
    run = (await client.ask("POST", "/workflows/l1/runs", {}))["id"]
    await client.ask("POST", f"/runs/{run}/cancel", {})
    await client.ask("GET", f"/runs/{run}?wait=30&until=finished")


async def _ms(work: Callable[[], Awaitable[Any]], rounds: int) -> float:
    return 1e3 * statistics.median(await timed(work, rounds))
