"""The rules of a run's life: from a run, an event and the time it makes the new run and the events that follow.

    waiting stage -> advance: its condition -> its jobs become eligible as their needs end -> quota admits them -> job.ready
    job.submitted, job.running, job.finished come back -> retry, or the job ends -> the stage ends, pauses -> the next one

No I/O, no clock, no randomness. What depends on the outside comes in as arguments: `now`, and `evaluate` for conditions.
Events may come twice, late, or in any order; what no longer fits is ignored. A final state stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from services.scheduler.deadlines import deadlines, expired_pauses
from services.scheduler.draft import Draft, Evaluate, Retry, Step
from services.scheduler.model import Decision, JobStatus, Run
from shared.events import Event, JobFinished, JobRunning, JobSubmitted, RunCancelRequested, StageDecided
from shared.states import INFRASTRUCTURE_REASONS, JobState, Reason, RunState
from shared.workflow.plan import RetryPlan

__all__ = [
    "Evaluate",
    "Step",
    "admit",
    "admit_jobs",
    "apply",
    "expired_pauses",
    "hold",
    "hold_jobs",
    "next_wake",
    "tick",
]

INFRASTRUCTURE_RETRIES = 5
"""Attempts that may fail for reasons of the cluster before the user's code has started."""

_STOPPED_STATES = {
    Reason.JOB_TIMEOUT: JobState.TIMED_OUT,
    Reason.RUN_TIMEOUT: JobState.TIMED_OUT,
    Reason.PENDING_TIMEOUT: JobState.FAILED,
}
"""How an attempt ends that was asked to; any other reason: cancelled."""


# ---------------------------------------------------------------- what comes in


def admit(run: Run, now: datetime, evaluate: Evaluate) -> Step:
    """The tenant's quota and the concurrency group let the run begin."""
    draft = Draft(run, now, evaluate)
    if run.admitted_at is None and not run.state.final:
        draft.run.admitted_at = now
        draft.run.reason = draft.run.message = ""
        draft.advance()
    return draft.step()


def hold(run: Run, reason: Reason, message: str) -> Step:
    """The run has to wait before it may begin, and this is why."""
    held = run.copy()
    held.reason, held.message = reason, message
    return Step(held, [])


def admit_jobs(run: Run, names: Sequence[str], now: datetime, evaluate: Evaluate) -> Step:
    """Quota lets these eligible jobs start."""
    draft = Draft(run, now, evaluate)
    for name in names:
        if draft.run.jobs[name].state is JobState.WAITING and draft.run.jobs[name].eligible_at is not None:
            draft.start_attempt(name)
    draft.advance()
    return draft.step()


def hold_jobs(run: Run, names: Sequence[str], reason: Reason, message: str) -> Step:
    """These eligible jobs have to wait, and this is why."""
    held = run.copy()
    for name in names:
        held.jobs[name] = replace(held.jobs[name], reason=reason, message=message)
    return Step(held, [])


def apply(run: Run, event: Event, now: datetime, evaluate: Evaluate) -> Step:
    """An event of this run. Unknown, late and repeated ones change nothing."""
    draft = Draft(run, now, evaluate)
    if not run.state.final and (rule := _RULES.get(type(event))):
        rule(draft, event)
        draft.advance()
    return draft.step()


def tick(run: Run, now: datetime, evaluate: Evaluate) -> Step:
    """Time has passed: do all that is due."""
    draft = Draft(run, now, evaluate)
    for due in list(deadlines(run)):
        if due.at <= now:
            due.act(draft)
    draft.advance()
    return draft.step()


def next_wake(run: Run) -> datetime | None:
    """When time itself will next change something; None: never."""
    return min((due.at for due in deadlines(run)), default=None)


# ---------------------------------------------------------------- one rule an event


def _on_submitted(draft: Draft, event: JobSubmitted) -> None:
    job = draft.current(event)
    if job and job.state is JobState.READY:
        draft.set_job(event.job, state=JobState.SUBMITTED, submitted_at=draft.now)
        draft.stop_again(event.job)


def _on_running(draft: Draft, event: JobRunning) -> None:
    job = draft.current(event)
    if job and job.state in {JobState.READY, JobState.SUBMITTED}:
        # Not `event.started_at`: that is by the node's clock, and the job's time limit is measured from here by ours.
        draft.set_job(event.job, state=JobState.RUNNING, started_at=draft.now)
        draft.begin_run()
        draft.stop_again(event.job)


def _on_finished(draft: Draft, event: JobFinished) -> None:
    job = draft.current(event)
    if job is None or not job.state.active:
        return
    if event.started:
        draft.begin_run()
    plan = draft.plan_of(event.job)
    retry = None if job.stopping or draft.run.ending_state else _retry(plan.retries, job, event)
    if retry is not None:
        draft.retry(event, retry)
        return
    state, reason, message = _verdict(job, event)
    if event.started_at is not None:
        draft.set_job(event.job, started_at=event.started_at)
    draft.end_job(event.job, state, reason, message)


def _on_decided(draft: Draft, event: StageDecided) -> None:
    stage = draft.run.stages.get(event.stage)
    if stage and stage.decision is None and not stage.state.final:
        draft.set_stage(event.stage, decision=Decision(event.action, event.by, event.comment, event.time))


def _on_cancel_requested(draft: Draft, event: RunCancelRequested) -> None:
    if event.superseded_by:
        draft.end_run_as(RunState.CANCELLED, Reason.SUPERSEDED, f"run #{event.superseded_by} took its place")
    else:
        why = f": {event.why}" if event.why else ""
        draft.end_run_as(RunState.CANCELLED, Reason.CANCELLED, f"cancelled by {event.by}{why}")


_RULES: dict[type[Event], Callable[[Draft, Any], None]] = {
    JobSubmitted: _on_submitted,
    JobRunning: _on_running,
    JobFinished: _on_finished,
    StageDecided: _on_decided,
    RunCancelRequested: _on_cancel_requested,
}


def _verdict(job: JobStatus, event: JobFinished) -> tuple[JobState, str, str]:
    """How a job ends with its last attempt. What it has reached before a stop took effect stays true."""
    state = JobState(event.state)
    if job.stopping and state in {JobState.CANCELLED, JobState.LOST, JobState.TIMED_OUT}:
        stopped = _STOPPED_STATES.get(Reason(job.stopping), JobState.CANCELLED)
        message = job.message or event.message
        if job.stopping == Reason.PENDING_TIMEOUT and event.message:
            message = f"{job.message} ({event.message})"  # the place knows what it has waited for
        return stopped, job.stopping, message
    return state, event.reason, event.message


def _retry(plan: RetryPlan, job: JobStatus, event: JobFinished) -> Retry | None:
    """Whether and when another attempt follows this one."""
    if event.state in {JobState.SUCCEEDED, JobState.CANCELLED}:
        return None
    infrastructure = event.state == JobState.LOST or event.reason in INFRASTRUCTURE_REASONS
    if infrastructure and not event.started:
        if job.infrastructure_retries < INFRASTRUCTURE_RETRIES:
            return Retry(float(2**job.infrastructure_retries), infrastructure=True)
        return None
    if job.retries >= plan.max or not plan.applies_to(event.reason, event.exit_code):
        return None
    return Retry(plan.delay_before(job.retries + 2), infrastructure=False)
