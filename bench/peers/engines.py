"""The engines that are measured: Hubflow in its two shapes, and each peer with the servers that it needs.

An engine is a function that takes a scenario's name, does it once, and returns the seconds. What it started ends with the
stack that it was given.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.client import Client, workflow
from bench.peers.driver import JOBS, RUNS_AT_ONCE
from bench.peers.environment import program
from bench.shapes import one_process, separate
from shared.embedded.process import Launch, Server, becomes_ready, free_ports, tail
from tests.servers.rabbitmq import RabbitMQ

Ask = Callable[[str], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine is started: its folder, and the servers that it may share. `stack` ends what it starts."""

    folder: Path
    dsn: str
    broker: RabbitMQ
    stack: AsyncExitStack

    async def server(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        ready: Callable[[], Awaitable[bool]],
    ) -> None:
        """A server in the background, once it is ready."""
        log = self.folder / f"{name}.log"
        server = Server.start(
            Launch(command, log, environment={**_plain(), **environment}, die_with_parent=signal.SIGKILL)
        )
        self.stack.push_async_callback(server.end, signal.SIGTERM, patience=20)
        if not await becomes_ready(server, ready, timeout=60):
            raise RuntimeError(f"{name} did not start:\n{tail(log, 20)}")

    async def client(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Ask:
        """A peer's client, which speaks as `driver.serve` does."""
        log = self.stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            env={**_plain(), **environment},
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout
        self.stack.push_async_callback(process.wait)
        self.stack.callback(to.close)

        async def line() -> str:
            async with asyncio.timeout(120):
                said = (await answers.readline()).decode().strip()
            if not said:
                raise RuntimeError(f"the client of {name} ended:\n{tail(self.folder / f'{name}.log', 20)}")
            return said

        async def ask(scenario: str) -> float:
            to.write(f"{scenario}\n".encode())
            return float(await line())

        assert await line() == "ready"
        return ask


# ---------------------------------------------------------------- Hubflow


async def hubflow_separate(place: Place, _: Path) -> Ask:
    client = await place.stack.enter_async_context(separate(place.folder, place.dsn, await place.broker.new_vhost()))
    return await _hubflow(client)


async def hubflow_one_process(place: Place, _: Path) -> Ask:
    return await _hubflow(await place.stack.enter_async_context(one_process(place.folder / "one")))


async def _hubflow(client: Client) -> Ask:
    for name, (jobs, serial) in JOBS.items():
        await client.ask("PUT", f"/workflows/{name.lower()}", {"source": workflow(name.lower(), jobs, serial=serial)})

    async def ask(scenario: str) -> float:
        begin = time.perf_counter()
        if scenario == "T":
            await asyncio.gather(*(client.run("l1") for _ in range(RUNS_AT_ONCE)))
        else:
            await client.run(scenario.lower())
        return time.perf_counter() - begin

    return ask


# ---------------------------------------------------------------- peers


async def celery(place: Place, environment: Path) -> Ask:
    addresses = {
        "PEER_AMQP_URL": await place.broker.new_vhost(),
        "PEER_DATABASE_URL": place.dsn.replace("postgresql:", "postgresql+psycopg2:"),
    }
    worker = [str(environment / "bin" / "celery"), "--app", "bench.peers.celery_peer"]

    async def ready() -> bool:
        asked = await asyncio.create_subprocess_exec(
            *worker, "inspect", "ping", "--timeout", "5", env={**_plain(), **addresses},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await asked.wait() == 0

    await place.server("celery-worker", [*worker, "worker"], addresses, ready)
    return await place.client(
        "celery", [str(environment / "bin" / "python"), "-m", "bench.peers.celery_peer"], addresses
    )


async def temporal(place: Place, environment: Path) -> Ask:
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    program = str(environment / "bin" / "temporal")

    async def says(*command: str) -> dict[str, Any]:
        asked = await asyncio.create_subprocess_exec(
            program, *command, "--address", address, "--output", "json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        said, _ = await asked.communicate()
        answer: dict[str, Any] = json.loads(said) if asked.returncode == 0 else {}
        return answer

    async def serves() -> bool:
        return bool(await says("operator", "namespace", "describe", "default"))

    async def polled() -> bool:
        return bool((await says("task-queue", "describe", "--task-queue", "bench")).get("pollers"))

    command = [program, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
    await place.server("temporal", [*command, "--db-filename", str(place.folder / "temporal.db")], {}, serves)
    peer = [str(environment / "bin" / "python"), "-m", "bench.peers.temporal_peer"]
    await place.server("temporal-worker", [*peer, "worker"], {"PEER_SERVER": address}, polled)
    return await place.client("temporal-client", [*peer, "client"], {"PEER_SERVER": address})


async def restate(place: Place, environment: Path) -> Ask:
    node, ingress, admin, service = free_ports(4)
    server = program(environment, "server/node_modules/@restatedev/restate-server-*/bin/restate-server")
    settings = {
        "RESTATE_BIND_IP": "127.0.0.1", "RESTATE_BIND_PORT": str(node), "RESTATE_INGRESS__BIND_PORT": str(ingress),
        "RESTATE_ADMIN__BIND_PORT": str(admin), "RESTATE_LISTEN_MODE": "tcp", "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "warn",
    }  # fmt: skip
    command = [str(server), "--no-logo", "--node-name", "bench", "--base-dir", str(place.folder / "restate")]
    hypercorn = [
        str(environment / "bin" / "hypercorn"),
        "--bind",
        f"127.0.0.1:{service}",
        "bench.peers.restate_peer:app",
    ]
    async with aiohttp.ClientSession() as http:

        async def healthy(url: str) -> bool:
            try:
                async with http.get(url) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await place.server("restate", command, settings, lambda: healthy(f"http://127.0.0.1:{admin}/health"))
        # Its service speaks to Restate alone: that it answers is seen when it is made known.
        await place.server("restate-service", hypercorn, {}, lambda: _listens(service))
        known = {"uri": f"http://127.0.0.1:{service}"}
        async with http.post(f"http://127.0.0.1:{admin}/deployments", json=known) as answer:
            if answer.status >= 400:
                raise RuntimeError(f"Restate does not take the service: {await answer.text()}")
    python = [str(environment / "bin" / "python"), "-m", "bench.peers.restate_peer"]
    return await place.client("restate-client", python, {"PEER_SERVER": f"http://127.0.0.1:{ingress}"})


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _plain() -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path.cwd()),
    }
