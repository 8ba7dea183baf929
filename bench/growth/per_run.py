"""What one run of one job costs while 200 run at once: commits, round trips, events, bytes on the bus, processor time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg

from bench.growth.place import Place, opened, used

AT_ONCE = 200
COUNTS_ARE_LATE = 6.0
"""Seconds: RabbitMQ gathers its counts every five, PostgreSQL's connections hand theirs over within one."""


async def measure(folder: Path, rounds: int) -> dict[str, Any]:
    async with opened(folder, preload="pg_stat_statements") as place:
        connection = await asyncpg.connect(place.dsn)
        await connection.execute("CREATE EXTENSION pg_stat_statements")
        await place.many(AT_ONCE)
        before = await _counts(connection, place)
        cpu = used().cpu
        for _ in range(rounds):
            await place.many(AT_ONCE)
        spent = used().cpu
        after = await _counts(connection, place)
        await connection.close()
    runs = rounds * AT_ONCE
    by_process = {name: round((spent[name] - cpu.get(name, 0)) * 1e3 / runs, 2) for name in spent}
    return {
        **{name: round((after[name] - before[name]) / runs, 2) for name in after},
        "cpu_ms": {"all": round(sum(by_process.values()), 1), **by_process},
    }


async def _counts(connection: asyncpg.Connection, place: Place) -> Mapping[str, float]:
    # What services still do after a run is over belongs to it; and nothing tells when a count is up to date.
    await asyncio.sleep(COUNTS_ARE_LATE)
    row = await connection.fetchrow(
        "SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS commits, "
        "(SELECT sum(calls) FROM pg_stat_statements WHERE toplevel) AS round_trips, "
        "(SELECT count(*) FROM events) AS events"
    )
    connections = await place.broker.api("GET", "connections")
    return {
        **{name: float(value) for name, value in row.items()},
        "bus_bytes_in": float(sum(each["recv_oct"] for each in connections)),
        "bus_bytes_out": float(sum(each["send_oct"] for each in connections)),
    }
