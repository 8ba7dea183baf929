"""Generated plans, and a world that answers the scheduler: in any order, twice, late, or never."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from services.scheduler import core
from services.scheduler.model import PlanIndex, Run, fresh
from shared.events import (
    Event,
    JobFinished,
    JobReady,
    JobRunning,
    JobStopRequested,
    JobSubmitted,
    RunCancelRequested,
    RunCreated,
    StageDecided,
)
from shared.states import Reason
from shared.workflow.plan import JobPlan, Plan, RetryPlan, StagePlan

START = datetime(2026, 1, 1, tzinfo=UTC)


def a_run(plan: Plan, **values: Any) -> Run:
    """A pending run of the plan, as trigger makes it."""
    run = Run(
        id=uuid.UUID(int=1), tenant="acme", number=1, workflow=plan.name, version=1, plan=plan,
        index=PlanIndex.of(plan), created_at=START, **values,
    )  # fmt: skip
    return fresh(run)


def a_plan(*stages: StagePlan, timeout_s: float | None = None) -> Plan:
    return Plan(name="w", timeout_s=timeout_s, concurrency=None, stages=stages)


def a_stage(name: str, *jobs: JobPlan, pause: bool = False, **values: Any) -> StagePlan:
    settings: dict[str, Any] = {
        "type": "pause" if pause else "normal", "serial": False, "when": None, "fail_fast": False,
        "pause_timeout_s": 3600.0 if pause else None, "on_timeout": "cancel",
    }  # fmt: skip
    return StagePlan(name=name, jobs=jobs, **{**settings, **values})


def yes(expression: str, run: Run) -> bool:
    """Conditions of the tests: `run.failed` means what it says, anything else is literal."""
    if expression == "run.failed":
        return any(stage.state == "failed" for stage in run.stages.values())
    return expression != "false"


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    stages = []
    for s in range(draw(st.integers(1, 3))):
        jobs = []
        for j in range(draw(st.integers(0 if s else 1, 3))):
            earlier = [job.name for job in jobs]
            needs = tuple(draw(st.sets(st.sampled_from(earlier)))) if earlier else ()
            jobs.append(
                JobPlan(
                    name=f"s{s}j{j}", needs=needs,
                    optional_needs=tuple(draw(st.sets(st.sampled_from(needs)))) if needs else (),
                    when=draw(st.sampled_from([None, None, None, "true", "false", "run.failed"])),
                    allow_failure=draw(st.booleans()), timeout_s=draw(st.sampled_from([0.0, 60.0])),
                    retries=RetryPlan(max=draw(st.integers(0, 2)), delay_s=draw(st.sampled_from([0.0, 5.0]))),
                )
            )  # fmt: skip
        stages.append(
            a_stage(
                f"s{s}", *jobs, pause=draw(st.booleans()), fail_fast=draw(st.booleans()),
                when=draw(st.sampled_from([None, None, None, "true", "false", "run.failed"])),
                on_timeout=draw(st.sampled_from(["cancel", "fail", "approve"])),
            )
        )  # fmt: skip
    return a_plan(*stages, timeout_s=draw(st.sampled_from([None, 7200.0])))


class World:
    """Keeps the run, the containers that were asked for, and everything that was told."""

    def __init__(self, plan: Plan) -> None:
        self.run = a_run(plan)
        self.now = START
        self.told: list[Event] = []
        self.sent: list[Event] = []
        self.attempts: list[tuple[str, str, int]] = []
        created = RunCreated(tenant="acme", run=self.run.id, workflow="w", version=1, number=1, trigger="api")
        self.take(core.apply(self.run, created, self.now, yes))
        self.take(core.admit(self.run, self.now, yes))
        self.admit()

    def take(self, step: core.Step) -> None:
        self.run = step.run
        self.told.extend(step.events)
        for event in step.events:
            place = (getattr(event, "stage", ""), getattr(event, "job", ""), getattr(event, "attempt", 0))
            if isinstance(event, JobReady) and place not in self.attempts:
                self.attempts.append(place)

    def admit(self) -> None:
        """Quota lets everything in, as an unlimited tenant's does."""
        while self.run.eligible and not self.run.state.final:
            self.take(core.admit_jobs(self.run, self.run.eligible, self.now, yes))

    def send(self, event: Event) -> None:
        self.sent.append(event)
        self.take(core.apply(self.run, event, self.now, yes))
        self.admit()

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.take(core.tick(self.run, self.now, yes))
        self.admit()

    def place(self, attempt: tuple[str, str, int]) -> dict[str, Any]:
        stage, job, number = attempt
        return {"tenant": "acme", "run": self.run.id, "stage": stage, "job": job, "attempt": number}

    def finished(self, attempt: tuple[str, str, int], state: str, **values: Any) -> JobFinished:
        reason = {"succeeded": "", "lost": Reason.NODE_LOST, "timed_out": Reason.JOB_TIMEOUT}.get(
            state, Reason.EXIT_CODE
        )
        return JobFinished(**self.place(attempt), state=state, **{"reason": reason, **values})

    def stop_is_wanted(self, attempt: tuple[str, str, int]) -> bool:
        return any(
            isinstance(event, JobStopRequested) and (event.job, event.attempt) == attempt[1:] for event in self.told
        )

    def drain(self, outcome: str = "succeeded") -> None:
        """Answer everything that is open, until the run is over."""
        for _ in range(200):
            if self.run.state.final:
                return
            for attempt in list(self.attempts):
                job = self.run.jobs[attempt[1]]
                if job.state.active and job.attempt == attempt[2]:
                    self.send(self.finished(attempt, "cancelled" if self.stop_is_wanted(attempt) else outcome))
            for stage in self.run.plan.stages:
                if self.run.stages[stage.name].state == "paused":
                    self.send(
                        StageDecided(tenant="acme", run=self.run.id, stage=stage.name, action="approve", by="ann")
                    )
            self.wait(400)
        raise AssertionError(f"the run does not end: {self.run}")


@st.composite
def steps(draw: st.DrawFn, world: World) -> None:
    """One thing that may happen, likely or not."""
    kind = draw(st.sampled_from(["submitted", "running", "finished", "decide", "cancel", "wait", "again", "stale"]))
    if kind == "wait":
        world.wait(draw(st.sampled_from([0.0, 1.0, 30.0, 700.0, 4000.0])))
    elif kind == "cancel" and draw(st.integers(0, 3)) == 0:
        by = draw(st.integers(0, 1))
        world.send(RunCancelRequested(tenant="acme", run=world.run.id, by="ann", superseded_by=by))
    elif kind == "decide":
        stage = draw(st.sampled_from([each.name for each in world.run.plan.stages]))
        action = draw(st.sampled_from(["approve", "cancel"]))
        world.send(StageDecided(tenant="acme", run=world.run.id, stage=stage, action=action, by="ann"))
    elif kind == "again" and world.sent:
        world.send(draw(st.sampled_from(world.sent)))
    elif world.attempts:
        attempt = draw(st.sampled_from(world.attempts))
        if kind == "stale":
            attempt = (attempt[0], attempt[1], attempt[2] + draw(st.integers(-1, 1)))
        if kind == "submitted":
            world.send(JobSubmitted(**world.place(attempt), container="c"))
        elif kind == "running":
            world.send(JobRunning(**world.place(attempt)))
        else:
            state = draw(st.sampled_from(["succeeded", "failed", "timed_out", "cancelled", "lost"]))
            world.send(world.finished(attempt, state, started=draw(st.booleans()), exit_code=draw(st.integers(0, 2))))
