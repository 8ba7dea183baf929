"""What all measurements share: workflows of jobs that do nothing, and an API client that waits for their end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from shared.db.database import open_database
from shared.db.migrate import migrate

NOTHING = "':'"


def workflow(name: str, jobs: int, *, serial: bool) -> str:
    lines = [f"name: {name}", "stages:", "- name: s", f"  sequencing: {'serial' if serial else 'parallel'}", "  jobs:"]
    return "\n".join(lines + [f"  - {{name: j{n}, script: {NOTHING}}}" for n in range(jobs)]) + "\n"


class Client:
    """An API client that waits, over kept-alive connections."""

    def __init__(self, url: str, token: str, tenant: str, http: aiohttp.ClientSession) -> None:
        self._url, self._http = f"{url}/api/v1", http
        self._headers = {"Authorization": f"Bearer {token}", "Hubflow-Tenant": tenant}

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self._http.request(method, self._url + path, json=body, headers=self._headers) as response:
            answer = await response.json()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {response.status} {answer}")
            return answer

    async def run(self, name: str) -> None:
        """Start and wait until run.finished is visible."""
        run = (await self.ask("POST", f"/workflows/{name}/runs", {}))["id"]
        while True:
            view = await self.ask("GET", f"/runs/{run}?wait=30&until=finished")
            if view["finished_at"]:
                if view["state"] != "succeeded":
                    raise RuntimeError(f"the run {view['state']}: {view['message']}")
                return


async def timed(work: Callable[[], Awaitable[Any]], rounds: int) -> list[float]:
    """Seconds of each round, after one that does not count."""
    await work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        await work()
        times.append(time.perf_counter() - begin)
    return times


async def migrated(dsn: str) -> None:
    """Bring an empty database to this version."""
    async with open_database(dsn, max_connections=1) as database:
        await migrate(database)
