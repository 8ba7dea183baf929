"""Replicas of the status watcher that divide the work, as real processes on a real database."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from services.executor.handlers import on_job_ready
from services.status_watcher import store
from services.status_watcher.config import StatusWatcherSettings
from services.status_watcher.core import SHARES, share_of
from services.status_watcher.handlers import Context, catch_up, reconcile, remove_finished, share, tell, watch
from services.status_watcher.sharing import Shares
from shared.db.database import open_database
from shared.embedded import S3Address
from shared.embedded.postgres import tcp_dsn
from shared.errors import TemporaryError
from shared.events import JobFinished
from shared.runtime.protocol import Observation, Phase
from tests.chaos.proxy import opened_proxy
from tests.integration.jobs import ROOT, House, container_of, opened_house, tasks_of, until
from tests.integration.test_executor import executor_of
from tests.integration.test_status_watcher import ended, many_ready


@pytest.fixture
async def house(database: str, s3: S3Address, tmp_path: Path) -> AsyncIterator[House]:
    async with opened_house(database, s3, tmp_path) as opened:
        yield opened


def replica_of(house: House, name: str, **settings: Any) -> Context:
    host = house.host
    return Context(name, host.database, host.runtime, host.objects, StatusWatcherSettings(**settings))


@asynccontextmanager
async def replica_process(house: House) -> AsyncIterator[asyncio.subprocess.Process]:
    """The service as it is, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "serve", "status_watcher", cwd=ROOT,
        env=house.environment, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def parts(house: House) -> list[int]:
    """How many shares each holder has, the smallest part first."""
    rows = await house.database.fetch(
        "SELECT count(*) FROM watcher_shares WHERE holder <> '' GROUP BY holder ORDER BY count(*)"
    )
    return [row["count"] for row in rows]


async def divided(house: House, *wanted: int) -> None:
    async def look() -> bool:
        return await parts(house) == list(wanted)

    await until(look, 60)


# ---------------------------------------------------------------- who gets what


async def test_one_alone_has_all_and_several_have_even_parts(house: House) -> None:
    assert sorted(await store.share(house.database, "a", 60)) == sorted(SHARES)
    for count in range(2, 19):
        names = [f"replica {number:02}" for number in range(count - 1)] + ["a"]
        for _ in range(3):  # who has too much gives back, then who has too little takes
            held = {name: await store.share(house.database, name, 60) for name in names}
        sizes = sorted(map(len, held.values()))
        assert sum(sizes) == len(SHARES)
        assert sizes[-1] - sizes[0] <= 1
        assert len({each for part in held.values() for each in part}) == len(SHARES)


async def test_many_at_once_take_each_share_once_and_never_deadlock(house: House) -> None:
    names = [f"replica {number}" for number in range(8)]
    for _ in range(10):
        held = await asyncio.gather(*(store.share(house.database, name, 60) for name in names))
    assert sorted(map(len, held)) == [2] * 8
    assert sorted(each for part in held for each in part) == sorted(SHARES)


async def test_shares_of_one_that_lives_no_more_are_free(house: House) -> None:
    await store.share(house.database, "dead", 60)
    assert await store.share(house.database, "a", 60) == []
    await house.database.execute("UPDATE leases SET expires_at = now() WHERE holder = 'dead'")
    assert len(await store.share(house.database, "a", 60)) == len(SHARES)
    # It had slept: it has nothing, and gets its part again.
    assert await store.share(house.database, "dead", 60) == []
    assert len(await store.share(house.database, "a", 60)) == len(SHARES) / 2
    assert len(await store.share(house.database, "dead", 60)) == len(SHARES) / 2


async def test_what_is_given_back_is_free_at_once(house: House) -> None:
    await store.share(house.database, "a", 60)
    await store.give_back(house.database, "a")
    assert len(await store.share(house.database, "b", 60)) == len(SHARES)
    assert await house.database.fetchval("SELECT count(*) FROM leases WHERE holder = 'a'") == 0


# ---------------------------------------------------------------- each does its part


async def test_each_records_sweeps_and_removes_its_part_only(house: House) -> None:
    readies = await many_ready(house, 40)
    for each in readies:
        await on_job_ready(each, executor_of(house))
    names = [container_of(each) for each in readies]
    low = dataclasses.replace(replica_of(house, "low"), shares=Shares(SHARES[:8]))
    mine = {name for name in names if low.shares.hold(name)}
    assert 0 < len(mine) < 40
    async with tasks_of(watch(low), tell(low)):
        await until(lambda: _told(house, len(mine)))
    await house.database.execute(
        "UPDATE attempts SET submitted_at = now() - interval '1 h'; UPDATE attempt_outcomes SET finished_at = NULL"
    )
    await reconcile(low)
    assert {seen.name for seen in await low.pending.take(100)} == mine
    await house.database.execute(
        "INSERT INTO attempt_outcomes (container, run, job, attempt, finished_at) "
        "SELECT container, run, job, attempt, now() - interval '1 h' FROM attempts "
        "ON CONFLICT (container) DO UPDATE SET finished_at = excluded.finished_at"
    )
    await house.database.execute(
        "INSERT INTO logs (container, run, job, attempt, tenant, stage, holder, completed_at) "
        "SELECT container, run, job, attempt, 'acme', 's', 'x', now() FROM attempts"
    )
    await remove_finished(low)
    assert {seen.name for seen in await house.host.runtime.list()} == set(names) - mine


async def _told(house: House, count: int) -> bool:
    return await house.database.fetchval("SELECT count(*) FROM attempt_outcomes WHERE finished_at IS NOT NULL") == count


async def test_what_a_holder_has_heard_and_lost_is_found_by_the_next(house: House) -> None:
    """The watch of the next has shown the ends already, while they were not its to record; no sweep runs."""
    readies = await many_ready(house, 10)
    await store.share(house.database, "dead", 60)
    context = replica_of(house, "next")
    async with tasks_of(share(context), catch_up(context), watch(context), tell(context)):
        for each in readies:
            await on_job_ready(each, executor_of(house))
        await until(lambda: _all_ended(house))
        assert await _told(house, 0)
        await house.database.execute("UPDATE leases SET expires_at = now() WHERE holder = 'dead'")
        await until(lambda: _told(house, 10))
    assert len(await house.told(readies[0].run, JobFinished)) == 10


async def _all_ended(house: House) -> bool:
    listed = await house.host.runtime.list()
    return len(listed) == 10 and all(each.phase is Phase.FINISHED for each in listed)


async def test_catching_up_goes_on_until_it_has_worked(house: House) -> None:
    (ready,) = await many_ready(house, 1)
    context = replica_of(house, "a")

    class Away:
        calls = 0

        async def list(self) -> list[Observation]:
            self.calls += 1
            if self.calls < 3:
                raise TemporaryError("away")
            return [ended(ready)]

    context = dataclasses.replace(context, runtime=Away())
    async with tasks_of(catch_up(context), tell(context)):
        context.shares.update(SHARES)
        assert (await house.finished(ready))["state"] == "succeeded"


async def test_the_database_away_changes_nothing_but_the_time(house: House, server_folder: Path) -> None:
    tcp = urlsplit(tcp_dsn(server_folder))._replace(path=urlsplit(house.dsn).path)
    async with opened_proxy("database", tcp.port or 0) as proxy:
        through = tcp._replace(netloc=f"{tcp.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}")
        async with open_database(urlunsplit(through)) as database:
            context = dataclasses.replace(replica_of(house, "a", lease_seconds=2.0), database=database)
            readies = await many_ready(house, 5)
            async with tasks_of(share(context), catch_up(context), watch(context), tell(context)):
                await divided(house, len(SHARES))
                proxy.refuse()
                for each in readies:
                    await on_job_ready(each, executor_of(house))
                await until(lambda: _expired(house))  # as everybody else sees it
                assert len(context.shares.held) == len(SHARES)
                proxy.heal()
                await until(lambda: _told(house, 5), 30)
                await divided(house, len(SHARES))
    assert len(await house.told(readies[0].run, JobFinished)) == 5


async def _expired(house: House) -> bool:
    return bool(await house.database.fetchval("SELECT expires_at < now() FROM leases WHERE holder = 'a'"))


# ---------------------------------------------------------------- real processes


async def test_two_replicas_share_and_a_killed_one_is_replaced_in_seconds(house: House) -> None:
    half = len(SHARES) // 2
    async with replica_process(house) as victim, replica_process(house):
        await divided(house, half, half)
        readies = await many_ready(house, 16, "sleep 1")
        for each in readies[:8]:
            await on_job_ready(each, executor_of(house))
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        for each in readies[8:]:
            await on_job_ready(each, executor_of(house))
        await divided(house, len(SHARES))
        assert time.monotonic() - killed < 8  # 4 s of lease, 1 s to the next look, and a slow machine
        for each in readies:
            await house.finished(each)
    finished = await house.told(readies[0].run, JobFinished)
    assert sorted(event.job for event in finished) == sorted(each.job for each in readies)


async def test_an_orderly_stop_hands_over_without_waiting_for_the_lease(house: House) -> None:
    half = len(SHARES) // 2
    async with replica_process(house) as leaving, replica_process(house) as remaining:
        await divided(house, half, half)
        leaving.send_signal(signal.SIGTERM)
        assert await leaving.wait() == 0
        left = time.monotonic()
        await divided(house, len(SHARES))
        assert time.monotonic() - left < 3
        remaining.send_signal(signal.SIGTERM)
        assert await remaining.wait() == 0
    assert await parts(house) == []


async def test_both_killed_at_once_leave_nothing_undone(house: House) -> None:
    half = len(SHARES) // 2
    readies = await many_ready(house, 16, "sleep 0.5")
    async with replica_process(house) as one, replica_process(house) as two:
        await divided(house, half, half)
        for each in readies:
            await on_job_ready(each, executor_of(house))
        for process in (one, two):
            process.send_signal(signal.SIGKILL)
    async with replica_process(house), replica_process(house):
        for each in readies:
            await house.finished(each, 30)
    assert {share_of(container_of(each)) for each in readies} & set(SHARES[:8])
    assert len(await house.told(readies[0].run, JobFinished)) == 16
