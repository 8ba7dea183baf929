"""What the scheduler knows of a run: plain values, no behaviour beyond looking at themselves."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from shared.states import JobState, RunState, StageState
from shared.workflow.conditions import runs_after_failure
from shared.workflow.plan import JobPlan, Plan, StagePlan


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person (or the time limit) decided about a pause stage."""

    action: str
    """`approve` or `cancel`."""
    by: str
    comment: str
    at: datetime


@dataclass(frozen=True, slots=True)
class StageStatus:
    state: StageState = StageState.WAITING
    reason: str = ""
    message: str = ""
    decision: Decision | None = None
    """May come before the stage is paused; applied then."""
    started_at: datetime | None = None
    paused_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobStatus:
    state: JobState = JobState.WAITING
    reason: str = ""
    message: str = ""
    attempt: int = 0
    """Number of the newest attempt; 0: none yet."""
    retries: int = 0
    """Used up, of those the workflow allows."""
    infrastructure_retries: int = 0
    stopping: str = ""
    """Why the attempt was asked to end; "" if it was not."""
    eligible_at: datetime | None = None
    """Since when only quota and capacity hold it."""
    retry_at: datetime | None = None
    ready_at: datetime | None = None
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    """While it runs: when we heard of it, by the clock that its time limit is measured by. Afterwards: what its node says."""
    finished_at: datetime | None = None
    reminded_at: datetime | None = None
    """When executor was last told to start or stop it."""
    carried_from: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class PlanIndex:
    """A plan looked at by name. Made once for each version of a workflow, since plans may have thousands of jobs."""

    jobs: Mapping[str, JobPlan]
    stage_of: Mapping[str, StagePlan]
    """By job."""
    stages_after_failure: frozenset[str]
    """Those whose condition mentions run.failed: they are considered although something failed before."""
    jobs_after_failure: frozenset[str]
    conditional: bool
    """Some stage or job has a condition."""

    @classmethod
    def of(cls, plan: Plan) -> PlanIndex:
        jobs = [(stage, job) for stage in plan.stages for job in stage.jobs]
        return cls(
            jobs={job.name: job for _, job in jobs},
            stage_of={job.name: stage for stage, job in jobs},
            stages_after_failure=frozenset(stage.name for stage in plan.stages if runs_after_failure(stage.when)),
            jobs_after_failure=frozenset(job.name for _, job in jobs if runs_after_failure(job.when)),
            conditional=any(stage.when for stage in plan.stages) or any(job.when for _, job in jobs),
        )


@dataclass(slots=True)
class Run:
    """One run with its stages and jobs, both by name in the order of the plan."""

    id: uuid.UUID
    tenant: str
    number: int
    workflow: str
    version: int
    plan: Plan
    index: PlanIndex
    created_at: datetime
    concurrency_group: str | None = None
    state: RunState = RunState.PENDING
    reason: str = ""
    message: str = ""
    ending_state: RunState | None = None
    """How it will end once its jobs have stopped; None: it goes its way."""
    paused_seconds: float = 0.0
    admitted_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    stages: dict[str, StageStatus] = field(default_factory=dict)
    jobs: dict[str, JobStatus] = field(default_factory=dict)

    def copy(self) -> Run:
        """A copy whose stages and jobs can be replaced without touching this one's."""
        return replace(self, stages=dict(self.stages), jobs=dict(self.jobs))

    def jobs_of(self, stage: StagePlan) -> list[tuple[JobPlan, JobStatus]]:
        return [(job, self.jobs[job.name]) for job in stage.jobs]

    @property
    def eligible(self) -> list[str]:
        """Jobs that only quota and capacity hold, in order."""
        return [
            name for name, job in self.jobs.items() if job.state is JobState.WAITING and job.eligible_at is not None
        ]

    @property
    def holds_quota(self) -> bool:
        """Counts against the tenant's limit of runs. A paused run does not."""
        return self.admitted_at is not None and not self.state.final and self.state is not RunState.PAUSED


def fresh(run: Run) -> Run:
    """The run with all its stages and jobs waiting, as its plan says."""
    return replace(
        run,
        stages={stage.name: StageStatus() for stage in run.plan.stages},
        jobs={job.name: JobStatus() for stage in run.plan.stages for job in stage.jobs},
    )
