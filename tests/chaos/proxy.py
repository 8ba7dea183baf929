"""A TCP proxy between a service and a server, with the ways in which networks fail.

cut      every connection is reset
refuse   and new ones are too, until `heal`
delay    bytes arrive late, in order
swallow  half-open: connections stay open and nothing arrives any more, in either direction, for as long as they live;
         new ones work. It is what a peer looks like whose machine has lost its power.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable

PIECE = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Pair:
    """One connection through the proxy."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._writers = (near, far)
        self.swallowed = False

    def reset(self) -> None:
        for writer in self._writers:
            taken = writer.get_extra_info("socket")
            if taken is not None:
                with contextlib.suppress(OSError):
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class Proxy:
    """Listens at `port` of this machine and leads to a server's port, which may change its process but not its number."""

    def __init__(self, name: str, far_port: int, far_host: str = "127.0.0.1") -> None:
        self.name = name
        self.port = 0
        self._far = far_host, far_port
        self._pairs: dict[_Pair, asyncio.Task[None]] = {}
        self._delay: Callable[[], float] | None = None
        self._refusing = False
        self._server: asyncio.Server | None = None

    async def open(self, host: str = "127.0.0.1") -> None:
        self._server = await asyncio.start_server(self._connected, host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._pairs.values(), return_exceptions=True)

    # ------------------------------------------------------------ faults

    def cut(self) -> None:
        for pair in self._pairs:
            pair.reset()

    def refuse(self) -> None:
        self._refusing = True
        self.cut()

    def delay(self, seconds: Callable[[], float]) -> None:
        self._delay = seconds

    def swallow(self) -> None:
        for pair in self._pairs:
            pair.swallowed = True

    def heal(self) -> None:
        """New connections work, and bytes arrive at once. What was swallowed stays so: its peer is gone for good."""
        self._delay = None
        self._refusing = False

    # ------------------------------------------------------------ bytes

    async def _connected(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        if self._refusing:
            near.transport.abort()
            return
        try:
            far_reader, far = await asyncio.open_connection(*self._far)
        except OSError:
            near.transport.abort()
            return
        pair = _Pair(near, far)
        task = asyncio.current_task()
        assert task is not None
        self._pairs[pair] = task
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(pair, reader, far))
                group.create_task(self._pump(pair, far_reader, near))
        except* OSError:
            pair.reset()
        finally:
            pair.reset() if pair.swallowed else None
            near.close()
            far.close()
            self._pairs.pop(pair, None)

    async def _pump(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            if pair.swallowed:
                continue
            if self._delay is not None:
                await asyncio.sleep(self._delay())
            writer.write(piece)
            await writer.drain()
        if not pair.swallowed and writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()


@contextlib.asynccontextmanager
async def opened_proxy(name: str, far_port: int, far_host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    proxy = Proxy(name, far_port, far_host)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
