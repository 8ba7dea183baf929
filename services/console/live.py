"""Readers that wait: they are woken as soon as something of their run is told, and look into the database.

What is heard may be lost or come twice; it only makes readers look sooner. Whoever waits looks once a second anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
from prometheus_client import Gauge

TOPICS = ("*.run.#", "*.stage.#", "*.job.#", "*.log.#")
FALLBACK_SECONDS = 1.0

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

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self.closed = False
        """The process is ending: readers should end their answers."""

    @contextmanager
    def watching(self, run: object, *types: str) -> Iterator[Watch]:
        """Inside, `Watch.wait` returns at events of `types` (`run.finished`; `log`: nudges about logs), or at all."""
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
