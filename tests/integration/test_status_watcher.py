"""The status watcher on a real database, runtime, wrapper and S3."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from services.executor.handlers import on_job_ready
from services.status_watcher import handlers
from services.status_watcher.config import StatusWatcherSettings
from services.status_watcher.core import SHARES
from services.status_watcher.handlers import (
    Context,
    on_observations,
    reconcile,
    remove_finished,
    sweep,
    tell,
    watch,
)
from services.status_watcher.sharing import Shares
from shared import object_keys
from shared.db.database import open_database
from shared.embedded import S3Address
from shared.embedded.postgres import tcp_dsn
from shared.errors import TemporaryError
from shared.events import JobFinished, JobReady, JobRunning
from shared.runtime.protocol import ContainerSpec, Observation, Phase
from tests.chaos.proxy import opened_proxy
from tests.integration.jobs import TENANT, House, container_of, opened_house, tasks_of, until
from tests.integration.test_executor import executor_of


@pytest.fixture
async def house(database: str, s3: S3Address, tmp_path: Path) -> AsyncIterator[House]:
    async with opened_house(database, s3, tmp_path) as opened:
        yield opened


def watcher_of(house: House, **settings: Any) -> Context:
    host = house.host
    shares = Shares(SHARES)  # it shares with nobody; test_watcher_shares.py has those that do
    return Context("here", host.database, host.runtime, host.objects, StatusWatcherSettings(**settings), shares)


async def many_ready(house: House, count: int, script: str = "true") -> list[JobReady]:
    jobs = ", ".join(f"j{number}: {{script: {json.dumps(script)}}}" for number in range(count))
    run = await house.run(f"name: many\nstages: [{{name: s, jobs: {{{jobs}}}}}]\n")
    return [await house.ready(run, f"j{number}") for number in range(count)]


def seen(ready: JobReady, phase: Phase, uid: str = "u1", **values: Any) -> Observation:
    labels = {"tenant": TENANT, "run": str(ready.run), "job": ready.job, "attempt": str(ready.attempt)}
    return Observation(container_of(ready), uid, phase, labels, **values)


def ended(ready: JobReady, uid: str = "u1", code: int = 0, **result: Any) -> Observation:
    document = {"version": 1, "outcome": "exited", "exit_code": code, "started": True, "outputs": {}, **result}
    return seen(ready, Phase.FINISHED, uid, exit_code=code, result=document)


async def test_t01_t02_ends_that_nobody_watched_are_told_after_a_restart(house: House) -> None:
    readies = await many_ready(house, 20, 'echo "[JOB_OUT] N = $HUBFLOW_JOB"')
    await asyncio.gather(*(on_job_ready(each, executor_of(house)) for each in readies))
    await until(lambda: _all_ended(house))
    context = watcher_of(house)
    async with tasks_of(watch(context), tell(context)):
        for ready in readies:
            outcome = await house.finished(ready)
            assert (outcome["state"], outcome["outputs"]) == ("succeeded", {"N": ready.job})
    run = readies[0].run
    assert len(await house.told(run, JobFinished)) == 20
    assert await house.told(run, JobRunning) == []  # it is over: that is all there is to tell


async def _all_ended(house: House) -> bool:
    return all(each.phase is Phase.FINISHED for each in await house.host.runtime.list())


async def test_running_then_finished_are_told_in_order_once(house: House) -> None:
    (ready,) = await many_ready(house, 1, "sleep 0.3")
    one, two = watcher_of(house), watcher_of(house)  # T19
    async with tasks_of(watch(one), tell(one), watch(two), tell(two)):
        await on_job_ready(ready, executor_of(house))
        await house.finished(ready)
        await asyncio.sleep(0.2)  # time for the slower of the two to tell it again
    kinds = [event.TYPE for event in await house.told(ready.run) if event.TYPE in {"job.running", "job.finished"}]
    assert kinds == ["job.running", "job.finished"]


async def test_t18_t29_nothing_goes_back(house: House) -> None:
    (ready,) = await many_ready(house, 1)
    context = watcher_of(house)
    for observation in (
        ended(ready, code=3), seen(ready, Phase.RUNNING), ended(ready), seen(ready, Phase.GONE), seen(ready, Phase.PENDING),
    ):  # fmt: skip
        context.pending.put(observation)
        await on_observations(
            await context.pending.take(10), context
        ) if observation.phase is not Phase.PENDING else None
    assert (await house.outcome(ready))["exit_code"] == 3
    assert len(await house.told(ready.run, JobFinished)) == 1
    assert await house.told(ready.run, JobRunning) == []


async def test_t21_another_container_of_the_same_name_is_not_believed(house: House) -> None:
    (ready,) = await many_ready(house, 1)
    context = watcher_of(house)
    await on_observations([seen(ready, Phase.RUNNING, "u1")], context)
    await on_observations([ended(ready, "u2")], context)
    assert (await house.outcome(ready))["finished_at"] is None
    await on_observations([ended(ready, "u1", code=1)], context)
    assert (await house.outcome(ready))["exit_code"] == 1


async def test_t19_each_outcome_once_however_many_tell_it(house: House) -> None:
    readies = await many_ready(house, 40)
    contexts = [watcher_of(house) for _ in range(4)]
    batches = [readies[::-1], readies, readies[::2], readies[1::2]]
    await asyncio.gather(
        *(
            on_observations([ended(each) for each in batch], context)
            for batch, context in zip(batches, contexts, strict=True)
        )
    )
    finished = await house.told(readies[0].run, JobFinished)
    assert sorted(event.job for event in finished) == sorted(each.job for each in readies)


async def test_t05_a_vanished_container_is_lost(house: House) -> None:
    (ready,) = await many_ready(house, 1, "sleep 60")
    context = watcher_of(house)
    async with tasks_of(watch(context), tell(context)):
        await on_job_ready(ready, executor_of(house))
        await until(lambda: house.outcome(ready))
        await house.host.runtime.remove(container_of(ready))
        outcome = await house.finished(ready)
    assert (outcome["state"], outcome["reason"]) == ("lost", "ContainerGone")
    (finished,) = await house.told(ready.run, JobFinished)
    assert finished.started


@pytest.mark.parametrize(("runtime", "started"), [("process", True), ("docker", True), ("kubernetes", False)])
async def test_t15_a_container_that_vanished_unwatched_is_found_lost_by_the_list(
    house: House, monkeypatch: pytest.MonkeyPatch, runtime: str, *, started: bool
) -> None:
    """What a runtime has accepted has begun, except for a pod: else its code would begin again without a retry of its own."""
    monkeypatch.setattr(house.host.runtime, "name", runtime)
    first, second = await many_ready(house, 2, "sleep 60")
    for each in (first, second):
        await on_job_ready(each, executor_of(house))
    await house.host.runtime.remove(container_of(first))
    context = watcher_of(house)
    await reconcile(context)  # too early to judge
    await house.database.execute("UPDATE attempts SET submitted_at = now() - interval '16 s'")
    async with tasks_of(tell(context)):
        await reconcile(context)
        assert (await house.finished(first))["state"] == "lost"
    assert (await house.outcome(second))["finished_at"] is None
    (finished,) = await house.told(first.run, JobFinished)
    assert (finished.started, finished.started_at is not None) == (started, started)


async def test_the_sweep_finds_an_end_that_the_watch_has_missed(house: House) -> None:
    (ready,) = await many_ready(house, 1, "exit 5")
    await on_job_ready(ready, executor_of(house))
    await until(lambda: _all_ended(house))
    await house.database.execute("UPDATE attempts SET submitted_at = now() - interval '16 s'")
    context = watcher_of(house, sweep_seconds=0.1)
    async with tasks_of(sweep(context), tell(context)):
        assert (await house.finished(ready))["exit_code"] == 5


async def test_a_container_goes_when_told_and_stored_and_not_before(house: House) -> None:
    (ready,) = await many_ready(house, 1)
    context = watcher_of(house)
    async with tasks_of(watch(context), tell(context)):
        await on_job_ready(ready, executor_of(house))
        await house.finished(ready)
    name = container_of(ready)
    await remove_finished(context)
    assert await house.host.runtime.inspect(name)  # too young, and no log
    await house.database.execute("UPDATE attempt_outcomes SET finished_at = now() - interval '1 h'")
    await remove_finished(context)
    assert await house.host.runtime.inspect(name)  # T56: its log is not stored
    await house.database.execute(
        "INSERT INTO logs (container, run, job, attempt, tenant, stage, holder, completed_at) "
        "VALUES ($1, $2, 'j0', 1, 'acme', 's', 'x', now())",
        name, ready.run,
    )  # fmt: skip
    await remove_finished(context)
    assert await house.host.runtime.inspect(name) is None
    assert (await house.outcome(ready))["removed_at"] is not None


async def test_t91_orphans_go_and_live_ones_stay(house: House) -> None:
    live, over = await many_ready(house, 2, "sleep 60")
    executor = executor_of(house)
    for each in (live, over):
        await on_job_ready(each, executor)
    stranger = ContainerSpec("hf-stranger-1-0123456789abcdef", "", {"command": ["sleep", "60"]}, {}, script=True)
    await house.host.runtime.start(
        dataclasses.replace(stranger, document={**(await _document()), "command": ["sleep", "60"]})
    )
    context = watcher_of(house, orphan_seconds=0.3)
    await on_observations([ended(over, uid="")], context)  # the attempt is over for us, but its container runs
    await reconcile(context)
    assert len(await house.host.runtime.list()) == 3  # within the grace nothing is touched

    async def only_live() -> bool:
        await reconcile(context)
        return [each.name for each in await house.host.runtime.list() if each.phase is not Phase.FINISHED] == [
            container_of(live)
        ]

    await until(only_live)
    assert await house.host.runtime.inspect(stranger.name) is None


async def test_an_orphan_that_cannot_be_ended_keeps_nobody_else_from_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = house.host.runtime
    names = [f"hf-stranger-{number}-0123456789abcdef" for number in range(3)]
    for name in names:
        await runtime.start(ContainerSpec(name, "", {**(await _document()), "command": ["true"]}, {}, script=True))
    await until(lambda: _all_ended(house))
    genuine = runtime.remove

    async def remove(name: str) -> None:
        if name == names[0]:
            raise TemporaryError("the cluster refuses DELETE: it is forbidden")
        await genuine(name)

    monkeypatch.setattr(runtime, "remove", remove)
    context = watcher_of(house, orphan_seconds=0.1)

    async def only_that_one() -> bool:
        await reconcile(context)
        return [each.name for each in await runtime.list()] == [names[0]]

    await until(only_that_one)
    assert (await runtime.inspect(names[0])) is not None, "what could not be removed is not forgotten"


async def test_a_comparison_that_fails_keeps_no_finished_container(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ready,) = await many_ready(house, 1)
    context = watcher_of(house, sweep_seconds=0.1)
    async with tasks_of(watch(context), tell(context)):
        await on_job_ready(ready, executor_of(house))
        await house.finished(ready)
    await house.database.execute("UPDATE attempt_outcomes SET finished_at = now() - interval '1 h'")
    await house.database.execute(
        "INSERT INTO logs (container, run, job, attempt, tenant, stage, holder, completed_at) "
        "VALUES ($1, $2, 'j0', 1, 'acme', 's', 'x', now())",
        container_of(ready), ready.run,
    )  # fmt: skip

    async def refused(_: Context) -> None:
        raise TemporaryError("the cluster refuses GET: it is forbidden")

    async def gone() -> bool:
        return await house.host.runtime.inspect(container_of(ready)) is None

    monkeypatch.setattr(handlers, "reconcile", refused)
    async with tasks_of(sweep(context)):
        await until(gone)
    assert await house.database.fetchval("SELECT removed_at IS NOT NULL FROM attempt_outcomes"), "it is not noted"


async def _document() -> dict[str, Any]:
    return {
        "version": 1,
        "attempt": "stranger",
        "workdir": "",
        "create_workdir": True,
        "env": {},
        "restore": [],
        "save": [],
    }


async def test_t20_a_thousand_leftovers_are_told_in_seconds(house: House) -> None:
    readies = await many_ready(house, 1000)
    context = watcher_of(house)
    context.pending.put(*(ended(each) for each in readies))
    async with asyncio.timeout(10), tasks_of(tell(context)):
        await until(lambda: _count(house, 1000), 10)
    assert len(await house.told(readies[0].run, JobFinished)) == 1000


async def _count(house: House, wanted: int) -> bool:
    return (
        await house.database.fetchval("SELECT count(*) FROM attempt_outcomes WHERE finished_at IS NOT NULL") == wanted
    )


async def test_t28_one_poisoned_observation_fails_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.status_watcher import core

    readies = await many_ready(house, 5)
    genuine = core.outcome_of

    def poisoned(observation: Observation) -> Any:
        if observation.name == container_of(readies[2]):
            raise ZeroDivisionError
        return genuine(observation)

    monkeypatch.setattr(core, "outcome_of", poisoned)
    context = watcher_of(house)
    context.pending.put(*(ended(each) for each in readies))
    async with tasks_of(tell(context)):
        await until(lambda: _count(house, 4))
    told = [await house.outcome(each) is not None for each in readies]
    assert told == [True, True, False, True, True]


async def test_t17_a_watch_that_breaks_is_reopened_and_one_that_ends_kills(house: House) -> None:
    (ready,) = await many_ready(house, 1)
    runtime = house.host.runtime

    class Breaking:
        calls = 0

        async def watch(self) -> AsyncIterator[Observation]:
            self.calls += 1
            if self.calls == 1:
                raise TemporaryError("broken")
            if self.calls == 2:
                yield ended(ready)
                raise TemporaryError("broken again")

        def __getattr__(self, name: str) -> Any:
            return getattr(runtime, name)

    context = dataclasses.replace(watcher_of(house), runtime=Breaking())
    async with tasks_of(tell(context)):
        with pytest.raises(RuntimeError, match="ended by itself"):
            await watch(context)
        assert (await house.finished(ready))["state"] == "succeeded"


async def test_t04_the_database_away_delays_outcomes_and_loses_none(house: House) -> None:
    (ready,) = await many_ready(house, 1, "exit 3")
    context = watcher_of(house)
    database = context.database
    transaction = database.transaction
    failures = 3

    def failing(*arguments: Any, **values: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise TemporaryError("the database does not answer")
        return transaction(*arguments, **values)

    await on_job_ready(ready, executor_of(house))
    database.transaction = failing  # type: ignore[method-assign]
    async with tasks_of(watch(context), tell(context)):
        assert (await house.finished(ready))["exit_code"] == 3
    assert failures == 0


async def test_t04_a_database_cut_off_delays_outcomes_and_no_sweep_removes_what_is_not_recorded(
    house: House, server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = 0

    async def counted(context: Context) -> None:
        nonlocal sweeps
        try:
            await reconcile(context)
        except TemporaryError:
            sweeps += 1
            raise

    monkeypatch.setattr(handlers, "reconcile", counted)
    tcp = urlsplit(tcp_dsn(server_folder))._replace(path=urlsplit(house.dsn).path)
    async with opened_proxy("database", tcp.port or 0) as proxy:
        through = tcp._replace(netloc=f"{tcp.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}")
        async with open_database(urlunsplit(through)) as database:
            settings = {"sweep_seconds": 0.1, "orphan_seconds": 0.1, "lost_seconds": 0.1}
            context = dataclasses.replace(watcher_of(house, **settings), database=database)
            readies = await many_ready(house, 5, "exit 3")
            async with tasks_of(watch(context), tell(context), sweep(context)):
                proxy.refuse()
                await asyncio.gather(*(on_job_ready(each, executor_of(house)) for each in readies))
                await until(lambda: _all_ended(house))
                before = sweeps
                await until(lambda: _so_many(lambda: sweeps, before + 3), 40)
                assert await _count(house, 0)
                proxy.heal()
                for each in readies:
                    assert (await house.finished(each, 40))["exit_code"] == 3
    assert len(await house.told(readies[0].run, JobFinished)) == 5
    assert len(await house.host.runtime.list()) == 5


async def _so_many(count: Callable[[], int], wanted: int) -> bool:
    return count() >= wanted


async def test_a_result_too_large_for_its_place_is_fetched(house: House) -> None:
    good, bad, gone, deep = await many_ready(house, 4)
    context = watcher_of(house)

    async def overflowing(ready: JobReady, stored: bytes | None, digest: str) -> Observation:
        key = object_keys.result(TENANT, ready.run, container_of(ready))
        if stored is not None:
            await house.host.objects.put(key, stored)
        # The address in the document is not believed: it could name another tenant's object.
        return ended(ready, overflow={"key": "other/key", "size": 1, "sha256": digest})

    whole = json.dumps({"version": 1, "outcome": "exited", "exit_code": 0, "outputs": {"BIG": "x" * 9000}}).encode()
    context.pending.put(
        await overflowing(good, whole, hashlib.sha256(whole).hexdigest()),
        await overflowing(bad, whole, "0" * 64),
        await overflowing(gone, None, ""),
        await overflowing(deep, b"[" * 3_000_000, ""),  # Python's reader gives up on it in a way of its own
    )
    async with tasks_of(tell(context)):
        assert (await house.finished(good))["outputs"] == {"BIG": "x" * 9000}
        for each in (bad, gone, deep):
            outcome = await house.finished(each)
            assert outcome["state"] == "succeeded"
            assert "lost" in outcome["result"]["warnings"][0]


async def test_t08_a_wrapper_killed_with_9_is_not_silent(house: House) -> None:
    (ready,) = await many_ready(house, 1, "sleep 60")
    context = watcher_of(house)
    async with tasks_of(watch(context), tell(context)):
        await on_job_ready(ready, executor_of(house))
        await until(lambda: house.outcome(ready))
        for pid in _wrappers_of(container_of(ready)):
            os.kill(pid, signal.SIGKILL)
        outcome = await house.finished(ready)
    assert (outcome["state"], outcome["reason"]) == ("failed", "WrapperFailed")
    assert outcome["message"]


def _wrappers_of(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"hubflow-wrapper" in command and name.encode() in command:
            found.append(int(folder.name))
    return found
