"""Who may start: quotas of tenants, concurrency groups, and the installation's own capacity. Pure.

What is in use is counted from the state of the jobs and never stored: it cannot leak, go below zero, or survive its holder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared.states import Reason


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one tenant; None: unlimited."""

    runs: int | None = None
    jobs: int | None = None
    cpu_millis: int | None = None
    memory_bytes: int | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Quota:
        return cls(*(document.get(name) for name in ("runs", "jobs", "cpu_millis", "memory_bytes")))

    @property
    def limits_jobs(self) -> bool:
        return not (self.jobs is None and self.cpu_millis is None and self.memory_bytes is None)


@dataclass(frozen=True, slots=True)
class Usage:
    """What active runs and jobs of one tenant hold."""

    runs: int = 0
    jobs: int = 0
    cpu_millis: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One eligible job."""

    name: str
    cpu_millis: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """Why the rest waits."""

    reason: Reason
    message: str


@dataclass(slots=True)
class Full:
    """What has been found to have no room: whoever waits for it need not be looked at."""

    runs: set[str] = field(default_factory=set)
    """Tenants, by their quota of runs."""
    jobs: set[str] = field(default_factory=set)
    """Tenants, by their quota of jobs, cpu or memory."""
    groups: set[tuple[str, str]] = field(default_factory=set)
    """Concurrency groups: (tenant, group)."""

    def __len__(self) -> int:
        return len(self.runs) + len(self.jobs) + len(self.groups)


def admit_run(quota: Quota, usage: Usage) -> Held | None:
    """None: a further run may begin."""
    if quota.runs is not None and usage.runs >= quota.runs:
        return Held(Reason.QUOTA, f"{usage.runs} of the tenant's {quota.runs} runs are active")
    return None


def admit_jobs(requests: Sequence[Request], quota: Quota, usage: Usage) -> tuple[list[str], Held | None, Usage]:
    """Names that may start now, in order; why the next one may not; and the usage afterwards.

    It stops at the first that does not fit, so that a large job is not overtaken for ever by small ones. A job that is
    larger than the whole quota is let in when nothing else is active, rather than wait for what cannot come.
    """
    admitted: list[str] = []
    for request in requests:
        held = _held(request, quota, usage)
        if held is not None and usage.jobs:
            return admitted, held, usage
        if held is not None and quota.jobs is not None and quota.jobs <= 0:
            return admitted, held, usage
        admitted.append(request.name)
        usage = replace(
            usage,
            jobs=usage.jobs + 1,
            cpu_millis=usage.cpu_millis + request.cpu_millis,
            memory_bytes=usage.memory_bytes + request.memory_bytes,
        )
    return admitted, None, usage


def _held(request: Request, quota: Quota, usage: Usage) -> Held | None:
    checks = (
        ("jobs", quota.jobs, usage.jobs, 1),
        ("cpu (millicores)", quota.cpu_millis, usage.cpu_millis, request.cpu_millis),
        ("memory (bytes)", quota.memory_bytes, usage.memory_bytes, request.memory_bytes),
    )
    for what, limit, used, wanted in checks:
        if limit is not None and used + wanted > limit:
            return Held(Reason.QUOTA, f"the tenant's quota of {what} is used up: {used} of {limit}, {wanted} wanted")
    return None
