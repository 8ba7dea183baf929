"""A long queue: how quickly runs are taken in, how long until all are over, and what memory it takes meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg

from bench.growth.place import Place, opened, used

SENDERS = 64
_NOT_TOLD = {"client", "others", "postgresql"}
"""PostgreSQL's processes share memory, which each would count."""


async def measure(folder: Path, runs: int) -> dict[str, Any]:
    async with opened(folder) as place:
        await place.many(100)
        before = used().resident
        most: Counter[str] = Counter()
        watcher = asyncio.create_task(_watch_memory(most))
        begin = time.perf_counter()
        await _take_in(place, runs)
        intake = time.perf_counter() - begin
        waiting = await _drain(place)
        drained = time.perf_counter() - begin
        watcher.cancel()
        after = used().resident
    return {
        "runs": runs, "intake_per_s": runs / intake, "unfinished_after_intake": waiting,
        "drain_s": drained - intake, "runs_per_s": runs / drained,
        "resident_mb": {
            name: {"before": _mb(before[name]), "most": _mb(most[name]), "after": _mb(after[name])}
            for name in sorted(most) if name not in _NOT_TOLD
        },
    }  # fmt: skip


async def _take_in(place: Place, runs: int) -> None:
    """By many senders, each of which waits for its answer."""
    numbers = iter(range(runs))

    async def send() -> None:
        for _ in numbers:
            await place.clients[0].ask("POST", "/workflows/l1/runs", {})

    await asyncio.gather(*(send() for _ in range(SENDERS)))


async def _drain(place: Place) -> int:
    """Wait until all are over; returns how many were not when it began. A run that did not succeed is an error."""
    connection = await asyncpg.connect(place.dsn)
    try:
        count = "SELECT count(*) FROM runs WHERE finished_at IS NULL"
        first = left = await connection.fetchval(count)
        while left:
            await asyncio.sleep(0.25)
            left = await connection.fetchval(count)
        bad = await connection.fetchval("SELECT count(*) FROM runs WHERE state <> 'succeeded'")
        if bad:
            raise RuntimeError(f"{bad} runs did not succeed")
        return int(first)
    finally:
        await connection.close()


async def _watch_memory(most: Counter[str]) -> None:
    while True:
        most |= used().resident
        await asyncio.sleep(1)


def _mb(count: int) -> float:
    return round(count / 1e6, 1)
