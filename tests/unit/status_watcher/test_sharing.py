"""Shares of the containers, as one replica knows them."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

from services.status_watcher.core import SHARES, share_of
from services.status_watcher.sharing import Shares
from shared.runtime.protocol import container_name


def test_containers_spread_evenly_and_always_alike() -> None:
    counts = Counter(share_of(container_name(str(uuid.UUID(int=n)), f"job {n % 7}", 1)) for n in range(16_000))
    assert set(counts) == set(SHARES)
    assert 850 < min(counts.values()) <= max(counts.values()) < 1150
    assert share_of("hf-a-1-0123456789abcdef") == "f"


def test_names_that_are_none_of_ours_belong_to_some_share() -> None:
    assert {share_of(name) for name in ("", "stranger", "HF-A", "é")} == {SHARES[0]}


async def test_what_is_gained_is_caught_up_with_once() -> None:
    shares = Shares()
    shares.update("01")
    assert await shares.take_gained() == {"0", "1"}
    shares.update("012")
    assert await shares.take_gained() == {"2"}
    shares.update("01")
    waiting = asyncio.ensure_future(shares.take_gained())
    await asyncio.sleep(0)
    assert not waiting.done()
    shares.update("012")
    assert await waiting == {"2"}


async def test_what_is_lost_and_gained_again_meanwhile_comes_again() -> None:
    shares = Shares()
    shares.update("0")
    assert await shares.take_gained() == {"0"}  # its containers are being listed
    shares.update("")
    shares.update("0")
    assert await shares.take_gained() == {"0"}


async def test_what_was_put_back_comes_again_unless_it_is_lost() -> None:
    shares = Shares()
    shares.update("01")
    gained = await shares.take_gained()
    shares.update("0")
    shares.put_back(gained)
    assert await shares.take_gained() == {"0"}


def test_only_what_is_held_is_ours() -> None:
    shares = Shares("f")
    assert shares.hold("hf-a-1-0123456789abcdef")
    assert not shares.hold("hf-a-1-0123456789abcde0")
