"""How Hubflow is run while it is measured: a process a service, or all services in one process.

`settings`: environment variables, in lower case and without HUBFLOW_.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from bench.client import Client
from shared.embedded import embedded_s3
from tests.e2e.system import open_system


@asynccontextmanager
async def separate(folder: Path, dsn: str, amqp_url: str, **settings: str) -> AsyncIterator[Client]:
    """Each service a process of its own, over RabbitMQ."""
    async with AsyncExitStack() as stack:
        s3 = await stack.enter_async_context(embedded_s3(folder, die_with_parent=True))
        system = await stack.enter_async_context(
            open_system(folder, dsn, s3, amqp_url, log_level="warning", migrate="true", **settings)
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)))
        yield Client(system.url, system.token, "acme", http)


@asynccontextmanager
async def one_process(folder: Path, runtime: str = "process", **settings: str) -> AsyncIterator[Client]:
    """All services in one process, on the in-process bus: the laptop's case. The client is another process, as a user's is."""
    command = [sys.executable, "-m", "cli.main", "dev", "--state", str(folder), "--runtime", runtime]
    environment = {**os.environ, "HUBFLOW_LOG_LEVEL": "warning"} | {
        f"HUBFLOW_{key.upper()}": value for key, value in settings.items()
    }
    with (folder.parent / "one.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        context = await _context(folder / "context.json", process, folder.parent / "one.log")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as http:
            yield Client(context["url"], context["token"], context["tenant"], http)
    finally:
        process.terminate()
        process.wait(60)


async def _context(path: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    async with asyncio.timeout(120):
        while not path.exists():
            if process.poll() is not None:
                raise RuntimeError(f"hubflow dev ended:\n{log.read_text()}")
            await asyncio.sleep(0.05)
    context: dict[str, str] = json.loads(path.read_text())
    return context
