"""How Hubflow is run while it is measured: a process a service, or all services in one process.

`settings`: environment variables, in lower case and without HUBFLOW_.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from bench.client import Client
from shared.embedded import embedded_s3
from shared.embedded.process import Launch, Server, becomes_ready, tail
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
    log, noted = folder.parent / "one.log", folder / "context.json"

    async def ready() -> bool:
        return noted.exists()

    server = Server.start(Launch(command, log, environment=environment, die_with_parent=signal.SIGKILL))
    try:
        if not await becomes_ready(server, ready, timeout=120):
            raise RuntimeError(f"hubflow dev did not start:\n{tail(log, 20)}")
        context = json.loads(noted.read_text())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as http:
            yield Client(context["url"], context["token"], context["tenant"], http)
    finally:
        await server.end(signal.SIGTERM, patience=60)
