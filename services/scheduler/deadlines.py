"""What time does to a run: reminders, time limits, retries that are due. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from services.scheduler.draft import Draft
from services.scheduler.model import JobStatus, Run
from shared.states import JobState, Reason, RunState, StageState
from shared.workflow.plan import JobPlan, StagePlan

START_REMINDER = timedelta(seconds=30)
"""After which executor is told again to start an attempt that it has not reported."""
STOP_REMINDER = timedelta(seconds=20)
"""After the grace period, when executor is told again to stop."""
TIMEOUT_BACKSTOP = timedelta(seconds=15)
"""The wrapper enforces a job's time limit; if it has not done so this long after its grace period, the scheduler does."""


@dataclass(frozen=True, slots=True)
class Deadline:
    at: datetime
    act: Callable[[Draft], None]


def deadlines(run: Run) -> Iterator[Deadline]:
    """Everything that will happen by itself, with its time. A run that waits for quota has no deadline."""
    if run.state.final or run.admitted_at is None:
        return
    if run.plan.timeout_s and run.ending_state is None and run.state is not RunState.PAUSED:
        limit = timedelta(seconds=run.plan.timeout_s + run.paused_seconds)
        yield Deadline(run.admitted_at + limit, _run_timed_out)
    for stage in run.plan.stages:
        status = run.stages[stage.name]
        if (
            status.state is StageState.PAUSED
            and status.paused_at
            and stage.pause_timeout_s
            and run.ending_state is None
        ):
            at = status.paused_at + timedelta(seconds=stage.pause_timeout_s)
            yield Deadline(at, partial(Draft.decide_by_time, stage=stage))
        if status.state is StageState.RUNNING:
            for job, job_status in run.jobs_of(stage):
                yield from _job_deadlines(job, job_status)


def expired_pauses(run: Run, now: datetime) -> list[StagePlan]:
    """Pause stages whose time for a decision is over. Whether a person was quicker, the database tells."""
    return [
        stage
        for stage in run.plan.stages
        if (status := run.stages[stage.name]).state is StageState.PAUSED
        and run.ending_state is None
        and status.paused_at is not None
        and stage.pause_timeout_s
        and status.paused_at + timedelta(seconds=stage.pause_timeout_s) <= now
    ]


def _job_deadlines(job: JobPlan, status: JobStatus) -> Iterator[Deadline]:
    grace = timedelta(seconds=job.grace_s)
    if status.state is JobState.WAITING and status.retry_at is not None:
        yield Deadline(status.retry_at, lambda draft: draft.make_eligible(job.name))
    if not status.state.active:
        return
    if status.stopping:
        if status.reminded_at:
            yield Deadline(status.reminded_at + grace + STOP_REMINDER, lambda draft: draft.stop_again(job.name))
        return
    if status.state is JobState.READY and status.reminded_at:
        yield Deadline(status.reminded_at + START_REMINDER, lambda draft: draft.start_again(job.name))
    if status.state in {JobState.READY, JobState.SUBMITTED} and status.ready_at and job.pending_timeout_s:
        yield Deadline(
            status.ready_at + timedelta(seconds=job.pending_timeout_s),
            lambda draft: draft.stop_job(
                job.name,
                Reason.PENDING_TIMEOUT,
                f"it did not start within {job.pending_timeout_s:g} s; is there room, and can its image be pulled?",
            ),
        )
    if status.state is JobState.RUNNING and status.started_at and job.timeout_s:
        yield Deadline(
            status.started_at + timedelta(seconds=job.timeout_s) + grace + TIMEOUT_BACKSTOP,
            lambda draft: draft.stop_job(job.name, Reason.JOB_TIMEOUT, f"it took longer than its {job.timeout_s:g} s"),
        )


def _run_timed_out(draft: Draft) -> None:
    limit = draft.run.plan.timeout_s or 0.0
    draft.end_run_as(RunState.TIMED_OUT, Reason.RUN_TIMEOUT, f"the run took longer than its {limit:g} s")
