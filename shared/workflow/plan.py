"""What the scheduler needs of a workflow: names, order, limits. Pure data, stored as JSON with each run.

Texts with references (inputs, script, image) stay in the model, which the executor reads; only the concurrency group
and the conditions come along, for the trigger and the scheduler to render and evaluate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from shared.states import Reason

if TYPE_CHECKING:  # the scheduler reads stored plans, and needs neither the model nor the library behind it
    from shared.workflow.model import Job, Retries, Stage, Workflow


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """`max`: further attempts after the first. Empty `reasons` and `exit_codes`: any failure is retried."""

    max: int = 0
    reasons: tuple[str, ...] = ()
    exit_codes: tuple[int, ...] = ()
    delay_s: float = 5.0
    factor: float = 2.0
    max_delay_s: float = 300.0

    def applies_to(self, reason: str, exit_code: int | None = None) -> bool:
        """May an attempt that failed for `reason` (a `shared.states.Reason`) be tried again?"""
        if not self.reasons and not self.exit_codes:
            return True
        return reason in self.reasons or (reason == Reason.EXIT_CODE and exit_code in self.exit_codes)

    def delay_before(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt` (the first is 1 and waits for nothing)."""
        if attempt <= 1 or self.delay_s <= 0:
            return 0.0
        if self.delay_s >= self.max_delay_s:
            return self.max_delay_s
        steps = attempt - 2
        growth = steps * math.log(self.factor)
        if growth > 700 or growth > math.log(self.max_delay_s) - math.log(self.delay_s):
            return self.max_delay_s  # the power below would overflow (T33), or is over the limit anyway
        return min(self.max_delay_s, self.delay_s * self.factor**steps)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job. `needs` are jobs of the same stage; a serial stage's order is already in them."""

    name: str
    needs: tuple[str, ...] = ()
    when: str | None = None
    allow_failure: bool = False
    retries: RetryPlan = RetryPlan()
    timeout_s: float = 3600.0
    pending_timeout_s: float = 600.0
    grace_s: float = 10.0
    cpu_millis: int = 0
    """0: not said, the operator's default holds."""
    memory_bytes: int = 0
    optional_needs: tuple[str, ...] = ()
    """Those of `needs` that need only be over: they may have failed or been skipped."""
    builtin: str = ""
    """"workflow_pause" or "run_flow" (`model.BUILTIN_*`): done by the engine, without a container."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. `pause_timeout_s`, `on_timeout` ("cancel", "fail", "approve") are set for type "pause" only."""

    name: str
    type: str
    serial: bool
    when: str | None
    fail_fast: bool
    pause_timeout_s: float | None
    on_timeout: str
    jobs: tuple[JobPlan, ...]


@dataclass(frozen=True, slots=True)
class ConcurrencyPlan:
    """`group` is a template: render it with the run's context. `policy`: "queue" or "cancel_superseded"."""

    group: str
    limit: int = 1
    policy: str = "queue"


@dataclass(frozen=True, slots=True)
class Plan:
    """A workflow as the scheduler sees it. Job names are unique over the whole plan."""

    name: str
    timeout_s: float | None
    concurrency: ConcurrencyPlan | None
    stages: tuple[StagePlan, ...]
    input_types: Mapping[str, str] = field(default_factory=dict)
    """Declared type of each input ("string", "number", "boolean", "choice"): conditions see values by it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON column; `from_json` gives back an equal plan."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """A plan stored by `to_json`, also by an older or newer version.

        Missing keys have their defaults, unknown ones are dropped.
        """
        concurrency = data.get("concurrency")
        return cls(
            name=data["name"],
            timeout_s=data.get("timeout_s"),
            concurrency=ConcurrencyPlan(**_known(ConcurrencyPlan, concurrency)) if concurrency else None,
            stages=tuple(_stage_from_json(stage) for stage in data["stages"]),
            input_types=dict(data.get("input_types") or {}),
        )


def plan(model: Workflow) -> Plan:
    """The plan of a checked workflow."""
    group = model.concurrency
    return Plan(
        name=model.name,
        timeout_s=model.timeout,
        concurrency=ConcurrencyPlan(group.group, group.limit, group.policy) if group is not None else None,
        stages=tuple(_stage(stage) for stage in model.stages),
        input_types={name: declared.type for name, declared in model.inputs.items()},
    )


def _stage(stage: Stage) -> StagePlan:
    from shared.workflow.model import DEFAULT_PAUSE_TIMEOUT_S

    paused = stage.type == "pause"
    pause = stage.pause
    return StagePlan(
        name=stage.name,
        type=stage.type,
        serial=stage.sequencing == "serial",
        when=stage.when,
        fail_fast=stage.fail_fast,
        pause_timeout_s=(pause.timeout if pause is not None else DEFAULT_PAUSE_TIMEOUT_S) if paused else None,
        on_timeout=pause.on_timeout if pause is not None else "cancel",
        jobs=tuple(_job(stage, index, job) for index, job in enumerate(stage.jobs)),
    )


def _job(stage: Stage, index: int, job: Job) -> JobPlan:
    here = {other.name for other in stage.jobs}  # needs of earlier stages are met anyway
    needs = [need.name for need in job.needs if need.name in here]
    if stage.sequencing == "serial" and index and stage.jobs[index - 1].name not in needs:
        needs.insert(0, stage.jobs[index - 1].name)
    resources = (job.resources, *(service.resources for service in job.services))
    return JobPlan(
        name=job.name,
        needs=tuple(needs),
        when=job.when,
        allow_failure=job.allow_failure,
        retries=_retries(job.retries),
        timeout_s=job.timeout,
        pending_timeout_s=job.pending_timeout,
        grace_s=job.grace,
        cpu_millis=sum(each.cpu or 0 for each in resources),
        memory_bytes=sum(each.memory or 0 for each in resources),
        optional_needs=tuple(need.name for need in job.needs if need.optional and need.name in here),
        builtin=job.builtin,
    )


def _retries(retries: Retries) -> RetryPlan:
    return RetryPlan(
        max=retries.max,
        reasons=tuple(reason.value for reason in retries.reasons),
        exit_codes=retries.exit_codes,
        delay_s=retries.backoff.delay,
        factor=retries.backoff.factor,
        max_delay_s=retries.backoff.max_delay,
    )


def _stage_from_json(data: dict[str, Any]) -> StagePlan:
    return StagePlan(**{**_known(StagePlan, data), "jobs": tuple(_job_from_json(job) for job in data["jobs"])})


def _job_from_json(data: dict[str, Any]) -> JobPlan:
    retries = data.get("retries") or {}
    lists = {key: tuple(data.get(key, ())) for key in ("needs", "optional_needs")}
    codes = {key: tuple(retries.get(key, ())) for key in ("reasons", "exit_codes")}
    retry_plan = RetryPlan(**{**_known(RetryPlan, retries), **codes})
    return JobPlan(**{**_known(JobPlan, data), **lists, "retries": retry_plan})


def _known(part: type, data: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(part)}
    return {key: value for key, value in data.items() if key in names}
