"""Settings of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import setting


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How many jobs at a time, and how often to look."""

    PREFIX = "SCHEDULER"

    max_jobs: int = setting(
        0, "most jobs active at a time in the whole installation, shared fairly by tenants; 0: no limit"
    )
    max_ready: int = setting(
        1000,
        "most jobs that wait for executors at a time, so that tenants take turns; the others wait for theirs. One that has "
        "waited for ten seconds is not counted. 0: no limit, first come first served",
    )
    sweep_seconds: float = setting(2.0, "how often to look for what waits for quota although nothing has told us to")
    timer_seconds: float = setting(0.25, "how late a time limit may be noticed")

    def __post_init__(self) -> None:
        if self.max_jobs < 0:
            raise ValueError("HUBFLOW_SCHEDULER_MAX_JOBS must not be negative; 0 means no limit")
        if self.max_ready < 0:
            raise ValueError("HUBFLOW_SCHEDULER_MAX_READY must not be negative; 0 means no limit")
        if self.sweep_seconds <= 0 or self.timer_seconds <= 0:
            raise ValueError(
                "HUBFLOW_SCHEDULER_SWEEP_SECONDS and HUBFLOW_SCHEDULER_TIMER_SECONDS must be greater than 0"
            )
