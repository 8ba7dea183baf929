"""What Hubflow adds to a container of a Docker engine: part of `make bench` where an engine can be started (root).

The floor, in the same run and in turn: the engine's own create, start and wait for the same image and the same `sh -c :`,
without CommandWrapper, log or outcome. Removing is not counted on either side. Jobs per second: so many at once.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.client import Client, workflow
from shared.embedded import embedded_s3
from shared.runtime.engine import Engine
from tests.e2e.system import open_system
from tests.servers.dockerd import Dockerd, started_dockerd
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
    async with started_dockerd(folder / "dockerd") as dockerd:
        await dockerd.load(write_archive(folder / "images.tar", TEST_IMAGES))
        bare = Bare(dockerd.url)
        try:
            async with _hubflow(folder, dsn, amqp_url, dockerd) as client:
                return await _compare(bare, client, rounds)
        finally:
            await bare.close()


async def _compare(bare: Bare, client: Client, rounds: int) -> dict[str, Any]:
    engine_ms, job_ms, rates = [], [], []
    engine_rates: dict[int, list[float]] = {each: [] for each in CREATORS}
    await bare.one()
    await client.run("one")
    for _ in range(rounds):
        engine_ms.append(1e3 * await _seconds(bare.one()))
        job_ms.append(1e3 * await _seconds(client.run("one")))
    for _ in range(max(2, rounds // 5)):
        for creators in CREATORS:
            engine_rates[creators].append(AT_ONCE / await _seconds(bare.many(AT_ONCE, creators)))
            await bare.tidy()
        rates.append(AT_ONCE / await _seconds(asyncio.gather(*(client.run("one") for _ in range(AT_ONCE)))))
    floor, rate = statistics.median(engine_ms), max(statistics.median(each) for each in engine_rates.values())
    return {
        "engine_ms": floor,
        "job_ms": statistics.median(job_ms),
        "job_overhead_ms": statistics.median(job_ms) - floor,
        "engine_jobs_per_s": rate,
        "jobs_per_s": statistics.median(rates),
        "share_of_engine": statistics.median(rates) / rate,
    }


async def _seconds(work: Awaitable[Any]) -> float:
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin


@asynccontextmanager
async def _hubflow(folder: Path, dsn: str, amqp_url: str, dockerd: Dockerd) -> AsyncIterator[Client]:
    """Each service a process of its own; containers fetch and store nothing, so that they need no S3 of theirs."""
    place = folder / "docker"
    place.mkdir()
    async with AsyncExitStack() as stack:
        s3 = await stack.enter_async_context(embedded_s3(place, die_with_parent=True))
        settings = {"runtime_kind": "docker", "runtime_docker_host": dockerd.url, "runtime_default_image": IMAGE}
        system = await stack.enter_async_context(
            open_system(place, dsn, s3, amqp_url, log_level="warning", migrate="true", **settings)
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)))
        client = Client(system.url, system.token, "acme", http)
        await client.ask("PUT", "/workflows/one", {"source": workflow("one", 1, serial=False)})
        yield client
