"""What a database that already holds many finished runs costs: one run, and the pages that people look at."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from bench.client import Client, timed
from bench.growth.past import fill
from bench.growth.place import Place, opened
from bench.main_line import commit_ms

ROUGHLY_A_PAGE = 60
TURNS = 4
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
    """Two systems side by side, asked in turn, so that a busy minute of the machine falls on both."""
    for name in ("empty", "full"):
        (folder / name).mkdir()
    async with opened(folder / "empty") as empty, opened(folder / "full") as full:
        # As many runs as a page has, so that the empty database answers no less than the full one.
        await fill(empty, ROUGHLY_A_PAGE)
        begin = time.perf_counter()
        await fill(full, runs)
        filled = time.perf_counter() - begin
        figures: dict[str, list[dict[str, float]]] = {"empty": [], "full": []}
        for _ in range(TURNS):
            for name, place in (("empty", empty), ("full", full)):
                figures[name].append(await _figures(place, rounds))
        about = await _size(full)
    medians = {
        f"{name}_ms": {each: round(statistics.median(turn[each] for turn in turns), 2) for each in turns[0]}
        for name, turns in figures.items()
    }
    ratio = {each: round(medians["full_ms"][each] / value, 2) for each, value in medians["empty_ms"].items()}
    return {**about, "filled_s": round(filled), **medians, "ratio": ratio, "load": os.getloadavg()[0]}


async def _size(place: Place) -> dict[str, Any]:
    connection = await asyncpg.connect(place.dsn)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM jobs) AS jobs, "
            "(SELECT count(*) FROM events) AS events, pg_database_size(current_database()) AS bytes"
        )
    finally:
        await connection.close()
    return dict(row)


async def _figures(place: Place, rounds: int) -> dict[str, float]:
    """Milliseconds, medians."""
    client = place.clients[0]
    figures = {"commit (floor)": await commit_ms(place.dsn, rounds * 5)}
    figures["L1"] = await _ms(lambda: client.run("l1"), rounds)
    for name, path in PAGES.items():
        figures[name] = await _ms(lambda path=path: client.ask("GET", path), rounds)  # type: ignore[misc]
    run = (await client.ask("GET", "/runs?limit=1&workflow=build"))["items"][0]["id"]
    figures["a run"] = await _ms(lambda: client.ask("GET", f"/runs/{run}"), rounds)
    figures["its events"] = await _ms(lambda: client.ask("GET", f"/runs/{run}/events"), rounds)
    figures["cancel, and look at it"] = await _ms(lambda: _cancelled(client), max(3, rounds // 4))
    return figures


async def _cancelled(client: Client) -> None:
    run = (await client.ask("POST", "/workflows/l1/runs", {}))["id"]
    await client.ask("POST", f"/runs/{run}/cancel", {})
    await client.ask("GET", f"/runs/{run}?wait=30&until=finished")


async def _ms(work: Callable[[], Awaitable[Any]], rounds: int) -> float:
    return 1e3 * statistics.median(await timed(work, rounds))
