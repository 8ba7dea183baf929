"""Which containers are this replica's to tell, sweep and remove.

The work is divided into sixteen shares (`core.share_of`), and the database says who holds which. This is what a replica
knows of that, as of a moment ago. Nothing depends on its being true: two that hold a share for a moment both record what they
see, which the database takes once; and who gains a share looks at all its containers, whatever the holder before has heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from services.status_watcher.core import share_of


class Shares:
    """The shares that this replica holds, and those of them that it has yet to catch up with."""

    def __init__(self, held: Iterable[str] = ()) -> None:
        self.held = frozenset(held)
        self._gained: set[str] = set()
        self._news = asyncio.Event()

    def hold(self, container: str) -> bool:
        """Is this container ours?"""
        return share_of(container) in self.held

    def update(self, held: Iterable[str]) -> None:
        """We hold these now. What is newly among them is to be caught up with."""
        before, self.held = self.held, frozenset(held)
        self._gained = (self._gained | (self.held - before)) & self.held
        if self._gained:
            self._news.set()

    async def take_gained(self) -> frozenset[str]:
        """Shares to catch up with, at least one. One that is lost and gained again meanwhile comes again."""
        while not self._gained:
            self._news.clear()
            await self._news.wait()
        gained, self._gained = frozenset(self._gained), set()
        return gained

    def put_back(self, gained: Iterable[str]) -> None:
        """It did not work: these are still to be caught up with."""
        self._gained |= self.held.intersection(gained)
        self._news.set()
