"""Who wants what, in memory: most events concern nobody, and those must cost nothing."""

from __future__ import annotations

import asyncio

from services.notifier import store
from services.notifier.store import Subscription
from shared.db.database import Database
from shared.errors import TemporaryError
from shared.events import SubscriptionChanged
from shared.log import get_logger

TOPICS = (f"*.{SubscriptionChanged.TYPE}",)
REFRESH_SECONDS = 5.0
"""How long a change may go unnoticed whose event was lost."""

_log = get_logger("notifier")


class Subscribers:
    """Subscriptions by tenant. Changes are heard at once (`heard`); the next look waits until they are read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: dict[str, Subscription] = {}
        self._stale = True
        self._reading = asyncio.Lock()

    def heard(self, _: str, __: bytes) -> None:
        """A callback for `Bus.listen`."""
        self._stale = True

    async def of(self, tenant: str) -> Subscription | None:
        """The tenant's subscription, None if there is none."""
        if self._stale:
            await self._read()
        return self._found.get(tenant)

    async def now(self, tenant: str) -> Subscription | None:
        """The same, read anew."""
        self._stale = True
        return await self.of(tenant)

    async def tenants(self) -> list[str]:
        """Those that have a subscription."""
        await self._read()
        return sorted(self._found)

    async def refresh(self) -> None:
        """Look again every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self._stale = True
            try:
                await self._read()
            except TemporaryError as error:
                _log.warning("subscriptions not read", error=str(error))

    async def _read(self) -> None:
        async with self._reading:
            if not self._stale:
                return
            # Set before reading: what changes while it is read makes it stale again.
            self._stale = False
            try:
                self._found = await store.subscriptions(self._database)
            except BaseException:
                self._stale = True
                raise
