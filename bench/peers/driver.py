"""How a peer's client is asked: a scenario's name on a line in, its seconds on a line out. Runs in the peer's environment."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping

JOBS = {"L1": (1, False), "L10": (10, True), "F100": (100, False)}
"""Number of jobs of one run, and whether one waits for the other."""
RUNS_AT_ONCE = 200


def nothing() -> None:
    """The job: what Hubflow runs for the script `:`."""
    subprocess.run(["/bin/sh", "-c", ":"], check=True)


async def serve(scenarios: Mapping[str, Callable[[], Awaitable[object]]]) -> None:
    """Until standard input ends."""
    print("ready", flush=True)
    while name := (await asyncio.to_thread(sys.stdin.readline)).strip():
        begin = time.perf_counter()
        await scenarios[name]()
        print(time.perf_counter() - begin, flush=True)
