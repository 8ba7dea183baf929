"""The end of a short log, when its last bytes are being recorded at that very moment: none may be counted twice."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, cast

from services.log_collector.config import LogCollectorSettings
from services.log_collector.flushing import Flusher, Stream
from services.log_collector.following import Tools, follow
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

    async def fetch(self, _: str, containers: list[str], starts: list[int], data: list[bytes], *__: Any) -> list[Any]:
        self.asked.set()
        await self.let.wait()
        assert starts == [len(self.tail)]
        self.tail += data[0]
        return [{"container": containers[0]}]

    async def fetchval(self, _: str, __: str, start: int, ___: int) -> bytes:
        return self.tail[start:]


class Runtime:
    """A container that prints one line, and ends as soon as the database has been asked to keep it."""

    def __init__(self, database: SlowDatabase) -> None:
        self._database = database

    async def logs(self, _: str, __: int, *, follow: bool) -> Any:
        assert follow
        yield LINE
        await self._database.asked.wait()


class Objects:
    def __init__(self, database: SlowDatabase) -> None:
        self._database = database
        self.kept: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self._database.let.set()  # what was on its way is recorded while this goes on
        await asyncio.sleep(0)
        self.kept[key] = data


async def test_a_log_that_ends_while_it_is_recorded_has_its_true_size() -> None:
    database = SlowDatabase()
    objects = Objects(database)
    completed: list[Completion] = []

    async def complete(batch: Any) -> None:
        completed.extend(batch)

    log = Log("hf-version-1", "dev", uuid.uuid4(), "build", "version", 1)
    flusher = Flusher(cast("Any", database), "me", seconds=0.001, most_bytes=1 << 20, grown=lambda _: None)
    tools = Tools(
        cast("Any", database), cast("Any", Runtime(database)), cast("Any", objects), LogCollectorSettings(), "me", flusher,
        Batcher(complete), asyncio.Semaphore(1), lambda _: None,
    )  # fmt: skip
    running = asyncio.create_task(flusher.run())
    following = asyncio.create_task(follow(Stream.of(log, Masker(())), tools))
    await database.asked.wait()
    asyncio.get_running_loop().call_later(0.05, database.let.set)
    await asyncio.wait_for(following, 5)
    running.cancel()
    (end,) = completed
    assert (end.expected, end.size, end.raw_offset) == (len(LINE), len(LINE), len(LINE))
    assert end.segment is not None
    assert objects.kept == {end.segment["key"]: LINE}
