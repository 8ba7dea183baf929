"""The scheduler on a real PostgreSQL: transactions, quotas, groups, timers, retries."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.executor.store import note_submitted
from services.scheduler import store
from services.scheduler.clock import SLOW, DatabaseClock
from services.scheduler.handlers import PASS_LIMIT, on_time
from services.scheduler.main import SERVICE
from services.scheduler.store import lock_tenants
from shared.db.database import Database, open_database
from shared.events import (
    JobFinished,
    JobReady,
    JobRunning,
    JobStopRequested,
    JobSubmitted,
    RunCancelRequested,
    RunCreated,
    RunFinished,
    TenantQuotaChanged,
)
from shared.runtime.protocol import container_name
from shared.service import Host, Parts, Service
from shared.workflow.conditions import FIELDS
from tests.integration.scheduling import Hands, Scheduling
from tests.integration.serving import serving

ONE_JOB = "name: one\nstages:\n- name: s\n  jobs:\n  - name: a\n    script: 'true'\n"
GROUPED = "concurrency: deploy\n" + ONE_JOB.replace("name: one", "name: grouped")
SUPERSEDING = "concurrency: {group: pr, policy: cancel_superseded}\n" + ONE_JOB
BACKWARDS = "name: w\nstages: [{name: s, jobs: [{name: b, script: 'true'}, {name: a, script: 'true'}]}]\n"
TWO_STAGES = """
name: two
stages:
- name: test
  jobs:
  - {name: lint, script: "true"}
  - {name: unit, script: "true"}
- name: build
  jobs:
  - {name: compile, script: "true"}
"""
WITH_PAUSE = """
name: paused
stages:
- name: ask
  type: pause
  pause: {timeout: 1h}
  jobs:
  - {name: mail, script: "true"}
- name: deploy
  jobs:
  - {name: deploy, script: "true"}
"""


@pytest.fixture
async def scheduling(database: str) -> AsyncIterator[Scheduling]:
    async with open_database(database) as opened:
        scheduling = Scheduling(opened)
        await scheduling.tenant()
        yield scheduling


async def test_a_run_goes_through_its_stages_and_seq_has_no_gaps(scheduling: Scheduling) -> None:
    run = await scheduling.start(await scheduling.workflow(TWO_STAGES))
    assert await scheduling.ready(run) == [("lint", 1), ("unit", 1)]
    await scheduling.finish(run, "lint")
    await scheduling.finish(run, "unit")
    await scheduling.finish(run, "compile")
    assert await scheduling.state(run) == "succeeded"
    events = await scheduling.told(run)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.state for event in events if isinstance(event, RunFinished)] == ["succeeded"]


@pytest.mark.parametrize("quota", [{}, {"jobs": 5}], ids=["free", "locked"])
async def test_what_is_over_is_counted_once_by_how_it_ended(scheduling: Scheduling, quota: dict[str, int]) -> None:
    await scheduling.tenant(**quota)
    before = ended()
    run = await scheduling.start(await scheduling.workflow(TWO_STAGES))
    await scheduling.finish(run, "lint")
    await scheduling.finish(run, "unit", "failed", reason="made up by a job")
    assert await scheduling.state(run) == "failed"
    await scheduling.finish(run, "unit", "failed")  # comes too late, and is another event
    counted = ended() - before
    assert counted == Counter(
        {"failed": 1, "succeeded ": 1, "failed other": 1, "skipped StageFailed": counted["skipped StageFailed"]}
    )
    assert counted["skipped StageFailed"] == await scheduling.database.fetchval(
        "SELECT count(*) FROM jobs WHERE run = $1 AND state = 'skipped'", run
    )


def ended() -> Counter[str]:
    """Of runs by state, of jobs by state and reason."""
    samples = [
        sample
        for metric in REGISTRY.collect()
        if metric.name in {"hubflow_runs_finished", "hubflow_jobs_finished"}
        for sample in metric.samples
        if sample.name.endswith("_total")
    ]
    return Counter({" ".join(sample.labels[name] for name in ("state", "reason") if name in sample.labels): int(sample.value)
                    for sample in samples})  # fmt: skip


async def test_t23_an_event_that_comes_twice_at_once_counts_once(scheduling: Scheduling) -> None:
    run = await scheduling.start(await scheduling.workflow(ONE_JOB))
    created = await scheduling.told(run, RunCreated)
    await asyncio.gather(*(scheduling.hear(created) for _ in range(10)))
    assert await scheduling.ready(run) == [("a", 1)]
    assert await scheduling.database.fetchval("SELECT count(*) FROM attempts WHERE run = $1", run) == 1


async def test_t19_who_has_waited_for_a_run_sees_what_the_other_has_made_of_it(
    scheduling: Scheduling, database: str
) -> None:
    """Two schedulers: one is about to commit the run's first step, the other waits for its lock. Found by make chaos: the
    second took the run for a new one, told its first stage again, and put jobs that were over back to ready."""
    await scheduling.tenant(runs=5)
    workflow = await scheduling.workflow(ONE_JOB)
    async with open_database(database) as second, scheduling.database.connection() as held:
        other = Scheduling(second)
        gate = held.transaction()
        await gate.start()
        await lock_tenants(held, ["acme"])
        first = asyncio.create_task(scheduling.start(workflow))
        await until_waiting(second, 1)
        run = await second.fetchval("SELECT id FROM runs")
        place = {"tenant": "acme", "run": run, "stage": "s", "job": "a", "attempt": 1}
        hearing = asyncio.create_task(other.hear([JobFinished(**place, state="succeeded")]))
        await until_waiting(second, 2)
        await gate.commit()
        await asyncio.gather(first, hearing)
    assert await scheduling.state(run) == "succeeded"
    assert [type(event).__name__ for event in await scheduling.told(run)].count("StageRunning") == 1
    assert await scheduling.ready(run) == [("a", 1)]


@pytest.mark.parametrize("held", ["a", "b"])
async def test_attempts_that_are_stopped_and_submitted_at_once_wait_for_one_another_in_one_order(
    scheduling: Scheduling, database: str, held: str
) -> None:
    """Whoever waits for the attempt that is held must not have what the other takes next: an attempt, or the run's counter."""
    run = await scheduling.start(await scheduling.workflow(BACKWARDS))
    ready = await scheduling.told(run, JobReady)
    submitted = {
        container_name(str(run), each.job, 1): JobSubmitted(
            tenant="acme", run=run, stage="s", job=each.job, attempt=1, container=each.job
        )
        for each in ready
    }
    assert list(submitted) != sorted(submitted)
    async with open_database(database) as second, scheduling.database.connection() as holding:
        gate = holding.transaction()
        await gate.start()
        await holding.execute("SELECT FROM attempts WHERE run = $1 AND job = $2 FOR UPDATE", run, held)
        submitting = asyncio.create_task(note_submitted(second, submitted))
        await until_waiting(second, 1)
        stopping = asyncio.create_task(scheduling.cancel(run))
        await until_waiting(second, 2)
        await gate.commit()
        await asyncio.gather(submitting, stopping)
    assert await scheduling.state(run) == "cancelling"
    assert len(await scheduling.told(run, JobSubmitted)) == 2


async def test_t19_what_means_nothing_to_a_remembered_run_is_asked_of_the_run_as_it_is(
    scheduling: Scheduling, database: str
) -> None:
    """Two schedulers: one remembers the run as it was before the other took the next step. Found by make chaos: the end of
    a job that the first did not know to have begun was dropped, and its run never ended."""
    run = await scheduling.start(await scheduling.workflow(TWO_STAGES))
    async with open_database(database) as second:
        other = Scheduling(second)
        await other.finish(run, "lint")
        await other.finish(run, "unit")
        assert ("compile", 1) in await scheduling.ready(run)
        await scheduling.finish(run, "compile")
    assert await scheduling.state(run) == "succeeded"


async def until_waiting(database: Database, count: int) -> None:
    """So many sessions wait for a lock."""
    async with asyncio.timeout(10):
        while await database.fetchval("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted") < count:
            await asyncio.sleep(0.01)


async def test_many_runs_in_one_batch(scheduling: Scheduling) -> None:
    workflow = await scheduling.workflow(ONE_JOB)
    runs = await asyncio.gather(*(scheduling.start(workflow) for _ in range(30)))
    await asyncio.gather(*(scheduling.finish(run, "a") for run in runs))
    assert {await scheduling.state(run) for run in runs} == {"succeeded"}


async def test_t28_an_event_of_an_unknown_run_hurts_nobody(scheduling: Scheduling) -> None:
    run = await scheduling.start(await scheduling.workflow(ONE_JOB))
    await scheduling.cancel(uuid.uuid4())
    await scheduling.finish(run, "a")
    assert await scheduling.state(run) == "succeeded"


async def test_a_quota_of_runs_holds_the_next_and_says_why(scheduling: Scheduling) -> None:
    await scheduling.tenant(runs=1)
    workflow = await scheduling.workflow(ONE_JOB)
    first, second = await scheduling.start(workflow), await scheduling.start(workflow)
    row = await scheduling.run(second)
    assert (row["state"], row["reason"], row["message"]) == ("pending", "Quota", "1 of the tenant's 1 runs are active")
    await scheduling.finish(first, "a")
    await scheduling.admission()
    assert await scheduling.ready(second) == [("a", 1)]
    assert (await scheduling.run(second))["reason"] == ""


async def test_a_quota_of_jobs_lets_in_one_after_the_other(scheduling: Scheduling) -> None:
    await scheduling.tenant(jobs=1)
    run = await scheduling.start(await scheduling.workflow(TWO_STAGES))
    assert await scheduling.ready(run) == [("lint", 1)]
    assert "quota of jobs is used up: 1 of 1" in await scheduling.database.fetchval(
        "SELECT message FROM jobs WHERE run = $1 AND name = 'unit'", run
    )
    await scheduling.finish(run, "lint")
    await scheduling.admission()
    assert await scheduling.ready(run) == [("lint", 1), ("unit", 1)]


@pytest.mark.parametrize("how", ["success", "failure", "cancel", "timeout", "backoff", "paused", "lost"])
async def test_t38_t39_a_place_is_given_back_however_it_ends(scheduling: Scheduling, how: str) -> None:
    await scheduling.tenant(jobs=1, runs=1)
    retries = ", retries: {max: 1, backoff: {delay: 1h}}" if how == "backoff" else ""
    kind = "  type: pause\n" if how == "paused" else ""
    job = f"{{name: a, script: 'true', pending_timeout: 60s{retries}}}"
    source = f"name: holder\nstages:\n- name: s\n{kind}  jobs:\n  - {job}\n"
    holder = await scheduling.start(await scheduling.workflow(source))
    waiter = await scheduling.start(await scheduling.workflow(ONE_JOB))
    assert await scheduling.ready(waiter) == []
    if how == "success" or how == "paused":
        await scheduling.finish(holder, "a")
    elif how == "lost":  # its holder died silently, and the watcher has noticed
        await scheduling.finish(holder, "a", "lost", reason="ContainerGone")
    elif how in {"failure", "backoff"}:
        await scheduling.finish(holder, "a", "failed")
    elif how == "cancel":
        await scheduling.cancel(holder)
        await scheduling.finish(holder, "a", "cancelled")
    else:
        await scheduling.time(61)
        assert await scheduling.told(holder, JobStopRequested)
        await scheduling.finish(holder, "a", "cancelled", started=False)
    if how == "backoff":  # the run goes on: it holds its place among the runs, but no place of a job
        await scheduling.tenant(jobs=1)
    await scheduling.admission()
    assert await scheduling.ready(waiter) == [("a", 1)]


async def test_t42_a_newcomer_is_not_behind_everything_of_a_busy_tenant(database: str) -> None:
    async with open_database(database) as opened:
        scheduling = Scheduling(opened, max_jobs=4)
        await scheduling.tenants("acme", "busy", source=ONE_JOB)
        busy = [await scheduling.start("one", "busy") for _ in range(40)]
        newcomer = await scheduling.start("one", "acme")
        assert await scheduling.ready(newcomer) == []
        await scheduling.finish(busy[0], "a")
        await scheduling.admission()
        assert await scheduling.ready(newcomer) == [("a", 1)]


async def test_t42_a_newcomer_is_before_all_who_have_had_a_turn(database: str) -> None:
    async with open_database(database) as opened:
        scheduling = Scheduling(opened, max_jobs=1)
        tenants = [f"busy-{n}" for n in range(5)]
        await scheduling.tenants(*tenants, "new", source=ONE_JOB)
        runs = [await scheduling.start("one", tenant) for _ in range(2) for tenant in tenants]
        for run in runs[:5]:  # everybody has a turn, and work left
            await scheduling.admission()
            await scheduling.finish(run, "a")
        newcomer = await scheduling.start("one", "new")
        await scheduling.admission()
        assert [run for run in (*runs[5:], newcomer) if await scheduling.ready(run)] == [newcomer]
        for run in (newcomer, *runs[5:]):  # then those that were served longest ago
            assert await scheduling.ready(run) == [("a", 1)]
            await scheduling.finish(run, "a")
            await scheduling.admission()


async def test_t42_without_any_limit_a_newcomer_waits_for_few_jobs_only(database: str) -> None:
    """Of those that may all run, no more are published than executors hold in hand: the rest waits where there are turns."""
    async with open_database(database) as opened:
        scheduling = Scheduling(opened, max_ready=4)
        await scheduling.tenants("acme", "busy", source=ONE_JOB)
        busy = [await scheduling.start("one", "busy") for _ in range(20)]
        assert [bool(await scheduling.ready(run)) for run in busy] == [True] * 4 + [False] * 16
        [held] = await opened.fetch("SELECT reason, message FROM jobs WHERE run = $1", busy[-1])
        assert (held["reason"], held["message"]) == (
            "Capacity",
            "4 jobs are about to start; this one waits for its turn",
        )
        newcomer = await scheduling.start("one", "acme")
        await scheduling.admission()
        assert await scheduling.ready(newcomer) == []
        await scheduling.submit(busy[0], "a")
        await scheduling.admission()
        assert await scheduling.ready(newcomer) == [("a", 1)]
        scheduling.clock.turn(11)  # the three others take their time: they do not count any more
        await scheduling.admission()
        assert [bool(await scheduling.ready(run)) for run in busy] == [True] * 8 + [False] * 12
        for run in (*busy, newcomer):  # and all of them come to their turn
            if not await scheduling.ready(run):
                await scheduling.admission()
            await scheduling.finish(run, "a")
            assert await scheduling.state(run) == "succeeded"
        await scheduling.admission()
        assert not scheduling.context.window.closed, "nobody waits any more, so that whoever comes need not wait either"


async def test_a_wide_run_begins_with_as_many_jobs_as_there_is_room_for(database: str) -> None:
    async with open_database(database) as opened:
        scheduling = Scheduling(opened, max_ready=4)
        await scheduling.tenant()
        jobs = "".join(f"  - {{name: j{n}, script: 'true'}}\n" for n in range(10))
        run = await scheduling.start(await scheduling.workflow(f"name: wide\nstages:\n- name: s\n  jobs:\n{jobs}"))
        assert scheduling.context.window.closed
        assert scheduling.context.release.is_set()
        started = []
        while (ready := await scheduling.ready(run)) != started:
            assert len(ready) <= len(started) + 4
            for job, _ in ready[len(started) :]:
                await scheduling.finish(run, job)
            started = ready
            await scheduling.admission()
        assert len(started) == 10
        assert await scheduling.state(run) == "succeeded"


async def test_t28_a_run_that_cannot_be_worked_on_holds_up_no_other(database: str) -> None:
    """Neither where time decides nor where runs wait to be let in; and it goes on when it can be."""
    async with open_database(database) as opened:
        scheduling = Scheduling(opened, max_jobs=2)
        await scheduling.tenant()
        timed = ONE_JOB.replace("script: 'true'", "script: 'true'\n    pending_timeout: 60s")
        odd = await scheduling.workflow(timed.replace("name: one", "name: odd"))
        one = await scheduling.workflow(timed)
        bad, held, good = await scheduling.start(odd), await scheduling.start(odd), await scheduling.start(one)
        assert (await scheduling.ready(held), await scheduling.ready(good)) == ([("a", 1)], [])
        [row] = await opened.fetch("SELECT plan FROM workflow_versions WHERE workflow = $1", odd)
        await scheduling.finish(bad, "a")
        await scheduling.admission()
        assert await scheduling.ready(good) == [("a", 1)]
        bad, waiting = await scheduling.start(odd), await scheduling.start(one)
        await opened.execute("UPDATE workflow_versions SET plan = '{}' WHERE workflow = $1", odd)
        scheduling.context = Scheduling(opened, max_jobs=2).context  # which has seen no plan yet
        scheduling.context.clock.turn(61)
        while await on_time(scheduling.context):
            pass
        assert await scheduling.told(good, JobStopRequested)
        assert not await scheduling.told(held, JobStopRequested)
        await scheduling.finish(good, "a", "cancelled", started=False)
        await scheduling.admission()
        assert (await scheduling.ready(bad), await scheduling.ready(waiting)) == ([], [("a", 1)])
        await scheduling.finish(waiting, "a")
        await opened.execute("UPDATE workflow_versions SET plan = $2 WHERE workflow = $1", odd, row["plan"])
        scheduling.context.clock.turn(301)
        await scheduling.admission()
        assert await scheduling.ready(bad) == [("a", 1)]


async def test_a_group_that_is_full_keeps_nobody_behind_its_runs_waiting(
    scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than a page takes: the page was full of runs that could not begin, and nobody looked behind it."""
    await scheduling.tenant(runs=2)
    one, grouped = await scheduling.workflow(ONE_JOB), await scheduling.workflow(GROUPED)
    await scheduling.start(grouped, concurrency_group="deploy")
    await scheduling.database.execute(
        "INSERT INTO runs (id, tenant, workflow, version, trigger, concurrency_group) "
        "SELECT gen_random_uuid(), 'acme', $1, 1, '{}', 'deploy' FROM generate_series(1, $2::int)",
        grouped, 2 * PASS_LIMIT + 5,
    )  # fmt: skip
    first, second = await scheduling.start(one), await scheduling.start(one)
    assert (await scheduling.ready(first), await scheduling.ready(second)) == ([("a", 1)], [])
    await scheduling.finish(first, "a")
    pages = []
    read = store.runs_waiting

    async def counted(*arguments: Any) -> list[uuid.UUID]:
        pages.append(await read(*arguments))
        return pages[-1]

    monkeypatch.setattr(store, "runs_waiting", counted)
    await scheduling.admission()
    assert await scheduling.ready(second) == [("a", 1)]
    assert [len(page) for page in pages] == [PASS_LIMIT, 1], "what holds one of the group holds all of it"


async def test_a_full_quota_of_runs_keeps_no_jobs_behind_its_runs_waiting(scheduling: Scheduling) -> None:
    await scheduling.tenant(runs=1)
    workflow = await scheduling.workflow(TWO_STAGES)
    holder = await scheduling.start(workflow)
    await scheduling.database.execute(
        "INSERT INTO runs (id, tenant, workflow, version, trigger) "
        "SELECT gen_random_uuid(), 'acme', $1, 1, '{}' FROM generate_series(1, $2::int)",
        workflow, PASS_LIMIT + 5,
    )  # fmt: skip
    await scheduling.tenant(runs=2, jobs=2)
    late = await scheduling.start(workflow)
    assert await scheduling.jobs(late) == {"lint": "waiting", "unit": "waiting", "compile": "waiting"}
    assert (await scheduling.run(late))["admitted_at"] is not None
    await scheduling.finish(holder, "lint")
    await scheduling.admission()
    assert await scheduling.ready(late) == [("lint", 1)]


async def test_t42_a_tenant_that_its_quota_holds_keeps_no_other_waiting(database: str) -> None:
    async with open_database(database) as opened:
        scheduling = Scheduling(opened, max_jobs=PASS_LIMIT + 20, max_ready=0)
        for tenant, quota in (("held", {"jobs": 1}), ("acme", {})):
            await scheduling.tenant(tenant, **quota)
            await scheduling.workflow(ONE_JOB, tenant)
        jobs = "".join(f"  - {{name: j{n}, script: 'true'}}\n" for n in range(PASS_LIMIT + 10))
        await scheduling.start(await scheduling.workflow(f"name: wide\nstages:\n- name: s\n  jobs:\n{jobs}"))
        await asyncio.gather(*(scheduling.record("one", "held") for _ in range(PASS_LIMIT + 5)))
        await scheduling.admission()
        run = await scheduling.record("one")
        await scheduling.admission()
        assert await scheduling.ready(run) == [("a", 1)]


TWO_JOBS = """
name: two
stages: [{name: s, jobs: [{name: broken, script: "exit 1"}, {name: sound, script: "true"}]}]
"""


@pytest.mark.parametrize("fail_fast", [False, True])
async def test_how_a_run_ends_does_not_depend_on_a_quota(scheduling: Scheduling, fail_fast: bool) -> None:
    await scheduling.tenant(jobs=1)
    source = TWO_JOBS.replace("name: s,", "name: s, fail_fast: true,") if fail_fast else TWO_JOBS
    run = await scheduling.start(await scheduling.workflow(source))
    assert await scheduling.jobs(run) == {"broken": "ready", "sound": "waiting"}
    await scheduling.finish(run, "broken", "failed")
    await scheduling.admission()
    if not fail_fast:  # without a quota it would have run beside the other
        assert await scheduling.ready(run) == [("broken", 1), ("sound", 1)]
        await scheduling.finish(run, "sound")
    assert await scheduling.jobs(run) == {"broken": "failed", "sound": "skipped" if fail_fast else "succeeded"}
    assert await scheduling.state(run) == "failed"


async def test_a_group_lets_its_runs_in_one_after_the_other(scheduling: Scheduling) -> None:
    workflow = await scheduling.workflow("concurrency: deploy\n" + ONE_JOB)
    first, second, third = [await scheduling.start(workflow, concurrency_group="deploy") for _ in range(3)]
    number = (await scheduling.run(first))["number"]
    assert [(await scheduling.run(run))["reason"] for run in (second, third)] == ["Concurrency"] * 2
    assert (await scheduling.run(second))["message"] == f"run #{number} of the group 'deploy' is active"
    await scheduling.finish(first, "a")
    await scheduling.admission()
    assert (await scheduling.ready(second), await scheduling.ready(third)) == ([("a", 1)], [])


async def test_a_group_may_cancel_what_a_newer_run_supersedes(scheduling: Scheduling) -> None:
    workflow = await scheduling.workflow(SUPERSEDING)
    old, middle, new = [await scheduling.start(workflow, concurrency_group="pr") for _ in range(3)]
    for run in (old, middle):
        await scheduling.forward_requests(run)
    await scheduling.finish(old, "a", "cancelled")
    await scheduling.admission()
    assert [(await scheduling.state(run)) for run in (old, middle)] == ["cancelled", "cancelled"]
    assert (await scheduling.run(old))["reason"] == "Superseded"
    assert await scheduling.ready(new) == [("a", 1)]


async def test_the_newest_run_of_a_group_supersedes_each_older_one_once(scheduling: Scheduling) -> None:
    """Of a push of 60 branches each run asked all before it to end, 1770 times, and each sweep asked again."""
    workflow = await scheduling.workflow(SUPERSEDING)
    runs = [await scheduling.record(workflow, concurrency_group="pr") for _ in range(60)]
    await scheduling.hear([event for run in runs for event in await scheduling.told(run, RunCreated)])
    await scheduling.admission()
    newest = (await scheduling.run(runs[-1]))["number"]
    requests = [event for run in runs for event in await scheduling.told(run, RunCancelRequested)]
    assert [(event.run, event.superseded_by) for event in requests] == [(run, newest) for run in runs[:-1]]
    await scheduling.hear(requests)
    await scheduling.admission()
    for run in runs[:-1]:
        if await scheduling.ready(run):
            assert await scheduling.state(run) == "cancelling"
            assert len(await scheduling.told(run, RunCancelRequested)) == 1
            await scheduling.finish(run, "a", "cancelled")
    await scheduling.admission()
    assert {await scheduling.state(run) for run in runs[:-1]} == {"cancelled"}
    assert await scheduling.ready(runs[-1]) == [("a", 1)]


@pytest.mark.parametrize("newer", ["active", "ended", "ended in the same step", "cancelled"])
async def test_a_run_that_is_recorded_after_a_newer_one_of_its_group_does_not_run(
    scheduling: Scheduling, newer: str
) -> None:
    """Numbers are taken before the runs are recorded. An older commit was deployed after the newer one."""
    workflow = await scheduling.workflow(SUPERSEDING)
    number = await scheduling.number()
    new = await scheduling.start(workflow, concurrency_group="pr")
    if newer == "cancelled":
        await scheduling.cancel(new)
        await scheduling.finish(new, "a", "cancelled")
    if newer == "ended":
        await scheduling.finish(new, "a")
    old = await scheduling.record(workflow, number=number, concurrency_group="pr")
    created = await scheduling.told(old, RunCreated)
    if newer == "ended in the same step":
        place = {"tenant": "acme", "run": new, "stage": "s", "job": "a", "attempt": 1}
        created.append(JobFinished(**place, state="succeeded"))
    await scheduling.hear(created)
    await scheduling.admission()
    if newer == "cancelled":  # a person wants it not to run, which says nothing about the one before
        assert await scheduling.ready(old) == [("a", 1)]
        return
    [request] = await scheduling.told(old, RunCancelRequested)
    assert request.superseded_by == (await scheduling.run(new))["number"]
    await scheduling.forward_requests(old)
    await scheduling.admission()
    run = await scheduling.run(old)
    assert (run["state"], run["reason"], await scheduling.ready(old)) == ("cancelled", "Superseded", [])
    if newer == "active":
        await scheduling.finish(new, "a")
    assert await scheduling.state(new) == "succeeded"


async def test_a_run_that_a_person_has_asked_to_end_is_not_asked_again_by_its_group(scheduling: Scheduling) -> None:
    workflow = await scheduling.workflow(SUPERSEDING)
    old = await scheduling.start(workflow, concurrency_group="pr")
    async with scheduling.database.transaction() as tx:
        tx.tell(RunCancelRequested(tenant="acme", run=old, by="ann"))  # on its way
    await scheduling.start(workflow, concurrency_group="pr")
    assert [event.by for event in await scheduling.told(old, RunCancelRequested)] == ["ann"]


async def test_a_newest_run_that_is_ending_supersedes_nobody_and_leaves_it_to_the_one_before(
    scheduling: Scheduling,
) -> None:
    workflow = await scheduling.workflow(SUPERSEDING)
    old = await scheduling.start(workflow, concurrency_group="pr")
    middle, newest = [await scheduling.record(workflow, concurrency_group="pr") for _ in range(2)]
    created = [event for run in (middle, newest) for event in await scheduling.told(run, RunCreated)]
    await scheduling.hear([*created, RunCancelRequested(tenant="acme", run=newest, by="ann")])
    [request] = await scheduling.told(old, RunCancelRequested)
    assert request.superseded_by == (await scheduling.run(middle))["number"]
    assert await scheduling.told(middle, RunCancelRequested) == []


async def test_a_scheduler_whose_clock_is_a_minute_ahead_ends_no_sound_job(
    scheduling: Scheduling, database: str
) -> None:
    source = ONE_JOB.replace("script: 'true'", "script: 'true'\n    timeout: 30s\n    grace: 2s")
    workflow = await scheduling.workflow(source)
    sound, overdue = await scheduling.start(workflow), await scheduling.start(workflow)
    for run in (sound, overdue):
        place = {"tenant": "acme", "run": run, "stage": "s", "job": "a", "attempt": 1}
        await scheduling.hear([JobRunning(**place, started_at=datetime.now(UTC))])
    # One has run for too long, which tells when the other scheduler has looked.
    await scheduling.database.execute("UPDATE jobs SET started_at = started_at - interval '1h' WHERE run = $1", overdue)
    await scheduling.database.execute("UPDATE runs SET wake_at = now() WHERE id = $1", overdue)
    async with serving(database, [with_clock_ahead(SERVICE, 60)]), asyncio.timeout(20):
        while not await scheduling.told(overdue, JobStopRequested):
            await asyncio.sleep(0.05)
    assert await scheduling.told(sound, JobStopRequested) == []


def with_clock_ahead(service: Service, seconds: float) -> Service:
    """The service on a machine whose clock is wrong."""

    @contextlib.asynccontextmanager
    async def opened(host: Host, settings: Any) -> AsyncIterator[Parts]:
        hands = Hands()
        hands.turn(seconds)
        async with service.open(dataclasses.replace(host, clock=hands), settings) as parts:
            yield parts

    return dataclasses.replace(service, open=opened)


async def test_a_clock_that_differs_from_the_databases_is_put_right(database: str) -> None:
    async with open_database(database) as opened:
        wrong = await opened.fetchval("SELECT clock_timestamp() + interval '1h'")
        clock = DatabaseClock(opened, wrong, time.monotonic())
        assert clock.now() >= wrong
        await clock.look()
        right = await opened.fetchval("SELECT clock_timestamp()")
        assert abs(clock.now() - right) < timedelta(seconds=SLOW)


async def test_a_decision_and_the_time_limit_leave_one_outcome(scheduling: Scheduling) -> None:
    workflow = await scheduling.workflow(WITH_PAUSE)
    expired, decided = await scheduling.start(workflow), await scheduling.start(workflow)
    for run in (expired, decided):
        await scheduling.finish(run, "mail")
    await scheduling.database.execute(
        "INSERT INTO decisions (run, stage, action, by) VALUES ($1, 'ask', 'approve', 'ann')", decided
    )
    scheduling.clock.turn(3601)
    await on_time(scheduling.context)
    assert await scheduling.state(expired) == "cancelled"
    assert await scheduling.state(decided) == "paused", "a person was quicker; the event is on its way"
    await scheduling.decide(decided, "ask", "approve")
    assert await scheduling.ready(decided) == [("mail", 1), ("deploy", 1)]


async def test_a_time_limit_that_passes_while_one_looks_is_decided_at_the_next_look(
    scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that was held up must not decide by a later time than the one it acts by: nobody would ever act upon it."""
    run = await scheduling.start(await scheduling.workflow(WITH_PAUSE))
    await scheduling.finish(run, "mail")
    await scheduling.database.execute("UPDATE runs SET wake_at = now() WHERE id = $1", run)
    due = store.due

    async def held_up(*given: Any) -> list[uuid.UUID]:
        ids = await due(*given)
        scheduling.clock.turn(3601)
        return ids

    monkeypatch.setattr(store, "due", held_up)
    assert await on_time(scheduling.context) == 1
    monkeypatch.setattr(store, "due", due)
    await on_time(scheduling.context)
    assert await scheduling.state(run) == "cancelled"


async def test_t35_a_retry_carries_over_what_succeeded(scheduling: Scheduling) -> None:
    workflow = await scheduling.workflow(TWO_STAGES)
    first = await scheduling.start(workflow)
    await scheduling.finish(first, "lint")
    await scheduling.finish(first, "unit", "failed")
    assert await scheduling.state(first) == "failed"
    second = await scheduling.start(workflow, retry_of=first)
    assert await scheduling.ready(second) == [("unit", 1)]
    await scheduling.finish(second, "unit")
    await scheduling.finish(second, "compile", "failed")
    third = await scheduling.start(workflow, retry_of=second)
    assert await scheduling.ready(third) == [("compile", 1)]
    await scheduling.finish(third, "compile")
    assert await scheduling.state(third) == "succeeded"
    origins = await scheduling.database.fetch(
        "SELECT name, carried_from FROM jobs WHERE run = $1 ORDER BY position", third
    )
    assert [row["carried_from"] for row in origins] == [first, second, None]


async def test_conditions_see_outputs_of_finished_jobs(scheduling: Scheduling) -> None:
    source = """
name: conditional
stages:
- name: look
  jobs:
  - {name: look, script: "true", outputs: [CHANGED]}
- name: act
  when: jobs.look.outputs.CHANGED == "yes"
  jobs:
  - {name: act, script: "true"}
"""
    workflow = await scheduling.workflow(source)
    for value, expected in (("yes", "ready"), ("no", "skipped")):
        run = await scheduling.start(workflow)
        await scheduling.database.execute(
            "INSERT INTO attempt_outcomes (container, run, job, attempt, outputs) VALUES ($1, $2, 'look', 1, $3)",
            str(run), run, {"CHANGED": value},
        )  # fmt: skip
        await scheduling.finish(run, "look")
        assert (await scheduling.jobs(run))["act"] == expected


async def test_conditions_see_inputs_by_their_declared_types(scheduling: Scheduling) -> None:
    source = """
name: typed
inputs:
  COUNT: {type: number}
  DRY: {type: boolean}
stages:
- name: act
  jobs:
  - {name: many, script: "true", when: inputs.COUNT > 5}
  - {name: wet, script: "true", when: "!inputs.DRY"}
"""
    workflow = await scheduling.workflow(source)
    run = await scheduling.start(workflow, inputs={"COUNT": "10", "DRY": "true"})
    assert await scheduling.jobs(run) == {"many": "ready", "wet": "skipped"}


async def test_conditions_find_all_that_they_may_name_whatever_the_run_was_started_with(scheduling: Scheduling) -> None:
    fields = [f"{root}.{name}" for root, names in FIELDS.items() for name in names]
    jobs = [f'  - {{name: {name}, script: "true", when: "{name} == {name}"}}' for name in fields]
    workflow = await scheduling.workflow("\n".join(["name: every field", "stages:", "- name: s", "  jobs:", *jobs]))
    run = await scheduling.start(workflow, trigger={"type": "api", "by": "token:x"})
    assert await scheduling.jobs(run) == dict.fromkeys(fields, "ready")


async def test_conditions_see_what_the_run_was_started_with(scheduling: Scheduling) -> None:
    source = """
name: started
env: {BRANCH: "${{ git.branch }}-${{ inputs.N }}", FULL: "${NAME}/${{ run.number }}", NAME: x, KEY: "${{ secrets.X }}"}
inputs: {N: {type: number}}
stages:
- name: s
  jobs:
  - {name: main, script: "true", when: git.branch == 'main' && git.tag == ''}
  - {name: env, script: "true", when: env.BRANCH == 'main-3' && env.FULL == 'x/1'}
  - {name: actor, script: "true", when: trigger.actor == 'ada'}
  - {name: url, script: "true", when: run.url.endsWith('/runs/' + run.id)}
"""
    workflow = await scheduling.workflow(source)
    run = await scheduling.start(
        workflow, inputs={"N": "3"}, trigger={"type": "push", "by": "ada", "git": {"branch": "main"}}
    )
    assert await scheduling.jobs(run) == {"main": "ready", "env": "ready", "actor": "ready", "url": "ready"}
    started_by_hand = await scheduling.start(workflow, inputs={"N": "3"})
    assert (await scheduling.jobs(started_by_hand))["main"] == "skipped"


async def test_t43_a_paused_run_holds_no_place(scheduling: Scheduling) -> None:
    await scheduling.tenant(jobs=1, runs=1)
    paused = await scheduling.start(await scheduling.workflow(WITH_PAUSE))
    await scheduling.finish(paused, "mail")
    other = await scheduling.start(await scheduling.workflow(ONE_JOB))
    assert await scheduling.ready(other) == [("a", 1)]


async def test_two_schedulers_on_the_same_timers_act_once(scheduling: Scheduling) -> None:
    run = await scheduling.start(await scheduling.workflow(WITH_PAUSE))
    await scheduling.finish(run, "mail")
    other = Scheduling(scheduling.database)
    await asyncio.gather(scheduling.time(3601), other.time(3601))
    assert len(await scheduling.told(run, RunFinished)) == 1


async def test_t40_a_run_that_holds_several_kinds_of_places_frees_them_all(scheduling: Scheduling) -> None:
    await scheduling.tenant(runs=1, jobs=1, cpu_millis=1000, memory_bytes=2**30)
    source = ONE_JOB.replace("script: 'true'", "script: 'true'\n    resources: {cpu: 1, memory: 1Gi}")
    workflow = await scheduling.workflow("concurrency: deploy\n" + source)
    first, second = [await scheduling.start(workflow, concurrency_group="deploy") for _ in range(2)]
    assert (await scheduling.ready(first), await scheduling.ready(second)) == ([("a", 1)], [])
    await scheduling.cancel(first)
    await scheduling.finish(first, "a", "cancelled")
    await scheduling.admission()
    assert await scheduling.ready(second) == [("a", 1)]


async def test_t49_a_thousand_jobs_with_outputs_make_no_row_or_message_large(scheduling: Scheduling) -> None:
    scheduling.context.window.limit = 0  # all at once
    jobs = "".join(f"  - {{name: j{n}, script: 'true'}}\n" for n in range(1000))
    run = await scheduling.start(await scheduling.workflow(f"name: wide\nstages:\n- name: s\n  jobs:\n{jobs}"))
    ready = await scheduling.told(run, JobReady)
    assert len(ready) == 1000
    await scheduling.database.execute(
        "INSERT INTO attempt_outcomes (container, run, job, attempt, state, outputs) "
        "SELECT container, run, job, attempt, 'succeeded', jsonb_build_object('X', repeat('x', 4096)) "
        "FROM attempts WHERE run = $1",
        run,
    )
    places = [
        {"tenant": event.tenant, "run": run, "stage": event.stage, "job": event.job, "attempt": 1} for event in ready
    ]
    for start in range(0, 1000, 64):
        await scheduling.hear(
            [JobFinished(**place, state="succeeded", outputs=["X"]) for place in places[start : start + 64]]
        )
    assert await scheduling.state(run) == "succeeded"
    assert await scheduling.database.fetchval("SELECT max(length(body)) FROM events WHERE run = $1", run) < 1024
    assert await scheduling.database.fetchval("SELECT max(pg_column_size(r)) FROM runs r WHERE id = $1", run) < 1024
    assert await scheduling.database.fetchval("SELECT max(pg_column_size(j)) FROM jobs j WHERE run = $1", run) < 1024


async def test_t38_a_place_is_given_back_by_a_job_that_outlives_its_time_limit(scheduling: Scheduling) -> None:
    await scheduling.tenant(jobs=1)
    limited = ONE_JOB.replace("name: one", "name: holder").replace("'true'", "'true'\n    timeout: 30s\n    grace: 2s")
    holder = await scheduling.start(await scheduling.workflow(limited))
    waiter = await scheduling.start(await scheduling.workflow(ONE_JOB))
    place = {"tenant": "acme", "run": holder, "stage": "s", "job": "a", "attempt": 1}
    await scheduling.hear([JobRunning(**place, started_at=datetime.now(UTC))])
    await scheduling.time(60)
    assert await scheduling.told(holder, JobStopRequested)
    await scheduling.admission()
    assert await scheduling.ready(waiter) == [], "it holds its place until it has ended"
    await scheduling.finish(holder, "a", "cancelled")
    assert await scheduling.jobs(holder) == {"a": "timed_out"}
    await scheduling.admission()
    assert await scheduling.ready(waiter) == [("a", 1)]


async def test_t38_a_place_is_given_back_to_whom_a_scheduler_knew_that_was_started_again(
    scheduling: Scheduling, database: str
) -> None:
    await scheduling.tenant(jobs=1, runs=2)
    workflow = await scheduling.workflow(ONE_JOB)
    holder, waiter, late = [await scheduling.start(workflow) for _ in range(3)]
    async with open_database(database) as opened:
        again = Scheduling(opened)
        await again.admission()
        assert await again.ready(waiter) == [], "the place is still held"
        await again.finish(holder, "a")
        await again.admission()
        assert (await again.ready(waiter), await again.ready(late)) == ([("a", 1)], [])
        await again.finish(waiter, "a")
        await again.admission()
        assert await again.ready(late) == [("a", 1)]


async def test_t41_a_quota_that_is_lowered_below_what_is_held_converges(scheduling: Scheduling) -> None:
    jobs = ", ".join(f"{{name: j{n}, script: 'true'}}" for n in range(3))
    source = f"name: wide\nstages: [{{name: s, jobs: [{jobs}]}}]\n"
    await scheduling.tenant(jobs=3)
    wide = await scheduling.workflow(source)
    holder, waiter = await scheduling.start(wide), await scheduling.start(wide)
    assert (len(await scheduling.ready(holder)), await scheduling.ready(waiter)) == (3, [])
    await scheduling.tenant(jobs=1)
    await scheduling.hear([TenantQuotaChanged(tenant="acme", by="ann")])
    for job in ("j0", "j1"):
        await scheduling.finish(holder, job)
        await scheduling.admission()
        assert await scheduling.ready(waiter) == []
    await scheduling.finish(holder, "j2")
    for n in range(3):
        await scheduling.admission()
        assert await scheduling.ready(waiter) == [(f"j{each}", 1) for each in range(n + 1)], (
            "one at a time, and none is lost"
        )
        await scheduling.finish(waiter, f"j{n}")
    assert await scheduling.state(waiter) == "succeeded"
