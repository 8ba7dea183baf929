"""Waiting for files to change, without polling: one inotify instance for all listeners of a process.

The kernel allows a user only 128 inotify instances but thousands of watches, so the followers of many logs share one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from asyncinotify import Event, Inotify, Mask, Watch

OF_FOLDERS = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE
OF_FILES = Mask.MODIFY | Mask.CLOSE_WRITE | Mask.DELETE_SELF
"""What is listened for. The same for everyone, because the kernel keeps one mask per file and instance. What a folder's files
go through before they are whole is left out: each event costs."""


class Listener:
    """Collects the names of changed directory entries until somebody asks for them."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._happened = asyncio.Event()
        self.overflowed = False
        """Changes were lost: look at everything. Cleared by `wait`'s caller."""

    def tell(self, name: str) -> None:
        """Note one change; "" for the watched file itself."""
        self._names[name] = None
        self._happened.set()

    def overflow(self) -> None:
        """Note that the kernel has dropped changes."""
        self.overflowed = True
        self._happened.set()

    async def wait(self, timeout: float) -> list[str]:
        """Names changed since the last call, each once, in order; empty after `timeout` seconds without any."""
        try:
            async with asyncio.timeout(timeout):
                await self._happened.wait()
        except TimeoutError:
            return []
        self._happened.clear()
        names, self._names = list(self._names), {}
        return names


class Changes:
    """The process's inotify instance. Opened by the first listener; `close` ends it."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watched: dict[Path, tuple[Watch, set[Listener]]] = {}

    @contextmanager
    def listen(self, paths: Sequence[Path]) -> Iterator[Listener]:
        """A listener for these files or directories. Raises FileNotFoundError if one is not there."""
        listener = Listener()
        try:
            for path in paths:
                self._add(path, listener)
            yield listener
        finally:
            for path in paths:
                self._drop(path, listener)

    def _add(self, path: Path, listener: Listener) -> None:
        if self._inotify is None:
            self._inotify = Inotify()
            self._reader = asyncio.create_task(self._read(self._inotify), name="inotify")
        known = self._watched.get(path)
        # The kernel has dropped the watch if the file was deleted meanwhile; asking again is cheap and gives the same
        # number for the same file.
        watch = self._inotify.add_watch(path, OF_FOLDERS if path.is_dir() else OF_FILES)
        listeners = known[1] if known else set()
        listeners.add(listener)
        self._watched[path] = (watch, listeners)

    def _drop(self, path: Path, listener: Listener) -> None:
        if path not in self._watched or self._inotify is None:
            return
        watch, listeners = self._watched[path]
        listeners.discard(listener)
        if not listeners:
            del self._watched[path]
            _forget(self._inotify.rm_watch, watch)

    async def _read(self, inotify: Inotify) -> None:
        while True:
            self._dispatch(await inotify.get())

    def _dispatch(self, event: Event) -> None:
        if Mask.Q_OVERFLOW in event.mask:
            for _, listeners in self._watched.values():
                for listener in listeners:
                    listener.overflow()
            return
        if event.watch is None:
            return
        name = str(event.name) if event.name else ""
        for listener in self._watched.get(event.watch.path, (None, ()))[1]:
            listener.tell(name)

    async def close(self) -> None:
        """End the instance. Listeners hear nothing more."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self._reader = None, None
        self._watched.clear()


def _forget(rm_watch: Callable[[Watch], None], watch: Watch) -> None:
    try:
        rm_watch(watch)
    except (OSError, ValueError, KeyError):
        # The kernel dropped it by itself when the file was deleted.
        return
