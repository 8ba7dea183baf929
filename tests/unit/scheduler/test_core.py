"""The rules one by one, as a reader of design.md 4 would ask for them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from services.scheduler import core
from shared.errors import PermanentError
from shared.events import (
    JobReady,
    JobRunning,
    JobStopRequested,
    JobSubmitted,
    RunCancelRequested,
    RunPaused,
    StageDecided,
)
from shared.states import Reason
from shared.workflow.plan import JobPlan, RetryPlan
from tests.unit.scheduler.histories import START, World, a_plan, a_run, a_stage, yes


def ready(world: World) -> list[str]:
    return [event.job for event in world.told if isinstance(event, JobReady)]


def finish(world: World, job: str, state: str = "succeeded", **values: Any) -> None:
    attempt = next(each for each in reversed(world.attempts) if each[1] == job)
    world.send(world.finished(attempt, state, **values))


def decide(world: World, stage: str, action: str) -> None:
    world.send(StageDecided(tenant="acme", run=world.run.id, stage=stage, action=action, by="ann", comment="fine"))


def cancel(world: World) -> None:
    world.send(RunCancelRequested(tenant="acme", run=world.run.id, by="ann", why="wrong branch"))


def test_parallel_jobs_start_together_and_the_next_stage_waits_for_both() -> None:
    world = World(a_plan(a_stage("test", JobPlan("lint"), JobPlan("unit")), a_stage("build", JobPlan("compile"))))
    assert ready(world) == ["lint", "unit"]
    finish(world, "lint")
    assert ready(world) == ["lint", "unit"]
    finish(world, "unit")
    assert ready(world) == ["lint", "unit", "compile"]
    finish(world, "compile")
    assert world.run.state == "succeeded"


def test_a_run_is_running_when_its_first_container_is() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    assert world.run.state == "pending"
    world.send(JobSubmitted(**world.place(("s", "a", 1)), container="c"))
    assert (world.run.state, world.run.jobs["a"].state) == ("pending", "submitted")
    world.send(JobRunning(**world.place(("s", "a", 1))))
    assert (world.run.state, world.run.jobs["a"].state) == ("running", "running")


def test_t26_finished_before_submitted_and_running_is_accepted() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    finish(world, "a")
    world.send(JobSubmitted(**world.place(("s", "a", 1)), container="c"))
    world.send(JobRunning(**world.place(("s", "a", 1))))
    assert (world.run.state, world.run.jobs["a"].state) == ("succeeded", "succeeded")


def test_a_failure_lets_siblings_end_and_skips_what_has_not_begun() -> None:
    world = World(
        a_plan(a_stage("s", JobPlan("a"), JobPlan("b"), JobPlan("c", needs=("b",))), a_stage("t", JobPlan("d")))
    )
    finish(world, "a", "failed", message="exit code 1")
    assert world.run.state == "running"
    assert world.run.jobs["b"].state == "ready"
    finish(world, "b")
    assert [job.state for job in world.run.jobs.values()] == ["failed", "succeeded", "skipped", "skipped"]
    assert (world.run.state, world.run.reason) == ("failed", Reason.EXIT_CODE)
    assert "exit code 1" in world.run.message


def test_fail_fast_stops_the_siblings() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"), JobPlan("b"), fail_fast=True)))
    finish(world, "a", "failed")
    assert world.stop_is_wanted(("s", "b", 1))
    finish(world, "b", "cancelled")
    assert (world.run.jobs["b"].state, world.run.jobs["b"].reason) == ("cancelled", Reason.STAGE_FAILED)
    assert world.run.state == "failed"


def test_a_job_that_waits_for_its_next_attempt_is_left_alone_by_a_failure_elsewhere() -> None:
    again = JobPlan("b", retries=RetryPlan(max=1, delay_s=5))
    world = World(a_plan(a_stage("s", JobPlan("a"), again)))
    finish(world, "b", "failed")
    finish(world, "a", "failed")
    assert (world.run.jobs["b"].state, world.run.state.final) == ("waiting", False)
    world.wait(5)
    finish(world, "b")
    assert (world.run.jobs["b"].state, world.run.state) == ("succeeded", "failed")


def test_fail_fast_cancels_what_waits_for_its_next_attempt() -> None:
    again = JobPlan("b", retries=RetryPlan(max=1, delay_s=5))
    world = World(a_plan(a_stage("s", JobPlan("a"), again, fail_fast=True)))
    finish(world, "b", "failed")
    finish(world, "a", "failed")
    assert (world.run.jobs["b"].state, world.run.jobs["b"].reason) == ("cancelled", Reason.STAGE_FAILED)
    assert world.run.state == "failed"


def test_an_allowed_failure_does_not_matter() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", allow_failure=True)), a_stage("t", JobPlan("b"))))
    finish(world, "a", "failed")
    finish(world, "b")
    assert world.run.state == "succeeded"


def test_a_stage_for_failures_runs_only_after_one() -> None:
    plan = a_plan(a_stage("s", JobPlan("a")), a_stage("clean", JobPlan("b"), when="run.failed"))
    world = World(plan)
    finish(world, "a", "failed")
    assert ready(world) == ["a", "b"]
    finish(world, "b")
    assert world.run.state == "failed"
    world = World(plan)
    finish(world, "a")
    assert (world.run.state, world.run.jobs["b"].reason) == ("succeeded", Reason.CONDITION_FALSE)


def test_a_condition_that_cannot_be_judged_fails_with_its_reason() -> None:
    def broken(expression: str, run: object) -> bool:
        raise PermanentError("no such output", reason=Reason.CONDITION_ERROR)

    run = core.admit(a_run(a_plan(a_stage("s", JobPlan("a", when="jobs.x.outputs.Y == '1'")))), START, broken).run
    assert (run.jobs["a"].state, run.jobs["a"].reason, run.state) == ("failed", Reason.CONDITION_ERROR, "failed")


def test_retries_follow_the_policy_and_then_the_job_fails() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", retries=RetryPlan(max=2, delay_s=5, factor=2)))))
    finish(world, "a", "failed", exit_code=1)
    assert (world.run.jobs["a"].state, world.run.jobs["a"].reason) == ("waiting", Reason.RETRY_BACKOFF)
    assert core.next_wake(world.run) == START + timedelta(seconds=5)
    world.wait(5)
    finish(world, "a", "failed", exit_code=1)
    assert core.next_wake(world.run) == world.now + timedelta(seconds=10)
    world.wait(10)
    finish(world, "a", "failed", exit_code=1)
    assert (world.run.jobs["a"].state, world.run.jobs["a"].attempt, world.run.state) == ("failed", 3, "failed")


def test_t06_infrastructure_failures_before_the_start_cost_no_retry() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    finish(world, "a", "lost", started=False, reason=Reason.EVICTED)
    world.wait(1)
    assert (world.run.jobs["a"].attempt, world.run.jobs["a"].retries) == (2, 0)
    finish(world, "a", "lost", started=True, reason=Reason.EVICTED)
    assert (world.run.jobs["a"].state, world.run.state) == ("lost", "failed")


def test_t05_a_lost_job_is_retried_if_the_workflow_allows() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", retries=RetryPlan(max=1, delay_s=0)))))
    finish(world, "a", "lost")
    assert world.run.jobs["a"].attempt == 2
    finish(world, "a")
    assert world.run.state == "succeeded"


def test_t33_a_hundred_attempts_with_factor_two_do_not_overflow() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", retries=RetryPlan(max=100, delay_s=1, factor=2, max_delay_s=60)))))
    for _ in range(100):
        finish(world, "a", "failed")
        world.wait(60)
    finish(world, "a")
    assert (world.run.jobs["a"].attempt, world.run.state) == (101, "succeeded")


def test_a_pause_stage_waits_for_its_decision_and_holds_no_jobs() -> None:
    world = World(a_plan(a_stage("ask", JobPlan("mail"), pause=True), a_stage("go", JobPlan("deploy"))))
    finish(world, "mail")
    assert world.run.state == "paused"
    assert any(isinstance(event, RunPaused) for event in world.told)
    assert not any(job.state.active for job in world.run.jobs.values())
    assert not world.run.holds_quota
    decide(world, "ask", "approve")
    assert (world.run.state, ready(world)) == ("running", ["mail", "deploy"])
    assert "ann" in world.run.stages["ask"].message


def test_b9_a_decision_that_comes_early_is_kept() -> None:
    world = World(a_plan(a_stage("ask", JobPlan("mail"), pause=True), a_stage("go", JobPlan("deploy"))))
    decide(world, "ask", "approve")
    assert world.run.stages["ask"].state == "running"
    finish(world, "mail")
    assert ready(world) == ["mail", "deploy"]
    assert not any(isinstance(event, RunPaused) for event in world.told)


def test_t86_the_first_decision_counts() -> None:
    world = World(a_plan(a_stage("ask", JobPlan("mail"), pause=True)))
    finish(world, "mail")
    decide(world, "ask", "cancel")
    decide(world, "ask", "approve")
    assert (world.run.state, world.run.reason) == ("cancelled", Reason.CANCELLED)
    assert "rejected by ann: fine" in world.run.message


@pytest.mark.parametrize(
    ("on_timeout", "state"), [("cancel", "cancelled"), ("fail", "failed"), ("approve", "succeeded")]
)
def test_t85_an_expired_pause_is_an_approval_only_where_asked_for(on_timeout: str, state: str) -> None:
    world = World(a_plan(a_stage("ask", JobPlan("mail"), pause=True, pause_timeout_s=60.0, on_timeout=on_timeout)))
    finish(world, "mail")
    world.wait(59)
    assert world.run.state == "paused"
    world.wait(1)
    assert world.run.state == state


def test_t88_a_pause_does_not_use_up_the_time_of_the_run() -> None:
    stages = (
        a_stage("ask", JobPlan("mail"), pause=True, pause_timeout_s=None),
        a_stage("go", JobPlan("deploy", timeout_s=0)),
    )
    world = World(a_plan(*stages, timeout_s=100.0))
    finish(world, "mail")
    world.wait(7 * 86400)
    assert world.run.state == "paused"
    decide(world, "ask", "approve")
    world.wait(99)
    assert world.run.state == "running"
    world.wait(2)
    assert world.run.state == "cancelling"


def test_t30_cancel_racing_with_success_leaves_one_state() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    cancel(world)
    assert world.run.state == "cancelling"
    finish(world, "a", "succeeded")
    assert (world.run.state, world.run.jobs["a"].state) == ("cancelled", "succeeded")
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    finish(world, "a", "succeeded")
    cancel(world)
    assert world.run.state == "succeeded"


@pytest.mark.parametrize("moment", ["waiting", "ready", "submitted", "running", "backoff", "paused"])
def test_t31_cancel_in_every_state_ends_and_starts_nothing(moment: str) -> None:
    retries = RetryPlan(max=1, delay_s=30)
    plan = a_plan(a_stage("s", JobPlan("a", retries=retries), pause=moment == "paused"), a_stage("t", JobPlan("b")))
    world = World(plan) if moment != "waiting" else _held(plan)
    place = world.place(("s", "a", 1))
    if moment in {"submitted", "running"}:
        world.send(JobSubmitted(**place, container="c"))
    if moment == "running":
        world.send(JobRunning(**place))
    if moment == "backoff":
        finish(world, "a", "failed")
    if moment == "paused":
        finish(world, "a")
    started = len(world.attempts)
    cancel(world)
    if moment in {"ready", "submitted", "running"}:
        assert world.stop_is_wanted(("s", "a", 1))
        finish(world, "a", "cancelled")
    world.wait(100)
    assert (world.run.state, world.run.reason) == ("cancelled", Reason.CANCELLED)
    assert "wrong branch" in world.run.message
    assert len(world.attempts) == started


def _held(plan: Any) -> World:
    """A run that quota has not let begin."""
    world = World(plan)
    world.run, world.attempts, world.told = a_run(plan), [], []
    world.run = core.hold(world.run, Reason.QUOTA, "full").run
    return world


def test_t10_a_job_that_does_not_start_in_time_fails_and_gives_its_place_back() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", pending_timeout_s=600))))
    world.send(JobSubmitted(**world.place(("s", "a", 1)), container="c"))
    world.wait(601)
    assert world.stop_is_wanted(("s", "a", 1))
    finish(world, "a", "cancelled", started=False, message="0/3 nodes are available")
    assert (world.run.jobs["a"].state, world.run.jobs["a"].reason) == ("failed", Reason.PENDING_TIMEOUT)
    assert "within 600 s" in world.run.jobs["a"].message
    assert "0/3 nodes are available" in world.run.jobs["a"].message
    assert not world.run.jobs["a"].state.active


def test_t12_a_job_that_outlives_its_limit_is_stopped_by_the_scheduler() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", timeout_s=60, grace_s=10))))
    world.send(JobRunning(**world.place(("s", "a", 1))))
    world.wait(60 + 10 + 16)
    finish(world, "a", "cancelled")
    assert (world.run.jobs["a"].state, world.run.jobs["a"].reason) == ("timed_out", Reason.JOB_TIMEOUT)


def test_a_node_whose_clock_is_a_minute_behind_takes_no_time_from_its_jobs() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", timeout_s=60, grace_s=10))))
    attempt = ("s", "a", 1)
    world.send(JobRunning(**world.place(attempt), started_at=world.now - timedelta(seconds=60)))
    world.wait(60 + 10 + 14)
    assert not world.stop_is_wanted(attempt)
    world.wait(1)
    assert world.stop_is_wanted(attempt)


def test_t27_an_attempt_nobody_reports_is_asked_for_again() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    world.wait(31)
    assert [(event.job, event.attempt) for event in world.told if isinstance(event, JobReady)] == [("a", 1), ("a", 1)]


def test_a_stop_that_is_not_heard_is_asked_for_again() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a", grace_s=10))))
    cancel(world)
    world.wait(31)
    assert sum(isinstance(event, JobStopRequested) for event in world.told) == 2


def test_superseded_runs_say_by_whom() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    world.send(RunCancelRequested(tenant="acme", run=world.run.id, by="scheduler", superseded_by=7))
    finish(world, "a", "cancelled")
    assert (world.run.state, world.run.reason, world.run.message) == (
        "cancelled",
        Reason.SUPERSEDED,
        "run #7 took its place",
    )


def test_a_late_decision_of_an_ended_run_changes_nothing() -> None:
    world = World(a_plan(a_stage("s", JobPlan("a"))))
    finish(world, "a")
    before = world.run
    decide(world, "s", "cancel")
    assert core.tick(before, START + timedelta(days=99), yes).run == before
    assert world.run == before
