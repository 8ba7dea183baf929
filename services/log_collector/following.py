"""One log from its first byte to object storage.

    read from the runtime -> mask -> buffer -> tail in the database -> segments in object storage -> complete

How far the container's output has been read is recorded in the same statement as the bytes kept of it, so that whoever
takes over goes on with the very next byte (T55).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, cast

from services.log_collector import store
from services.log_collector.config import LogCollectorSettings
from services.log_collector.core import limited, missing_line
from services.log_collector.flushing import Flusher, LostError, Stream
from services.log_collector.store import Completion, Log
from shared import object_keys
from shared.batching import Batcher
from shared.db.database import Database
from shared.errors import TemporaryError
from shared.log import get_logger
from shared.objects import ObjectStore
from shared.runtime.protocol import NEVER_ROTATED, IncompleteLogError, Runtime

UPLOAD_SECONDS = 60.0
LONGEST_WAIT = 15.0
PIECE = 1 << 18
"""Bytes of output that are taken in before the next look whether there is room."""

_log = get_logger("log_collector")


@dataclass(frozen=True, slots=True)
class Tools:
    """What following a log needs."""

    database: Database
    runtime: Runtime
    objects: ObjectStore
    settings: LogCollectorSettings
    holder: str
    flusher: Flusher
    completions: Batcher[Completion]
    uploads: asyncio.Semaphore
    grown: Callable[[Log], None]


async def follow(stream: Stream, tools: Tools) -> None:
    """Until the log is complete, or belongs to another process."""
    segments = _Segments(stream, tools)
    try:
        if not stream.truncated:
            await _read(stream, segments, tools)
        await segments.settled()
        await _finish(stream, segments, tools)
    except LostError:
        _log.warning("log taken over by another process", container=stream.log.container)
    finally:
        tools.flusher.forget(stream)
        segments.cancel()


async def _read(stream: Stream, segments: _Segments, tools: Tools) -> None:
    await _read_once(stream, segments, tools)
    printed = 0
    while not stream.truncated and (stream.doubtful or stream.fed > NEVER_ROTATED):
        before, printed = stream.fed, await _printed(stream, tools)
        if printed <= before:
            break
        # A node under load has been seen to end a log before its last lines: whoever asks again gets them.
        await _read_once(stream, segments, tools)
        if stream.fed == before:
            break
    if stream.truncated:
        return
    rest = stream.masker.finish()
    _keep(stream, rest.kept, rest.consumed, tools)
    if (missing := printed - stream.raw) > 0:
        # The missing bytes count as read once the line about them is kept, so that it stands there once.
        _log.warning("log is not whole", container=stream.log.container, missing=missing, printed=printed)
        _keep(stream, missing_line(missing, printed), missing, tools)


async def _read_once(stream: Stream, segments: _Segments, tools: Tools) -> None:
    """From where we are to the end that the runtime tells, or to the log's limit."""
    wait = 0.2
    while True:
        try:
            output = cast(
                "AsyncGenerator[bytes, None]", tools.runtime.logs(stream.log.container, stream.fed, follow=True)
            )
            async with contextlib.aclosing(output):
                async for chunk in output:
                    wait = 0.2
                    await _take(stream, chunk, segments, tools)
                    if stream.truncated:
                        return
            return
        except IncompleteLogError:
            stream.doubtful = True
            return
        except KeyError:
            return  # the container is gone: what was read of it is all there is
        except TemporaryError as error:
            _log.warning("log interrupted", container=stream.log.container, seconds=wait, error=str(error))
            stream.doubtful = True
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


async def _printed(stream: Stream, tools: Tools) -> int:
    """How many bytes the log must have; 0 if nobody knows."""
    wait = 0.2
    while True:
        try:
            seen = await tools.runtime.inspect(stream.log.container)
            break
        except TemporaryError as error:
            _log.warning("log not checked, it will be", container=stream.log.container, error=str(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
    return seen.log_bytes if seen is not None else 0


async def _take(stream: Stream, chunk: bytes, segments: _Segments, tools: Tools) -> None:
    """Piece by piece, each when there is room for it: a runtime may hand over megabytes at once."""
    for start in range(0, len(chunk), PIECE):
        await tools.flusher.room(stream)
        piece = chunk[start : start + PIECE]
        stream.fed += len(piece)
        masked = stream.masker.feed(piece)
        _keep(stream, masked.kept, masked.consumed, tools)
        await segments.keep_up()
        if stream.truncated:
            return


def _keep(stream: Stream, data: bytes, consumed: int, tools: Tools) -> None:
    stream.check()
    if stream.truncated or not consumed:
        return
    data, stream.truncated = limited(data, stream.kept, tools.settings.limit_bytes)
    tools.flusher.add(stream, data, consumed)


class _Segments:
    """Moves the tail of one log into object storage, one piece at a time, while reading goes on."""

    def __init__(self, stream: Stream, tools: Tools) -> None:
        self._stream = stream
        self._tools = tools
        self._task: asyncio.Task[None] | None = None

    async def keep_up(self) -> None:
        """Begin a piece if there is enough for one; wait if there is far too much. Raises LostError."""
        settings = self._tools.settings
        if self._stream.unstored >= settings.segment_bytes and (self._task is None or self._task.done()):
            await self.settled()
            self._task = asyncio.create_task(self._store_one(), name=f"log {self._stream.log.container}")
        if self._stream.unstored >= settings.tail_limit_bytes:
            await self.settled()

    async def settled(self) -> None:
        """Wait for the piece in hand. Raises LostError."""
        task, self._task = self._task, None
        if task is not None:
            await task

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def store_all(self) -> None:
        """All full pieces of the tail. Raises LostError."""
        while self._stream.unstored >= self._tools.settings.segment_bytes:
            await self._store_one()

    async def _store_one(self) -> None:
        stream, tools = self._stream, self._tools
        segment = await self.upload_tail()
        if not await store.note_segment(tools.database, stream.log.container, segment, tools.holder):
            stream.lost = True
            raise LostError(stream.log.container)
        stream.stored += segment["size"]

    async def upload_tail(self) -> dict[str, Any]:
        """The next piece of the tail; again and again until object storage takes it (T58)."""
        stream, tools = self._stream, self._tools
        data = await store.tail(tools.database, stream.log.container, stream.stored, tools.settings.segment_bytes)
        if not data:
            raise LostError(stream.log.container)  # somebody else has stored it
        wait = 0.5
        while True:
            try:
                return await self.upload(stream.stored, data)
            except TemporaryError as error:
                _log.warning(
                    "log not stored, it will be", container=stream.log.container, seconds=wait, error=str(error)
                )
            await asyncio.sleep(wait)
            stream.check()
            wait = min(2 * wait, LONGEST_WAIT)

    async def upload(self, offset: int, data: bytes) -> dict[str, Any]:
        """One try. Returns the piece as `logs.segments` has it."""
        log = self._stream.log
        key = object_keys.log_segment(log.tenant, log.run, log.job, log.attempt, offset, len(data))
        async with self._tools.uploads:
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    await self._tools.objects.put(key, data)
            except TimeoutError:
                raise TemporaryError(
                    f"object storage has not taken {len(data)} bytes in {UPLOAD_SECONDS:g} s"
                ) from None
        return {"offset": offset, "size": len(data), "key": key}


async def _finish(stream: Stream, segments: _Segments, tools: Tools) -> None:
    """The rest goes to object storage and the log is complete; while that is away, the database keeps all of it."""
    wait = 0.5
    while True:
        try:
            completion = await _last(stream, segments, tools)
            await tools.completions.submit(completion)
            stream.check()
        except TemporaryError as error:
            _log.warning("log not complete, it will be", container=stream.log.container, seconds=wait, error=str(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            continue
        tools.grown(stream.log)
        return


async def _last(stream: Stream, segments: _Segments, tools: Tools) -> Completion:
    """Upload what is left. A short log that ended before anything of it was recorded never sees the tail."""
    if stream.unstored == 0 and stream.pending and not stream.writing:
        stream.held = True
        recorded, data = stream.size, bytes(stream.pending)
        try:
            segment = await segments.upload(stream.stored, data)
        except TemporaryError:
            stream.held = False
            await tools.flusher.drained(stream)
            raise
        return Completion(stream.log, recorded, recorded + len(data), stream.raw, segment, stream.truncated)
    await tools.flusher.drained(stream)
    await segments.store_all()
    last = await segments.upload_tail() if stream.unstored else None
    return Completion(stream.log, stream.size, stream.size, stream.raw, last, stream.truncated)
