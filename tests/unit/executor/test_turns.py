"""Places for starts, and who gets them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.executor.turns import Turns
from shared.errors import UnavailableError


async def waiting(turns: Turns, tenant: str, log: list[str], patience: float = 10.0) -> None:
    async with turns.taken(tenant, patience):
        log.append(tenant)


async def begun(work: list[asyncio.Task[None]]) -> list[asyncio.Task[None]]:
    """They wait by now."""
    await asyncio.sleep(0)
    return work


async def test_t42_tenants_take_turns_and_a_newcomer_is_next() -> None:
    turns, log = Turns(1), list[str]()
    async with turns.taken("busy", 10.0):
        work = await begun([asyncio.create_task(waiting(turns, "busy", log)) for _ in range(3)])
        work += await begun([asyncio.create_task(waiting(turns, name, log)) for name in ("new", "newer")])
    await asyncio.gather(*work)
    assert log == ["new", "newer", "busy", "busy", "busy"]


async def test_who_holds_least_is_before_who_was_served_longest_ago() -> None:
    turns, log = Turns(2), list[str]()
    async with turns.taken("slow", 10.0):
        async with turns.taken("other", 10.0):
            work = await begun([asyncio.create_task(waiting(turns, name, log)) for name in ("slow", "other")])
        await asyncio.gather(*work)
    assert log == ["other", "slow"]


async def test_nobody_waits_longer_than_its_patience_and_no_place_is_lost() -> None:
    turns, log = Turns(1), list[str]()
    async with turns.taken("one", 10.0):
        with pytest.raises(UnavailableError, match="HUBFLOW_EXECUTOR_CONCURRENCY"):
            await waiting(turns, "two", log, 0.05)
    await waiting(turns, "two", log)
    assert log == ["two"]


async def test_a_waiter_that_is_cancelled_loses_no_place() -> None:
    """Also one that has just been given a place."""
    turns, log = Turns(1), list[str]()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(turns.taken("one", 10.0))
        early, late, last = await begun([asyncio.create_task(waiting(turns, name, log)) for name in ("a", "b", "c")])
        early.cancel()
        await stack.aclose()
        late.cancel()
        await asyncio.wait([early, late, last])
    assert log == ["c"]
    async with turns.taken("one", 10.0):
        pass


async def test_who_waits_when_the_process_ends_is_sent_away_and_who_works_is_not() -> None:
    turns, log = Turns(1), list[str]()
    async with turns.taken("one", 10.0):
        [work] = await begun([asyncio.create_task(waiting(turns, "two", log))])
        turns.close()
        with pytest.raises(UnavailableError, match="ends"):
            await work
        with pytest.raises(UnavailableError, match="ends"):
            await waiting(turns, "three", log)
    assert log == []
