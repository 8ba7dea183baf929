"""A whole Hubflow in separate processes over real RabbitMQ, PostgreSQL and S3, whose processes a test can kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from shared.auth import SCOPES, token_hash
from shared.clock import new_id
from shared.db.database import open_database
from shared.embedded import S3Address
from shared.embedded.process import free_ports
from shared.vault import new_key, new_token

SERVICES = ("trigger", "console", "scheduler", "executor", "status_watcher", "log_collector", "notifier")
FRONT = ("trigger", "console")
"""They share a process and its port, as behind one ingress."""
READY_WITHIN = 60.0


class System:
    """Start with `open_system`. `api` speaks as an operator for the tenant `acme`."""

    def __init__(
        self, folder: Path, environment: dict[str, str], port: int, token: str, http: aiohttp.ClientSession
    ) -> None:
        self.folder = folder
        self.environment = environment
        self.url = f"http://127.0.0.1:{port}"
        self.token = token
        self._port = port
        self._http = http
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}

    # ------------------------------------------------------------ processes

    def start(self, name: str, tree: Path | None = None, **settings: str) -> None:
        """One more process of a service ("front": trigger and console), with settings of its own, as in `open_system`.
        `tree`: the code of another version."""
        services = FRONT if name == "front" else (name,)
        port = self._port if name == "front" else free_ports(1)[0]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "serve", *services],
                env={**self.environment, "HUBFLOW_HTTP_PORT": str(port), **_variables(settings)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=tree,
            )  # fmt: skip
        process.hubflow_port = port  # type: ignore[attr-defined]
        self._processes.setdefault(name, []).append(process)

    def kill(self, name: str) -> None:
        """kill -9 of all processes of a service."""
        for process in self._processes.pop(name, []):
            process.send_signal(signal.SIGKILL)
            process.wait()

    def stop(self, name: str) -> list[int]:
        """TERM, and the exit codes."""
        processes = self._processes.pop(name, [])
        for process in processes:
            process.send_signal(signal.SIGTERM)
        return [process.wait(30) for process in processes]

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def processes(self, name: str) -> list[subprocess.Popen[bytes]]:
        """Those that run now."""
        return list(self._processes[name])

    async def end(self, name: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """TERM for some processes of a service; they end in order."""
        for process in processes:
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0, self.log(name)[-4000:]
            self._processes[name].remove(process)

    def exit_code(self, name: str) -> int | None:
        """Of a service that has one process; None while it lives."""
        [process] = self._processes[name]
        return process.poll()

    async def ready(self, *, dying: bool = False) -> None:
        """Wait until every process says that it is ready (or has died, if it may)."""
        async with asyncio.timeout(READY_WITHIN):
            for name, processes in self._processes.items():
                for process in processes:
                    await self._ready(name, process, dying)

    async def _ready(self, name: str, process: subprocess.Popen[bytes], dying: bool) -> None:
        url = f"http://127.0.0.1:{process.hubflow_port}/readyz"  # type: ignore[attr-defined]
        while True:
            if process.poll() is not None:
                if dying:
                    return
                raise AssertionError(f"{name} ended with {process.returncode}:\n{self.log(name)[-4000:]}")
            try:
                async with self._http.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)  # another process: its door is all there is to wait on

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # ------------------------------------------------------------ the API

    async def api(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The JSON (or text) of a successful answer; an AssertionError with the problem document of any other."""
        status, answer = await self.ask(method, path, body, **options)
        assert status < 400, f"{method} {path}: {status} {answer}"
        return answer

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Any:
        sent = {"Authorization": f"Bearer {self.token}", "Hubflow-Tenant": "acme", **(headers or {})}
        async with self._http.request(method, f"{self.url}{path}", json=body, headers=sent, **options) as response:
            if "json" in response.content_type:
                return response.status, await response.json()
            return response.status, await response.text()

    async def apply(self, source: str) -> str:
        name = next(line.split(":", 1)[1].strip() for line in source.splitlines() if line.startswith("name:"))
        await self.api("PUT", f"/api/v1/workflows/{name}", {"source": source})
        return name

    async def start_run(self, workflow: str, **inputs: Any) -> str:
        return str((await self.api("POST", f"/api/v1/workflows/{workflow}/runs", {"inputs": inputs}))["id"])

    async def wait(self, run: str, until: str = "finished", seconds: float = 60) -> Any:
        """The run once it is over (or paused)."""
        async with asyncio.timeout(seconds):
            while True:
                status, view = await self.ask("GET", f"/api/v1/runs/{run}?wait=10&until={until}")
                if status == 200 and (view["finished_at"] or (until == "paused" and view["state"] == "paused")):
                    return view
                if status >= 500 or status == 200:
                    await asyncio.sleep(0.05)
                    continue
                raise AssertionError(f"{status} {view}")

    async def log_of(self, run: str, job: str, seconds: float = 30) -> str:
        """The whole log of a job, once it is stored."""
        text = await self.api(
            "GET", f"/api/v1/runs/{run}/jobs/{job}/log?follow=true", timeout=aiohttp.ClientTimeout(seconds)
        )
        return str(text)


@asynccontextmanager
async def open_system(
    folder: Path, database: str, s3: S3Address, amqp_url: str, *, start: bool = True, **settings: str
) -> AsyncIterator[System]:
    """Everything ready, with a tenant and a token. `settings`: HUBFLOW_* (without the prefix, in lower case)."""
    [port] = free_ports(1)
    token = new_token()
    async with open_database(database) as opened:
        await opened.execute("INSERT INTO tenants (name) VALUES ('acme') ON CONFLICT DO NOTHING")
        await opened.execute(
            "INSERT INTO tokens (id, name, hash, scopes) VALUES ($1, 'operator', $2, $3)",
            new_id(),
            token_hash(token),
            list(SCOPES),
        )
    environment = {
        "PATH": os.environ["PATH"], "HUBFLOW_DATABASE_URL": database, "HUBFLOW_AMQP_URL": amqp_url,
        "HUBFLOW_SECRET_KEY": new_key(), "HUBFLOW_S3_ENDPOINT": s3.endpoint, "HUBFLOW_S3_ACCESS_KEY": s3.access_key,
        "HUBFLOW_S3_SECRET_KEY": s3.secret_key, "HUBFLOW_S3_REGION": s3.region,
        "HUBFLOW_S3_BUCKET": f"test-{uuid.uuid4().hex[:12]}",
        "HUBFLOW_RUNTIME_KIND": "process", "HUBFLOW_RUNTIME_PROCESS_ROOT": str(folder / "jobs"),
        "HUBFLOW_RUNTIME_INSTALLATION": f"test-{uuid.uuid4().hex[:8]}", "HUBFLOW_ALLOW_PRIVATE_TARGETS": "true",
        "HUBFLOW_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "HUBFLOW_RUNTIME_SEARCH_PATH": os.environ["PATH"], "HUBFLOW_LOG_LEVEL": "info",
        **_variables(settings),
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        system = System(folder, environment, port, token, http)
        names = ["front", *(name for name in SERVICES if name not in FRONT)]
        stack.callback(lambda: [system.kill(name) for name in names])
        if start:
            for name in names:
                system.start(name)
            await system.ready()
        yield system


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"HUBFLOW_{name.upper()}": value for name, value in settings.items()}
