"""Those who follow a run or a log: how many there may be, and whether they still may.

Any other request is over in a moment, or in the minute that it may wait. These last as long as a run: each costs a connection,
memory and looks into the database, and each was let in by a token that may be revoked meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from shared.api import Call
from shared.auth import authenticate, tenant_of
from shared.db.database import Database
from shared.errors import UserError

TOKEN_SECONDS = 60.0
"""How long a follower may go on after its token was revoked, or has expired."""


class Follower:
    """One reader, let in just now."""

    def __init__(self, call: Call, database: Database) -> None:
        self._call = call
        self._database = database
        self._checked = asyncio.get_running_loop().time()

    async def check(self) -> None:
        """Look at its token again, once in TOKEN_SECONDS; to be called at every turn. Raises UserError if it may not go on."""
        now = asyncio.get_running_loop().time()
        if now - self._checked < TOKEN_SECONDS:
            return
        identity = await authenticate(self._call.request, self._database)
        identity.require("read")
        tenant_of(self._call.request, identity)
        self._checked = now


class Followers:
    """All of this process. `most`, `most_of_tenant`: how many there may be at a time."""

    def __init__(self, database: Database, most: int, most_of_tenant: int) -> None:
        self._database = database
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._by_tenant: Counter[str] = Counter()

    @contextmanager
    def following(self, call: Call) -> Iterator[Follower]:
        """Inside, the reader counts. Raises UserError 429 if there are too many already."""
        if self._by_tenant[call.tenant] >= self._most_of_tenant:
            raise _too_many(f"the tenant {call.tenant!r} has {self._most_of_tenant} readers that follow runs and logs")
        if self._by_tenant.total() >= self._most:
            raise _too_many(f"{self._most} readers follow runs and logs here")
        self._by_tenant[call.tenant] += 1
        try:
            yield Follower(call, self._database)
        finally:
            self._by_tenant[call.tenant] -= 1
            if not self._by_tenant[call.tenant]:
                del self._by_tenant[call.tenant]


def _too_many(told: str) -> UserError:
    return UserError(
        f"{told}, and more are not served at a time", code="too-many-followers", status=429,
        hint="try again in a few seconds, or read without following",
    )  # fmt: skip
