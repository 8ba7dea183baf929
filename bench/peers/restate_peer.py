"""Restate: its server with its log on disk, and one process of the Python SDK behind hypercorn.

    hypercorn --bind ADDRESS bench.peers.restate_peer:app      the service
    python -m bench.peers.restate_peer                         the client

A job is a step of its own in the invocation's journal (`ctx.run_typed`), which is what Restate keeps over a crash.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiohttp
import restate

from bench.peers.driver import JOBS, RUNS_AT_ONCE, nothing, serve

service = restate.Service("Jobs")


async def run(context: restate.Context, request: dict[str, Any]) -> None:
    steps = (context.run_typed("job", nothing) for _ in range(request["jobs"]))
    if request["serial"]:
        for step in steps:
            await step
    else:
        await restate.gather(*steps)


service.handler()(run)
app = restate.app([service])


async def ask() -> None:
    """Over kept-alive connections, as Hubflow's client."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as http:

        async def start(name: str) -> None:
            jobs, serial = JOBS[name]
            url = f"{os.environ['PEER_SERVER']}/Jobs/run"
            async with http.post(url, json={"jobs": jobs, "serial": serial}) as answer:
                if answer.status != 200:
                    raise RuntimeError(await answer.text())

        async def many() -> None:
            await asyncio.gather(*(start("L1") for _ in range(RUNS_AT_ONCE)))

        await serve({"L1": lambda: start("L1"), "L10": lambda: start("L10"), "F100": lambda: start("F100"), "T": many})


if __name__ == "__main__":
    asyncio.run(ask())
