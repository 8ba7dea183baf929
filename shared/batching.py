"""Doing many small things in one transaction: items that come while one batch is worked on form the next."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from shared.errors import UnavailableError

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """`submit` returns when the batch that holds the item is done.

    A batch that fails is worked on again item by item, so that one bad item fails alone; not where a server is away. `gather`:
    seconds that the first item waits for others, where nobody is in a hurry.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[None]],
        *,
        limit: int = 64,
        workers: int = 1,
        gather: float = 0.0,
    ) -> None:
        self._work = work
        self._limit = limit
        self._gather = gather
        self._free = workers
        self._waiting: deque[tuple[Item, asyncio.Future[None]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> None:
        """Raises what the work raised for this item."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._free:
            self._free -= 1
            # A batch is of many: what one of them has bound to its log lines does not belong on it.
            task = asyncio.create_task(self._drain(), name="batch", context=contextvars.Context())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        await done

    async def _drain(self) -> None:
        try:
            if self._gather:
                await asyncio.sleep(self._gather)
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]
                await self._do(batch)
        finally:
            self._free += 1

    async def _do(self, batch: list[tuple[Item, asyncio.Future[None]]]) -> None:
        try:
            await self._work([item for item, _ in batch])
        except UnavailableError as error:
            # It is nobody's fault alone, and to be told so by each in turn may take as many timeouts.
            for _, done in batch:
                _resolve(done, error)
        except Exception as error:
            if len(batch) == 1:
                _resolve(batch[0][1], error)
                return
            for each in batch:
                await self._do([each])
        else:
            for _, done in batch:
                _resolve(done, None)


def _resolve(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():  # whoever submitted it has gone away
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
