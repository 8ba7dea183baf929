"""A Hubflow of separate processes to measure, and what its processes use, seen from outside (/proc)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from bench.client import Client, migrated, workflow
from shared.embedded import embedded_postgres, embedded_s3
from shared.embedded.process import free_ports
from tests.e2e.system import SERVICES, System, open_system
from tests.servers.rabbitmq import RabbitMQ, started_rabbitmq

TENANT = "acme"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Place:
    """`clients`: one for each replica of the front."""

    folder: Path
    dsn: str
    broker: RabbitMQ
    system: System
    clients: list[Client]
    http: aiohttp.ClientSession

    def client(self, tenant: str = TENANT) -> Client:
        return Client(self.system.url, self.system.token, tenant, self.http)

    async def many(self, runs: int) -> None:
        """So many runs of the workflow `l1` at once, waited for."""
        await asyncio.gather(*(self.clients[n % len(self.clients)].run("l1") for n in range(runs)))


@asynccontextmanager
async def opened(folder: Path, *, replicas: int = 1, preload: str = "", **settings: Any) -> AsyncIterator[Place]:
    """Everything up, with the workflow `l1` of one job. `preload`: a library of PostgreSQL's."""
    if preload:
        await _preload(folder, preload)
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(embedded_postgres(folder, die_with_parent=True))
        broker = await stack.enter_async_context(started_rabbitmq(folder / "rabbitmq"))
        s3 = await stack.enter_async_context(embedded_s3(folder, die_with_parent=True))
        await migrated(dsn)
        amqp = await broker.new_vhost()
        # Four replicas of six processes have to share PostgreSQL's 200 connections.
        system = await stack.enter_async_context(
            open_system(folder, dsn, s3, amqp, log_level="warning", database_connections="7", **settings)
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)))
        urls = [system.url, *[await _replica(system, http) for _ in range(replicas - 1)]]
        await system.ready()
        clients = [Client(url, system.token, TENANT, http) for url in urls]
        await clients[0].ask("PUT", "/workflows/l1", {"source": workflow("l1", 1, serial=False)})
        yield Place(folder, dsn, broker, system, clients, http)


async def _replica(system: System, http: aiohttp.ClientSession) -> str:
    """One more process of every service; returns the address of its front."""
    for name in SERVICES[2:]:
        system.start(name)
    [port] = free_ports(1)
    system.start("front", http_port=str(port))
    await answers(http, f"http://127.0.0.1:{port}/readyz")
    return f"http://127.0.0.1:{port}"


async def answers(http: aiohttp.ClientSession, url: str, pause: float = 0.05) -> None:
    """Return once it answers 200."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with http.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(pause)


async def _preload(folder: Path, library: str) -> None:
    async with embedded_postgres(folder, die_with_parent=True) as dsn:
        connection = await asyncpg.connect(dsn)
        await connection.execute(f"ALTER SYSTEM SET shared_preload_libraries = {library}")
        await connection.close()


def end_in_order() -> None:
    """From within the main task: TERM ends it as Ctrl-C does, and with it what it has started. Services outlive a parent."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


# ---------------------------------------------------------------- processes


@dataclass(frozen=True, slots=True)
class Used:
    """By what a process is: seconds of processor time so far, and resident bytes now."""

    cpu: Mapping[str, float]
    resident: Counter[str]


def used() -> Used:
    """Of this process (the client) and everything below it."""
    cpu: dict[str, float] = defaultdict(float)
    resident = Counter[str]()
    for pid in _below(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            name = _name(pid, Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"))
        except OSError:
            continue
        own, children = (sum(int(tick) for tick in fields[place : place + 2]) / _TICKS for place in (11, 13))
        cpu[name] += own
        resident[name] += int(fields[21]) * _PAGE
        if name == "executor":
            cpu["wrappers and jobs"] += children
        elif name == "postgresql":
            cpu[name] += children
    return Used(cpu, resident)


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _below(root: int) -> list[int]:
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def _name(pid: int, command: list[str]) -> str:
    if pid == os.getpid():
        return "client"
    if "serve" in command:
        return " and ".join(word for word in command[command.index("serve") + 1 :] if word)
    for word, name in (("postgres", "postgresql"), ("beam.smp", "rabbitmq"), ("weed", "s3")):
        if word in command[0]:
            return name
    return "others"
