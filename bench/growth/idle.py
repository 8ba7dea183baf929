"""`hubflow serve all` with nothing to do, beside PostgreSQL and S3; how soon it is ready; how long `hubflow --help` takes."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from bench.client import migrated
from bench.growth.place import answers, cpu_seconds, resident
from shared.embedded import embedded_postgres, embedded_s3
from shared.embedded.process import free_ports
from tests.e2e.system import open_system

HUBFLOW = [sys.executable, "-m", "cli.main"]
SETTLE_SECONDS = 5.0


async def measure(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(embedded_postgres(folder, die_with_parent=True))
        s3 = await stack.enter_async_context(embedded_s3(folder, die_with_parent=True))
        await migrated(dsn)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        system = await stack.enter_async_context(open_system(folder, dsn, s3, "", start=False, log_level="warning"))
        [port] = free_ports(1)
        environment = {**system.environment, "HUBFLOW_HTTP_PORT": str(port)}
        ready, cpu = [], []
        for _ in range(rounds):
            begin = time.perf_counter()
            process = subprocess.Popen([*HUBFLOW, "serve", "all"], env=environment)
            try:
                await answers(http, f"http://127.0.0.1:{port}/readyz", pause=0.005)
                ready.append(time.perf_counter() - begin)
                cpu.append(cpu_seconds(process.pid))
                if len(ready) == rounds:
                    idle = await _idle(process.pid, seconds)
            finally:
                process.terminate()
                process.wait(30)
    return {
        "serve_all_ready_s": statistics.median(ready), "serve_all_ready_cpu_s": statistics.median(cpu),
        **idle, "help_s": _help(rounds),
    }  # fmt: skip


async def _idle(pid: int, seconds: float) -> dict[str, float]:
    await asyncio.sleep(SETTLE_SECONDS)
    before = cpu_seconds(pid)
    await asyncio.sleep(seconds)
    return {
        "idle_resident_mb": round(resident(pid) / 1e6, 1),
        "idle_cpu_percent": round(100 * (cpu_seconds(pid) - before) / seconds, 2),
    }


def _help(rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        subprocess.run([*HUBFLOW, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
