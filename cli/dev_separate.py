"""`hubflow dev --separate`: every service in a process of its own, as on a cluster, with RabbitMQ between them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.embedded.process import Launch, free_ports
from shared.errors import TemporaryError

READY_WITHIN = 120.0
"""Seconds that all services have to become ready."""
END_WITHIN = 30.0
"""Seconds to end after TERM, before KILL."""
FRONT = ("trigger", "console")
"""What answers at the public address: one process, because it is one address."""


@dataclass(frozen=True, slots=True)
class _Child:
    names: tuple[str, ...]
    port: int
    process: asyncio.subprocess.Process

    @property
    def title(self) -> str:
        return " ".join(self.names)


@asynccontextmanager
async def open_separate(
    services: Sequence[str], environment: Mapping[str, str], state: Path
) -> AsyncIterator[asyncio.Task[None]]:
    """Start the services as processes. The task ends, with TemporaryError, as soon as one of them ends."""
    front = tuple(name for name in services if name in FRONT)
    groups = [*([front] if front else []), *((name,) for name in services if name not in FRONT)]
    ports = [int(environment["HUBFLOW_HTTP_PORT"]), *free_ports(len(groups) - 1)] if front else free_ports(len(groups))
    children: list[_Child] = []
    try:
        for names, port in zip(groups, ports, strict=True):
            children.append(await _spawn(names, port, environment, state))
        watch = asyncio.create_task(_first_end(children), name="hubflow services")
        await _all_ready(children, watch)
        try:
            yield watch
        finally:
            watch.cancel()
    finally:
        await asyncio.gather(*(_end(child) for child in children))


async def _spawn(names: tuple[str, ...], port: int, environment: Mapping[str, str], state: Path) -> _Child:
    own = {**environment, "HUBFLOW_HTTP_PORT": str(port)}
    log_path = state / "services.log"
    command = [sys.executable, "-m", "cli.main", "serve", *names]
    # Not even a killed `hubflow dev` may leave services behind that nobody stops.
    launch = Launch(command, log_path, die_with_parent=signal.SIGTERM)
    with log_path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *launch.arguments(), env=own, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    return _Child(names, port, process)


async def _first_end(children: Sequence[_Child]) -> None:
    waits = {asyncio.create_task(child.process.wait()): child for child in children}
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    ended = waits[done.pop()]
    raise TemporaryError(
        f"the process of {ended.title} ended with exit code {ended.process.returncode}; services.log tells why"
    )


async def _all_ready(children: Sequence[_Child], watch: asyncio.Task[None]) -> None:
    """Return when every process says that it is ready. Raises TemporaryError if one ends first, or after READY_WITHIN."""
    ready = asyncio.gather(*(_ready(child) for child in children))
    try:
        async with asyncio.timeout(READY_WITHIN):
            waits: list[asyncio.Future[Any]] = [ready, watch]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        raise TemporaryError(f"the services were not ready within {READY_WITHIN:.0f} s; see services.log") from None
    finally:
        ready.cancel()
    if watch.done():
        watch.result()


async def _ready(child: _Child) -> None:
    pause = 0.05
    while not await _answers(child.port):
        await asyncio.sleep(pause)  # another process: there is nothing to wait on but its door
        pause = min(pause * 1.5, 0.5)


async def _answers(port: int) -> bool:
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            line = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in line


async def _end(child: _Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.process.terminate()
    try:
        async with asyncio.timeout(END_WITHIN):
            await child.process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.process.kill()
        await child.process.wait()
