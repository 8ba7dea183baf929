"""What Hubflow adds to a container of a Docker engine: part of `make bench` where an engine can be started (root).

The floor, in the same run and in turn: the engine's own create, start and wait for the same image and the same `sh -c :`,
without CommandWrapper, log or outcome. Removing is not counted on either side. Jobs per second: so many at once.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.client import Client, workflow
from bench.shapes import one_process, separate
from shared.runtime.engine import Engine
from tests.servers.dockerd import started_dockerd
from tests.servers.images import TEST_IMAGES, write_archive

IMAGE = "hubflow-test/busybox:latest"
AT_ONCE = 40
"""Jobs of one measurement of jobs per second."""
CREATORS = (4, 8, 16)
"""The engine alone is asked by so many at a time, and the best counts: it is not quickest when it has all at once."""


class Bare:
    """The engine and nothing else."""

    def __init__(self, url: str) -> None:
        self._engine = Engine(url)
        self._made: list[str] = []

    async def one(self) -> None:
        body = {"Image": IMAGE, "Cmd": ["sh", "-c", ":"]}
        identity = (await self._engine.call("POST", "/containers/create", body=body))["Id"]
        self._made.append(identity)
        await self._engine.call("POST", f"/containers/{identity}/start")
        if (await self._engine.call("POST", f"/containers/{identity}/wait"))["StatusCode"] != 0:
            raise RuntimeError(f"container {identity} failed")

    async def many(self, count: int, creators: int) -> None:
        gate = asyncio.Semaphore(creators)

        async def one() -> None:
            async with gate:
                await self.one()

        await asyncio.gather(*(one() for _ in range(count)))

    async def tidy(self) -> None:
        """Remove what was made; counts for nobody."""
        made, self._made = self._made, []
        for identity in made:
            await self._engine.call("DELETE", f"/containers/{identity}", query={"force": "1"})

    async def close(self) -> None:
        await self._engine.close()


async def measure(folder: Path, dsn: str, amqp_url: str, rounds: int) -> dict[str, Any]:
    """The key `docker` of build/bench.json."""
    place = folder / "docker"
    place.mkdir()
    async with AsyncExitStack() as stack:
        dockerd = await stack.enter_async_context(started_dockerd(folder / "dockerd"))
        await dockerd.load(write_archive(folder / "images.tar", TEST_IMAGES))
        settings = {"runtime_docker_host": dockerd.url, "runtime_default_image": IMAGE}
        shapes = {
            "separate": separate(place, dsn, amqp_url, runtime_kind="docker", **settings),
            "one_process": one_process(place / "one", "docker", **settings),
        }
        clients = {name: await stack.enter_async_context(shape) for name, shape in shapes.items()}
        for client in clients.values():
            await client.ask("PUT", "/workflows/one", {"source": workflow("one", 1, serial=False)})
        bare = Bare(dockerd.url)
        stack.push_async_callback(bare.close)
        return await _compare(bare, clients, rounds)


async def _compare(bare: Bare, clients: Mapping[str, Client], rounds: int) -> dict[str, Any]:
    engine_ms: list[float] = []
    engine_rates: dict[int, list[float]] = {each: [] for each in CREATORS}
    job_ms: dict[str, list[float]] = {each: [] for each in clients}
    rates: dict[str, list[float]] = {each: [] for each in clients}
    await bare.one()
    for client in clients.values():
        await client.run("one")
    for _ in range(rounds):
        engine_ms.append(1e3 * await _seconds(bare.one()))
        for name, client in clients.items():
            job_ms[name].append(1e3 * await _seconds(client.run("one")))
    for _ in range(max(2, rounds // 5)):
        for creators in CREATORS:
            engine_rates[creators].append(AT_ONCE / await _seconds(bare.many(AT_ONCE, creators)))
            await bare.tidy()
        for name, client in clients.items():
            rates[name].append(AT_ONCE / await _seconds(asyncio.gather(*(client.run("one") for _ in range(AT_ONCE)))))
    floor, rate = statistics.median(engine_ms), max(statistics.median(each) for each in engine_rates.values())
    figures: dict[str, Any] = {"engine_ms": floor, "engine_jobs_per_s": rate}
    for name in clients:
        figures[name] = {
            "job_ms": statistics.median(job_ms[name]),
            "job_overhead_ms": statistics.median(job_ms[name]) - floor,
            "jobs_per_s": statistics.median(rates[name]),
            "share_of_engine": statistics.median(rates[name]) / rate,
        }
    return figures


async def _seconds(work: Awaitable[Any]) -> float:
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin
