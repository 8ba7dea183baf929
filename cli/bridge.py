"""Lets job containers reach servers that listen on loopback only: S3 for caches and artifacts, the console for links.

Containers on the engine's default bridge see this machine at the bridge's gateway address. Forwarding single ports from
there keeps everything else (the database, the inner parts of S3) closed to jobs, and to the network outside.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from shared.errors import HubflowError
from shared.runtime.engine import Engine, EngineError

DESKTOP_NAME = "host.docker.internal"
"""Engines inside a virtual machine (Docker Desktop and its like) give this name to the machine of the user."""
_CHUNK = 1 << 18


async def gateway(docker_host: str) -> str:
    """Address of this machine as containers on the default bridge see it. Raises OSError if the engine does not say."""
    engine = Engine(docker_host)
    try:
        network = await engine.call("GET", "/networks/bridge")
    except (EngineError, HubflowError) as error:
        raise OSError(f"the engine has no default bridge: {error}") from error
    finally:
        await engine.close()
    for pool in (network or {}).get("IPAM", {}).get("Config") or ():
        address = str(pool.get("Gateway") or "")
        if address and ":" not in address:
            return address
    raise OSError("the engine's default bridge has no IPv4 gateway")


@contextlib.asynccontextmanager
async def forwarded(address: str, port: int) -> AsyncIterator[int]:
    """Forward `address`:`port` to 127.0.0.1:`port`. Gives the port taken: another one if this is in use there.

    Raises OSError if `address` is not one of this machine.
    """
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.add(task)
            task.add_done_callback(connections.discard)
        await _splice(reader, writer, port)

    try:
        server = await asyncio.start_server(accept, address, port)
    except OSError:
        server = await asyncio.start_server(accept, address, 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _splice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        with contextlib.suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
            finally:
                inner_writer.close()
    finally:
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
