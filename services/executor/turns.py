"""Who may start next: so many starts at a time, and tenants take turns for them (T42, T59).

The executor has more messages in hand than it starts at a time. A stop needs no turn; a start waits for one here, so that
neither the thousand jobs of one tenant nor starts that hang on an image or a registry stand before everybody else's.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import UnavailableError


class Turns:
    """`places` starts at a time. For one event loop. Remembers each tenant that was served: a name and a number."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._holding: Counter[str] = Counter()
        self._served: dict[str, int] = {}
        """Tenant -> number of its last turn."""
        self._turn = 0
        self._closed = False

    @asynccontextmanager
    async def taken(self, tenant: str, patience: float) -> AsyncIterator[None]:
        """Hold a place. Raises UnavailableError if none came free in `patience` seconds, or this process ends."""
        if self._closed:
            raise UnavailableError("this executor ends")
        if self._free and not self._waiting:
            self._give(tenant)
        else:
            await self._wait(tenant, patience)
        try:
            yield
        finally:
            self._give_back(tenant)
            self._call()

    def close(self) -> None:
        """Whoever waits is sent away, to be taken up by another process."""
        self._closed = True
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(UnavailableError("this executor ends"))

    async def _wait(self, tenant: str, patience: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(future)
        try:
            async with asyncio.timeout(patience):
                await future
        except TimeoutError as error:
            self._leave(tenant, future)
            raise UnavailableError(
                f"all {self._places} places for starting containers have been taken for {patience:.0f} s "
                "(HUBFLOW_EXECUTOR_CONCURRENCY)"
            ) from error
        except (asyncio.CancelledError, UnavailableError):
            self._leave(tenant, future)
            raise

    def _leave(self, tenant: str, future: asyncio.Future[None]) -> None:
        """Who has been called at the very moment when it gave up passes the place on."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self._give_back(tenant)
        elif future in (waiting := self._waiting.get(tenant, deque())):
            waiting.remove(future)
            if not waiting:
                del self._waiting[tenant]
        self._call()

    def _give(self, tenant: str) -> None:
        self._turn += 1
        self._free -= 1
        self._holding[tenant] += 1
        self._served[tenant] = self._turn

    def _give_back(self, tenant: str) -> None:
        self._free += 1
        self._holding[tenant] -= 1
        if not self._holding[tenant]:
            del self._holding[tenant]

    def _call(self) -> None:
        """Give what is free to those who wait: to tenants that hold least, and of these to the one served longest ago."""
        while self._free and self._waiting:
            tenant = min(self._waiting, key=lambda name: (self._holding[name], self._served.get(name, 0)))
            waiting = self._waiting[tenant]
            future = waiting.popleft()
            if not waiting:
                del self._waiting[tenant]
            if not future.done():
                self._give(tenant)
                future.set_result(None)
