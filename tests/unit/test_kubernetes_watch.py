"""What needs no cluster of watching pods."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from shared.runtime.kubernetes_watch import Pods


class Hasty:
    """Has no pods, and ends each watch at once, with status 200."""

    def __init__(self) -> None:
        self.watches = 0
        self.asked_often = asyncio.Event()

    async def call(self, *_: Any, **__: Any) -> Any:
        return {"items": [], "metadata": {"resourceVersion": "7"}}

    @asynccontextmanager
    async def request(self, *_: Any, **__: Any) -> Any:
        self.watches += 1
        if self.watches == 4:
            self.asked_often.set()

        async def nothing() -> Any:
            return
            yield

        yield SimpleNamespace(content=SimpleNamespace(iter_any=nothing))


async def test_a_watch_that_ends_and_has_brought_nothing_is_asked_for_more_and_more_seldom() -> None:
    api = Hasty()
    pods = Pods(cast("Any", api), "here", "jobs")
    begun = asyncio.get_running_loop().time()
    pods.begin()
    try:
        async with asyncio.timeout(20):
            await api.asked_often.wait()
        # 0.2, 0.2 and 0.4 s lie between the four.
        assert asyncio.get_running_loop().time() - begun > 0.75
    finally:
        await pods.close()
