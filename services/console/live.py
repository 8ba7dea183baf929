"""Readers that wait: they are woken as soon as something of their run is told, and look into the database.

What is heard may be lost or come twice; it only makes readers look sooner. Whoever waits looks once a second anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgpack
from prometheus_client import Gauge

from shared.bus.protocol import Bus, Listening

ENDS = ("*.run.finished", "*.run.paused")
"""What most readers wait for; heard all the time."""
REST = ("*.run.#", "*.stage.#", "*.job.#", "*.log.#")
"""Heard only while somebody follows a run step by step, or a log: it is many times as much."""
REST_SECONDS = 30.0
"""How long they are still heard after the last such reader."""
FALLBACK_SECONDS = 1.0

_ENDS = frozenset(topic.partition(".")[2] for topic in ENDS)
_READERS = Gauge("hubflow_console_readers", "Requests that wait for news of a run or follow a log")


class Watch:
    """One reader of one run."""

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        """First words of topics it wants (`run.finished`, `log`); empty: all."""
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    @property
    def woken(self) -> bool:
        """Has something been told since the last `wait`?"""
        return self._woken.is_set()

    async def wait(self, seconds: float = FALLBACK_SECONDS) -> bool:
        """Return when something has been told since the last call (True), or after `seconds` (False)."""
        try:
            async with asyncio.timeout(seconds):
                return await self._woken.wait()
        except TimeoutError:
            return False
        finally:
            self._woken.clear()


class Changes:
    """Everybody in this process who waits for a run."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._watches: dict[str, set[Watch]] = {}
        self._rest: Listening | None = None
        self._rest_readers = 0
        self._rest_changing = asyncio.Lock()
        self.closed = False
        """The process is ending: readers should end their answers."""

    async def open(self) -> None:
        """Begin to listen."""
        await self._bus.listen(ENDS, self.heard)

    @asynccontextmanager
    async def watching(self, run: object, *types: str) -> AsyncIterator[Watch]:
        """Inside, `Watch.wait` returns at events of `types` (`run.finished`; `log`: nudges about logs), or at all."""
        async with AsyncExitStack() as stack:
            if not types or not _ENDS.issuperset(types):
                await stack.enter_async_context(self._hearing_the_rest())
            watch, key = Watch(frozenset(types)), str(run)
            self._watches.setdefault(key, set()).add(watch)
            _READERS.inc()
            try:
                yield watch
            finally:
                _READERS.dec()
                watches = self._watches[key]
                watches.discard(watch)
                if not watches:
                    del self._watches[key]

    @asynccontextmanager
    async def _hearing_the_rest(self) -> AsyncIterator[None]:
        self._rest_readers += 1
        try:
            async with self._rest_changing:
                if self._rest is None:
                    self._rest = await self._bus.listen(REST, self.heard)
            yield
        finally:
            self._rest_readers -= 1

    async def stop_hearing_the_rest(self) -> None:
        """Whenever nobody needs it for a while, for ever."""
        while True:
            await asyncio.sleep(REST_SECONDS)
            async with self._rest_changing:
                if self._rest is not None and not self._rest_readers:
                    await self._rest.stop()
                    self._rest = None

    def heard(self, topic: str, body: bytes) -> None:
        """A callback for `Bus.listen`."""
        if not self._watches:
            return
        kind, run = _subject(topic, body)
        for watch in self._watches.get(run, ()):
            if not watch.types or kind in watch.types:
                watch.wake()

    def close(self) -> None:
        self.closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()


def _subject(topic: str, body: bytes) -> tuple[str, str]:
    """(event type or `log`, run) of a message; ("", "") if it is not one of ours."""
    _, _, rest = topic.partition(".")
    if rest.startswith("log."):
        return "log", rest.split(".")[1]
    if not body:
        return "", ""
    try:
        document = msgpack.unpackb(body)
    except (ValueError, msgpack.exceptions.ExtraData):
        return "", ""
    return rest, str(document.get("run", "")) if isinstance(document, dict) else ""
