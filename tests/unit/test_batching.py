"""Many small things in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import structlog

from shared.batching import Batcher
from shared.errors import UnavailableError
from shared.log import bound


async def test_items_that_come_while_a_batch_is_worked_on_form_the_next() -> None:
    batches: list[list[int]] = []
    go_on = asyncio.Event()

    async def work(items: Sequence[int]) -> None:
        batches.append(list(items))
        await go_on.wait()

    batcher: Batcher[int] = Batcher(work, limit=3)
    waiting = [asyncio.ensure_future(batcher.submit(n)) for n in range(6)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*waiting)
    assert [item for batch in batches for item in batch] == list(range(6))
    assert max(map(len, batches)) == 3


async def test_t28_a_bad_item_fails_alone() -> None:
    done: list[int] = []

    async def work(items: Sequence[int]) -> None:
        if 3 in items:
            raise ValueError("three")
        done.extend(items)

    batcher: Batcher[int] = Batcher(work)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(6)), return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 3 + [ValueError] + [type(None)] * 2
    assert sorted(done) == [0, 1, 2, 4, 5]


async def test_t77_a_server_that_is_away_is_asked_once_for_a_batch() -> None:
    """Each question may take its whole time limit."""
    asked = 0

    async def work(items: Sequence[int]) -> None:
        nonlocal asked
        asked += 1
        raise UnavailableError("no answer")

    batcher: Batcher[int] = Batcher(work)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(6)), return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError] * 6
    assert asked == 1


async def test_a_submitter_that_goes_away_holds_up_nobody() -> None:
    go_on = asyncio.Event()

    async def work(items: Sequence[int]) -> None:
        await go_on.wait()

    batcher: Batcher[int] = Batcher(work)
    gone, stays = asyncio.ensure_future(batcher.submit(1)), asyncio.ensure_future(batcher.submit(2))
    await asyncio.sleep(0)
    gone.cancel()
    go_on.set()
    await asyncio.wait_for(stays, 5)
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_what_one_submitter_has_bound_is_not_on_the_lines_of_the_batch() -> None:
    seen: list[dict[str, object]] = []

    async def work(items: Sequence[int]) -> None:
        seen.append(structlog.contextvars.get_contextvars())

    batcher: Batcher[int] = Batcher(work)
    with bound({"job": "mine"}):
        await batcher.submit(1)
    assert seen == [{}]
