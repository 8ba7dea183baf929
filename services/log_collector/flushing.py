"""What has been read and not yet written: the buffers of all logs of this process, and the one loop that writes them.

Output becomes visible to readers when it is in the database. The loop writes what all logs have gathered in one statement:
at once when it has rested for `flush_seconds`, or when a buffer is full or a log has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from services.log_collector import store
from services.log_collector.store import Growth, Log
from shared.db.database import Database
from shared.errors import TemporaryError
from shared.log import get_logger
from shared.masking import Masker

STREAM_BUFFER = 1 << 20
"""Bytes that one log may have in memory before its reader waits."""
URGENT = 1 << 18
BATCH_LOGS = 500
BATCH_BYTES = 8 << 20
LONGEST_WAIT = 5.0

_log = get_logger("log_collector")


class LostError(Exception):
    """The log belongs to another process now."""


@dataclass(eq=False)
class Stream:
    """One log being followed."""

    log: Log
    masker: Masker
    size: int = 0
    """Bytes kept and recorded."""
    raw: int = 0
    """Bytes of the container's output that `size` and `pending` stand for."""
    fed: int = 0
    """Bytes of the container's output read; beyond `raw` the masker holds them."""
    stored: int = 0
    """Bytes in object storage."""
    truncated: bool = False
    doubtful: bool = False
    """It was not read without a break since it began, so the runtime may have dropped some of it meanwhile."""
    pending: bytearray = field(default_factory=bytearray)
    writing: bool = False
    """The flusher is about to record some of the pending bytes."""
    held: bool = False
    """The pending bytes are being stored in another way: the flusher leaves them alone."""
    lost: bool = False
    flushed: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, log: Log, masker: Masker) -> Stream:
        return cls(
            log,
            masker,
            size=log.size,
            raw=log.raw_offset,
            fed=log.raw_offset,
            stored=log.stored,
            truncated=log.truncated,
        )

    @property
    def kept(self) -> int:
        """Bytes kept so far, recorded or not."""
        return self.size + len(self.pending)

    @property
    def unstored(self) -> int:
        """Bytes recorded in the tail."""
        return self.size - self.stored

    def check(self) -> None:
        """Raise LostError if the log is not ours any more."""
        if self.lost:
            raise LostError(self.log.container)


class Flusher:
    """See the module's docstring. `grown` is called for each log that readers should look at."""

    def __init__(
        self, database: Database, holder: str, *, seconds: float, most_bytes: int, grown: Callable[[Log], None]
    ) -> None:
        self._database = database
        self._holder = holder
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._grown = grown
        self._dirty: dict[str, Stream] = {}
        self._bytes = 0
        self._more = False
        """The last batch did not hold all there was."""
        self._something = asyncio.Event()
        self._urgent = asyncio.Event()

    def add(self, stream: Stream, data: bytes, consumed: int) -> None:
        """Bytes to be kept, which stand for `consumed` bytes of the container's output."""
        stream.raw += consumed
        stream.pending += data
        self._bytes += len(data)
        self._mark(stream, urgent=len(stream.pending) >= URGENT)

    async def room(self, stream: Stream) -> None:
        """Wait until more may be added. Raises LostError."""
        while len(stream.pending) >= STREAM_BUFFER or (self._bytes >= self._most_bytes and stream.pending):
            await self._flush(stream)

    async def drained(self, stream: Stream) -> None:
        """Wait until all of the log is recorded. Raises LostError."""
        while stream.pending:
            await self._flush(stream)
        stream.check()

    def forget(self, stream: Stream) -> None:
        """What is pending is stored in another way, or nobody wants it."""
        self._bytes -= len(stream.pending)
        stream.pending.clear()
        self._dirty.pop(stream.log.container, None)

    async def run(self) -> None:
        """Write, until cancelled."""
        wait = 0.1
        while True:
            await self._something.wait()
            batch = self._next_batch()
            if batch:
                try:
                    await self._write(batch)
                    wait = 0.1
                except TemporaryError as error:
                    _log.warning("logs not written, they will be", seconds=wait, error=str(error))
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, LONGEST_WAIT)
            if not self._more:
                await self._rest()

    async def _flush(self, stream: Stream) -> None:
        stream.check()
        stream.flushed.clear()
        self._mark(stream, urgent=True)
        await stream.flushed.wait()
        stream.check()

    def _mark(self, stream: Stream, *, urgent: bool) -> None:
        self._dirty[stream.log.container] = stream
        self._something.set()
        if urgent:
            self._urgent.set()

    def _next_batch(self) -> list[Stream]:
        batch: list[Stream] = []
        size = 0
        self._more = False
        for stream in self._dirty.values():
            if stream.held or not stream.pending:
                continue
            batch.append(stream)
            size += len(stream.pending)
            if size >= BATCH_BYTES or len(batch) == BATCH_LOGS:
                self._more = True
                break
        if not batch:
            self._dirty = {name: stream for name, stream in self._dirty.items() if stream.held}
            self._something.clear()
        return batch

    async def _write(self, batch: list[Stream]) -> None:
        growths = [
            Growth(each.log.container, each.size, bytes(each.pending), each.raw, each.truncated) for each in batch
        ]
        for stream in batch:
            stream.writing = True
        try:
            ours = await store.grow(self._database, growths, self._holder)
        finally:
            for stream in batch:
                stream.writing = False
        for stream, growth in zip(batch, growths, strict=True):
            if growth.container in ours:
                del stream.pending[: len(growth.data)]
                stream.size += len(growth.data)
                self._bytes -= len(growth.data)
                self._grown(stream.log)
            else:
                stream.lost = True
                self.forget(stream)
            if self._dirty.pop(growth.container, None) and stream.pending:
                self._dirty[growth.container] = stream  # behind the others
            stream.flushed.set()

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._urgent.wait()
        self._urgent.clear()
