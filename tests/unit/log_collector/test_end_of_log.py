"""A log while the database is slow: none of its last bytes may be counted twice, and little of it may be in memory."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from services.log_collector.config import LogCollectorSettings
from services.log_collector.flushing import STREAM_BUFFER, Flusher, Stream
from services.log_collector.following import PIECE, Tools, follow
from services.log_collector.store import Completion, Log
from shared.batching import Batcher
from shared.masking import Masker

LINE = b"[JOB_OUT] VERSION = 1\n"


class SlowDatabase:
    """Records growths only when it is let; knows what a real one would hold."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self.tail = b""
        self.most = 0
        """Bytes that were waiting when it was asked."""

    async def fetch(self, _: str, containers: list[str], starts: list[int], data: list[bytes], *__: Any) -> list[Any]:
        self.asked.set()
        self.most = max(self.most, len(data[0]))
        await self.let.wait()
        assert starts == [len(self.tail)]
        self.tail += data[0]
        return [{"container": containers[0]}]

    async def fetchval(self, _: str, __: str, start: int, ___: int) -> bytes:
        return self.tail[start:]


class Runtime:
    """A container that prints this at once, and ends as soon as the database has been asked to keep it."""

    def __init__(self, database: SlowDatabase, printed: bytes = LINE) -> None:
        self._database = database
        self._printed = printed

    async def logs(self, _: str, __: int, *, follow: bool) -> Any:
        assert follow
        yield self._printed
        await self._database.asked.wait()

    async def inspect(self, _: str) -> None:
        return None


class Objects:
    def __init__(self, database: SlowDatabase) -> None:
        self._database = database
        self.kept: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self._database.let.set()  # what was on its way is recorded while this goes on
        await asyncio.sleep(0)
        self.kept[key] = data


LOG = Log("hf-version-1", "dev", uuid.uuid4(), "build", "version", 1)


def tools_for(database: Any, runtime: Any, objects: Any, complete: Any) -> tuple[Flusher, Tools]:
    flusher = Flusher(database, "me", seconds=0.001, most_bytes=1 << 20, grown=lambda _: None)
    tools = Tools(
        database, runtime, objects, LogCollectorSettings(segment_bytes=32 << 20), "me", flusher,
        Batcher(complete), asyncio.Semaphore(1), lambda _: None,
    )  # fmt: skip
    return flusher, tools


async def test_a_log_that_ends_while_it_is_recorded_has_its_true_size() -> None:
    database = SlowDatabase()
    objects = Objects(database)
    completed: list[Completion] = []

    async def complete(batch: Any) -> None:
        completed.extend(batch)

    flusher, tools = tools_for(database, Runtime(database), objects, complete)
    running = asyncio.create_task(flusher.run())
    following = asyncio.create_task(follow(Stream.of(LOG, Masker(())), tools))
    await database.asked.wait()
    asyncio.get_running_loop().call_later(0.05, database.let.set)
    await asyncio.wait_for(following, 5)
    running.cancel()
    (end,) = completed
    assert (end.expected, end.size, end.raw_offset) == (len(LINE), len(LINE), len(LINE))
    assert end.segment is not None
    assert objects.kept == {end.segment["key"]: LINE}


async def test_a_runtime_that_hands_over_megabytes_fills_no_more_than_the_buffer_of_one_log() -> None:
    database, printed = SlowDatabase(), LINE * 200_000
    objects = Objects(database)
    completed: list[Completion] = []

    async def complete(batch: Any) -> None:
        completed.extend(batch)

    flusher, tools = tools_for(database, Runtime(database, printed), objects, complete)
    running = asyncio.create_task(flusher.run())
    stream = Stream.of(LOG, Masker(()))
    following = asyncio.create_task(follow(stream, tools))
    await database.asked.wait()
    assert len(stream.pending) <= STREAM_BUFFER + PIECE
    database.let.set()
    await asyncio.wait_for(following, 10)
    running.cancel()
    assert database.most <= STREAM_BUFFER + PIECE
    (end,) = completed
    assert (end.size, database.tail) == (len(printed), printed)
