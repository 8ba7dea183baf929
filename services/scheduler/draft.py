"""A run being changed: every change of state goes through here, and tells its event.

`core.py` says what an event means, `deadlines.py` what time means; this module knows how a run goes on from wherever it is
(`Draft.advance`). Pure like them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from services.scheduler.arrows import JOB_ARROWS, RUN_ARROWS, STAGE_ARROWS, checked
from services.scheduler.model import Decision, JobStatus, Run, StageStatus
from shared.errors import PermanentError
from shared.events import (
    Event,
    JobEnded,
    JobFinished,
    JobReady,
    JobRetrying,
    JobRunning,
    JobStopRequested,
    JobSubmitted,
    RunCancelling,
    RunFinished,
    RunPaused,
    RunRunning,
    StageFinished,
    StageRunning,
)
from shared.states import JobState, Reason, RunState, StageState
from shared.workflow.plan import JobPlan, StagePlan

BUILTIN_PAUSE = "workflow_pause"

Evaluate = Callable[[str, Run], bool]
"""Whether a `when` expression holds for the run as it is. Raises PermanentError when it cannot be told."""

_ENDED_STAGES = {RunState.TIMED_OUT: StageState.TIMED_OUT, RunState.FAILED: StageState.FAILED}
_SATISFIED = frozenset({JobState.SUCCEEDED, JobState.SKIPPED})


@dataclass(frozen=True, slots=True)
class Step:
    """What came of an event: the run as it is now, and what is to be told."""

    run: Run
    events: list[Event]


@dataclass(frozen=True, slots=True)
class Retry:
    delay: float
    """Seconds."""
    infrastructure: bool


class Draft:
    """A run being changed. Every change of state goes through here, and tells its event."""

    def __init__(self, run: Run, now: datetime, evaluate: Evaluate) -> None:
        self.run = run.copy()
        self.now = now
        self.events: list[Event] = []
        self._evaluate = evaluate

    def step(self) -> Step:
        return Step(self.run, self.events)

    # ------------------------------------------------------------ looking

    def current(self, event: JobSubmitted | JobRunning | JobFinished) -> JobStatus | None:
        """The job an event is about, if it is about its newest attempt."""
        job = self.run.jobs.get(event.job)
        return job if job and job.attempt == event.attempt else None

    def plan_of(self, name: str) -> JobPlan:
        return self.run.index.jobs[name]

    def stage_of(self, name: str) -> StagePlan:
        return self.run.index.stage_of[name]

    # ------------------------------------------------------------ one job

    def set_job(self, name: str, **changes: Any) -> None:
        job = self.run.jobs[name]
        checked(JOB_ARROWS, job.state, changes.get("state", job.state))
        self.run.jobs[name] = replace(job, **changes)

    def make_eligible(self, name: str) -> None:
        if self.run.jobs[name].state is JobState.WAITING:
            self.set_job(name, eligible_at=self.now, retry_at=None, reason="", message="")

    def start_attempt(self, name: str) -> None:
        attempt = self.run.jobs[name].attempt + 1
        self.set_job(
            name, state=JobState.READY, attempt=attempt, reason="", message="", stopping="",
            eligible_at=None, retry_at=None, ready_at=self.now, reminded_at=self.now,
            submitted_at=None, started_at=None, finished_at=None,
        )  # fmt: skip
        if self.plan_of(name).builtin == BUILTIN_PAUSE:
            self.begin_run()  # TencentHub's `workflow_pause` has nothing to run
            self.end_job(name, JobState.SUCCEEDED)
        else:
            self.events.append(JobReady(**self._job_place(name)))

    def start_again(self, name: str) -> None:
        self.set_job(name, reminded_at=self.now)
        self.events.append(JobReady(**self._job_place(name)))

    def stop_job(self, name: str, reason: Reason, message: str) -> None:
        """Ask an active attempt to end; it ends when its outcome comes."""
        job = self.run.jobs[name]
        if job.state.active and not job.stopping:
            self.set_job(name, stopping=reason, message=message, reminded_at=self.now)
            self._tell_stop(name)

    def stop_again(self, name: str) -> None:
        if self.run.jobs[name].stopping:
            self.set_job(name, reminded_at=self.now)
            self._tell_stop(name)

    def _tell_stop(self, name: str) -> None:
        self.events.append(JobStopRequested(**self._job_place(name), grace=self.plan_of(name).grace_s))

    def retry(self, event: JobFinished, retry: Retry) -> None:
        job = self.run.jobs[event.job]
        at = self.now + timedelta(seconds=retry.delay)
        counts = (
            {"infrastructure_retries": job.infrastructure_retries + 1}
            if retry.infrastructure
            else {"retries": job.retries + 1}
        )
        self.set_job(
            event.job, state=JobState.WAITING, retry_at=at, reason=Reason.RETRY_BACKOFF,
            message=f"attempt {job.attempt} {event.state} ({event.reason}): {event.message}", **counts,
        )  # fmt: skip
        place = self._job_place(event.job)
        self.events.append(JobRetrying(**place, reason=event.reason, next_attempt_at=at))
        if retry.delay <= 0:
            self.make_eligible(event.job)

    def end_job(self, name: str, state: JobState, reason: str = "", message: str = "") -> None:
        self.set_job(
            name, state=state, reason=reason, message=message, finished_at=self.now, eligible_at=None, retry_at=None
        )
        self.events.append(JobEnded(**self._job_place(name), state=state, reason=reason, message=message))

    def _job_place(self, name: str) -> dict[str, Any]:
        attempt = self.run.jobs[name].attempt
        return {
            "tenant": self.run.tenant,
            "run": self.run.id,
            "stage": self.stage_of(name).name,
            "job": name,
            "attempt": attempt,
        }

    # ------------------------------------------------------------ stages

    def set_stage(self, name: str, **changes: Any) -> None:
        stage = self.run.stages[name]
        checked(STAGE_ARROWS, stage.state, changes.get("state", stage.state))
        self.run.stages[name] = replace(stage, **changes)

    def end_stage(self, name: str, state: StageState, reason: str = "", message: str = "") -> None:
        self.set_stage(name, state=state, reason=reason, message=message, finished_at=self.now)
        place = self._stage_place(name)
        self.events.append(StageFinished(**place, state=state, reason=reason, message=message))

    def _stage_place(self, name: str) -> dict[str, Any]:
        return {"tenant": self.run.tenant, "run": self.run.id, "stage": name}

    def decide_by_time(self, stage: StagePlan) -> None:
        """Nobody decided in time. That is an approval only where the workflow asks for it in so many words (T85)."""
        message = f"nobody decided about the stage {stage.name!r} within {stage.pause_timeout_s:g} s"
        if stage.on_timeout == "approve":
            self.set_stage(stage.name, decision=Decision("approve", "time limit", message, self.now))
        elif stage.on_timeout == "fail":
            self.end_run_as(RunState.FAILED, Reason.DECISION_TIMEOUT, message)
        else:
            self.end_run_as(RunState.CANCELLED, Reason.DECISION_TIMEOUT, message)

    # ------------------------------------------------------------ the run

    def begin_run(self) -> None:
        """Its first container has left the pending state."""
        if self.run.state is RunState.PENDING:
            self._running()

    def _running(self) -> None:
        self.run.state = checked(RUN_ARROWS, self.run.state, RunState.RUNNING)
        self.run.started_at = self.run.started_at or self.now
        self.events.append(RunRunning(tenant=self.run.tenant, run=self.run.id))

    def end_run_as(self, state: RunState, reason: Reason, message: str) -> None:
        """From now on the run only waits for its jobs to stop. The first reason stays."""
        if self.run.ending_state is None:
            self.run.ending_state, self.run.reason, self.run.message = state, reason, message

    def _finish_run(self, state: RunState, reason: str, message: str) -> None:
        self.run.state = checked(RUN_ARROWS, self.run.state, state)
        self.run.reason, self.run.message = reason, message
        self.run.finished_at = self.now
        self.events.append(
            RunFinished(tenant=self.run.tenant, run=self.run.id, state=state, reason=reason, message=message)
        )

    # ------------------------------------------------------------ going on

    def advance(self) -> None:
        """Do everything that can be done now, stage by stage."""
        if self.run.state.final:
            return
        if self.run.ending_state is not None:
            self._advance_ending(self.run.ending_state)
            return
        if self.run.admitted_at is None:
            return
        for stage in self.run.plan.stages:
            if not self.run.stages[stage.name].state.final and not self._advance_stage(stage):
                if self.run.ending_state is not None:
                    self._advance_ending(self.run.ending_state)
                return
        failed = self._first_failed_stage()
        if failed is None:
            self._finish_run(RunState.SUCCEEDED, "", "")
        else:
            name, status = failed
            self._finish_run(RunState.FAILED, status.reason, f"stage {name!r}: {status.message}")

    def _advance_stage(self, stage: StagePlan) -> bool:
        """Whether the stage is over."""
        if self.run.stages[stage.name].state is StageState.WAITING and not self._begin_stage(stage):
            return True
        if self.run.stages[stage.name].state is StageState.RUNNING:
            self._advance_jobs(stage)
            if not all(job.state.final for _, job in self.run.jobs_of(stage)):
                return False
            if failure := self._first_failure(stage):
                self.end_stage(stage.name, StageState.FAILED, *failure)
                return True
            if stage.type != "pause":
                self.end_stage(stage.name, StageState.SUCCEEDED)
                return True
            self._pause(stage)
        return self._apply_decision(stage)

    def _begin_stage(self, stage: StagePlan) -> bool:
        """Whether it begins; if not, it is over at once."""
        if self._first_failed_stage() and stage.name not in self.run.index.stages_after_failure:
            self._skip_stage(stage, StageState.SKIPPED, Reason.STAGE_FAILED, "an earlier stage failed")
            return False
        try:
            wanted = stage.when is None or self._evaluate(stage.when, self.run)
        except PermanentError as error:
            self._skip_stage(stage, StageState.FAILED, Reason.CONDITION_ERROR, str(error))
            return False
        if not wanted:
            self._skip_stage(
                stage, StageState.SKIPPED, Reason.CONDITION_FALSE, f"its condition does not hold: {stage.when}"
            )
            return False
        self.set_stage(stage.name, state=StageState.RUNNING, started_at=self.now)
        self.events.append(StageRunning(**self._stage_place(stage.name)))
        return True

    def _skip_stage(self, stage: StagePlan, state: StageState, reason: Reason, message: str) -> None:
        for job, status in self.run.jobs_of(stage):
            if not status.state.final:
                self.end_job(job.name, JobState.SKIPPED, reason, message)
        self.end_stage(stage.name, state, reason, message)

    def _advance_jobs(self, stage: StagePlan) -> None:
        """Make eligible, or skip, every job whose needs are over. Skipping one may free the next, so go on until calm."""
        moved = True
        while moved:
            moved = False
            failure = self._first_failure(stage)
            if failure and stage.fail_fast:
                for job, status in self.run.jobs_of(stage):
                    if status.state.active:
                        self.stop_job(job.name, Reason.STAGE_FAILED, failure[1])
            for job, status in self.run.jobs_of(stage):
                if status.state is JobState.WAITING:
                    moved |= self._advance_job(job, status, failed=failure is not None)

    def _advance_job(self, job: JobPlan, status: JobStatus, *, failed: bool) -> bool:
        """Whether something changed for good (it was skipped or could not be judged)."""
        # Judged before: it waits for its next attempt, or for room. How a run ends must not depend on what else is going on, so
        # a failure elsewhere takes nothing from it, unless the stage fails fast.
        judged = status.attempt or status.eligible_at is not None
        if judged and not (failed and self.stage_of(job.name).fail_fast):
            return False
        needs = [self.run.jobs[name] for name in job.needs]
        if not all(each.state.final for each in needs):
            return False
        unsatisfied = [
            name
            for name, each in zip(job.needs, needs, strict=True)
            if name not in job.optional_needs and not self._satisfies(name, each)
        ]
        if (failed or unsatisfied) and job.name not in self.run.index.jobs_after_failure:
            message = f"job {unsatisfied[0]!r} did not succeed" if unsatisfied else "another job of the stage failed"
            state = JobState.CANCELLED if status.attempt else JobState.SKIPPED
            self.end_job(job.name, state, Reason.STAGE_FAILED, message)
            return True
        if judged:
            return False
        try:
            wanted = job.when is None or self._evaluate(job.when, self.run)
        except PermanentError as error:
            self.end_job(job.name, JobState.FAILED, Reason.CONDITION_ERROR, str(error))
            return True
        if not wanted:
            self.end_job(job.name, JobState.SKIPPED, Reason.CONDITION_FALSE, f"its condition does not hold: {job.when}")
            return True
        self.make_eligible(job.name)
        return False

    def _satisfies(self, name: str, job: JobStatus) -> bool:
        if job.state is JobState.SKIPPED:
            return job.reason == Reason.CONDITION_FALSE
        return job.state in _SATISFIED or self.plan_of(name).allow_failure

    def _first_failure(self, stage: StagePlan) -> tuple[str, str] | None:
        """Reason and message of the first job of the stage that failed and may not."""
        for job, status in self.run.jobs_of(stage):
            if status.state.final and status.state not in _SATISFIED and not job.allow_failure:
                return (
                    status.reason,
                    f"job {job.name!r} {status.state.replace('_', ' ')}: {status.message or status.reason}",
                )
        return None

    def _first_failed_stage(self) -> tuple[str, StageStatus] | None:
        for name, status in self.run.stages.items():
            if status.state in {StageState.FAILED, StageState.TIMED_OUT, StageState.CANCELLED}:
                return name, status
        return None

    def _pause(self, stage: StagePlan) -> None:
        self.set_stage(stage.name, state=StageState.PAUSED, paused_at=self.now)
        if self.run.stages[stage.name].decision is None:
            self.run.state = checked(RUN_ARROWS, self.run.state, RunState.PAUSED)
            expires = self.now + timedelta(seconds=stage.pause_timeout_s) if stage.pause_timeout_s else None
            self.events.append(RunPaused(**self._stage_place(stage.name), expires_at=expires))

    def _apply_decision(self, stage: StagePlan) -> bool:
        """Whether the paused stage is over."""
        status = self.run.stages[stage.name]
        if status.decision is None or status.paused_at is None:
            return False
        comment = f": {status.decision.comment}" if status.decision.comment else ""
        if status.decision.action != "approve":
            self.end_run_as(
                RunState.CANCELLED, Reason.CANCELLED, f"stage {stage.name!r} rejected by {status.decision.by}{comment}"
            )
            return False
        self.run.paused_seconds += (self.now - status.paused_at).total_seconds()
        self.end_stage(stage.name, StageState.SUCCEEDED, "", f"approved by {status.decision.by}{comment}")
        if self.run.state is RunState.PAUSED:
            self._running()
        return True

    def _advance_ending(self, state: RunState) -> None:
        """Stop what runs, give up what waits, and end the run when nothing is left."""
        reason, message = Reason(self.run.reason), self.run.message
        for name, job in list(self.run.jobs.items()):
            if job.state.active:
                self.stop_job(name, reason, message)
            elif not job.state.final:
                never = self.run.stages[self.stage_of(name).name].state is StageState.WAITING
                self.end_job(name, JobState.SKIPPED if never else JobState.CANCELLED, reason, message)
        if any(job.state.active for job in self.run.jobs.values()):
            if self.run.state is not RunState.CANCELLING:
                self.run.state = checked(RUN_ARROWS, self.run.state, RunState.CANCELLING)
                self.events.append(
                    RunCancelling(tenant=self.run.tenant, run=self.run.id, reason=reason, message=message)
                )
            return
        for name, stage in list(self.run.stages.items()):
            if stage.state is StageState.WAITING:
                self.end_stage(name, StageState.SKIPPED, reason, message)
            elif not stage.state.final:
                self.end_stage(name, _ENDED_STAGES.get(state, StageState.CANCELLED), reason, message)
        self._finish_run(state, reason, message)
