"""The servers of `hubflow dev`: one that dies is started again, on the same data and at the same address.

Services connect again by themselves, so that nothing else has to be told. Only `hubflow dev` does this: whoever opens a
server in another way (tests, benches) may want to see it dead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import click

from shared.embedded.process import Server
from shared.errors import HubflowError
from shared.log import get_logger

LOOK_SECONDS = 0.5
"""Between two looks at whether a server lives."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a server that dies again and again is started once more."""
WELL_SECONDS = 60.0
"""A server that has lived that long is well: its next death is a new one."""

Address = TypeVar("Address")
_log = get_logger("dev")


@dataclass(frozen=True, slots=True)
class Kept(Generic[Address]):
    """A server to keep up."""

    title: str
    data: Path
    open: Callable[[], AbstractAsyncContextManager[Address]]
    running: Callable[[], Sequence[Server]]
    """Its processes, once it is open."""


@asynccontextmanager
async def kept_up(kept: Kept[Address]) -> AsyncIterator[Address]:
    """Open the server, and again whenever it dies. Raises what its first start raises."""
    started: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_keep_up(kept, started), name=f"keeping up {kept.title}")
    try:
        waits: list[asyncio.Future[object]] = [task, started]  # type: ignore[list-item] # whatever they give
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await task
        yield started.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _keep_up(kept: Kept[Address], started: asyncio.Future[Address]) -> None:
    pause = 0.0
    while True:
        try:
            lived = await _one_life(kept, started)
            pause = next_pause(pause, lived)
            _say(f"{kept.title} has died, and is started again in {pause:g} s")
        except (HubflowError, OSError) as error:
            if not started.done():
                raise
            pause = next_pause(pause, 0)
            _say(f"{kept.title} does not start, and is tried again in {pause:g} s: {error}")
        await asyncio.sleep(pause)
        if not kept.data.exists():
            # Somebody has removed the state folder. A fresh server would know nothing of what the services know.
            _say(f"{kept.title} is not started again: {kept.data} is gone. Stop `hubflow dev` and start it anew")
            return


async def _one_life(kept: Kept[Address], started: asyncio.Future[Address]) -> float:
    """From the server's start to its death; gives the seconds between."""
    async with kept.open() as address:
        began = time.monotonic()
        servers = kept.running()
        if not started.done():
            started.set_result(address)
        elif address == started.result():
            _say(f"{kept.title} runs again")
        else:
            _say(f"{kept.title} runs again, but its port was taken meanwhile: stop `hubflow dev` and start it again")
        while all(server.alive() for server in servers):  # noqa: ASYNC110 -- one taken over is no child of ours to wait for
            await asyncio.sleep(LOOK_SECONDS)
        return time.monotonic() - began


def next_pause(last: float, lived: float) -> float:
    """Seconds until the next start of a server that `lived` seconds, `last` being the pause before."""
    if lived > WELL_SECONDS:
        return 0.0
    return min(max(2 * last, FIRST_PAUSE), LONGEST_PAUSE)


def _say(text: str) -> None:
    click.echo(text, err=True)  # to who watches, or dev.log
    _log.warning("server kept up", what=text)
