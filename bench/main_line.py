"""How quick the main line is: one run, ten jobs in a row, a hundred at once, two hundred runs at once.

    python -m bench.main_line [--rounds N] [--shape separate|one_process|docker] [--output build/bench.json]

Everything is real and durable: PostgreSQL with fsync, RabbitMQ with quorum queues (shape `separate`: six processes), the
process runtime with CommandWrapper, logs and outcomes stored. What the Docker runtime adds to a container is in `docker.py`.
The floors are measured in the same run: what one commit, one message and one process cost on this machine at this moment.
Quote medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import asyncpg

from bench import docker
from bench.client import Client, migrated, timed, workflow
from bench.shapes import one_process, separate
from shared.bus.amqp import open_amqp_bus
from shared.bus.protocol import Consumer, Message
from shared.embedded import embedded_postgres
from tests.servers import missing
from tests.servers.rabbitmq import started_rabbitmq

SHAPES = ["separate", "one_process", "docker"]


async def measure(client: Client, rounds: int) -> dict[str, float]:
    for name, jobs, serial in (("l1", 1, False), ("l10", 10, True), ("f100", 100, False)):
        await client.ask("PUT", f"/workflows/{name}", {"source": workflow(name, jobs, serial=serial)})

    async def two_hundred() -> None:
        await asyncio.gather(*(client.run("l1") for _ in range(200)))

    few = max(3, rounds // 5)
    l1 = statistics.median(await timed(lambda: client.run("l1"), rounds * 2))
    l10 = statistics.median(await timed(lambda: client.run("l10"), rounds))
    f100 = statistics.median(await timed(lambda: client.run("f100"), few))
    many = statistics.median(await timed(two_hundred, few))
    return {"L1_ms": l1 * 1e3, "L10_ms": l10 * 1e3, "F100_s": f100, "T_runs_per_s": 200 / many}


# ---------------------------------------------------------------- floors


async def floors(dsn: str, amqp_url: str, rounds: int) -> dict[str, float]:
    return {
        "commit_ms": await commit_ms(dsn, rounds * 10),
        "message_ms": await message_ms(amqp_url, rounds * 10),
        "spawn_ms": spawn_ms(rounds * 10),
    }


async def commit_ms(dsn: str, rounds: int) -> float:
    """One statement that commits by itself."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS bench_floor (n int)")
        return 1e3 * statistics.median(
            await timed(lambda: connection.execute("INSERT INTO bench_floor VALUES (1)"), rounds)
        )
    finally:
        await connection.close()


async def message_ms(amqp_url: str, rounds: int) -> float:
    """From publish to delivery, through a quorum queue."""
    bus = await open_amqp_bus(amqp_url)
    came = asyncio.Event()

    async def hear(_: Message) -> None:
        came.set()

    async def once() -> None:
        came.clear()
        bus.publish(Message(uuid.uuid4(), "bench.floor", b"x"))
        await came.wait()

    try:
        await bus.consume(Consumer("bench", ["bench.floor"], hear))
        return 1e3 * statistics.median(await timed(once, rounds))
    finally:
        await bus.close()


def spawn_ms(rounds: int) -> float:
    """A process that does nothing, waited for."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


async def main(rounds: int, shapes: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}"}
    with tempfile.TemporaryDirectory(prefix="hubflow-bench-") as name:
        folder = Path(name)
        async with (
            embedded_postgres(folder, die_with_parent=True) as dsn,
            started_rabbitmq(folder / "rabbitmq") as broker,
        ):
            result["floors"] = await floors(dsn, await broker.new_vhost(), rounds)
            if "separate" in shapes:
                await migrated(dsn)
                async with separate(folder, dsn, await broker.new_vhost()) as client:
                    result |= await measure(client, rounds)
            if "docker" in shapes:
                if reason := missing("dockerd", "containerd", "runc", "ip"):
                    print(f"bench: !!! no figures of the Docker runtime: {reason}", file=sys.stderr)
                else:
                    await migrated(dsn)
                    result["docker"] = await docker.measure(folder, dsn, await broker.new_vhost(), rounds)
        if "one_process" in shapes:
            async with one_process(folder / "one") as client:
                result["one_process"] = await measure(client, rounds)
    return result


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--shape", action="append", choices=SHAPES)
    arguments.add_argument("--output", type=Path, default=Path("build/bench.json"))
    given = arguments.parse_args()
    figures = asyncio.run(main(given.rounds, given.shape or SHAPES))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
