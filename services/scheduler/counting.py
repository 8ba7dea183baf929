"""How runs and jobs end, counted by the process that has decided it."""

from __future__ import annotations

import uuid
from collections.abc import Container

from prometheus_client import Counter

from services.scheduler.saving import Changed
from shared.states import Reason

_RUNS = Counter("hubflow_runs_finished", "Runs that are over", ["state"])
_JOBS = Counter("hubflow_jobs_finished", "Jobs that are over, with all their attempts", ["state", "reason"])
_REASONS = frozenset({"", *Reason})


def count_finished(changed: Changed, moved: Container[uuid.UUID]) -> None:
    """Count what has come to its end in the runs that were written. What a run carries over ended in another one."""
    for loaded, now in changed:
        if now.id not in moved:
            continue
        if now.state.final and not loaded.run.state.final:
            _RUNS.labels(now.state).inc()
        before = loaded.run.jobs
        for name, job in now.jobs.items():
            if job is before.get(name) or not job.state.final or job.carried_from is not None:
                continue
            if name not in before or not before[name].state.final:
                # A job may make up its result, and with it the reason: only ours become labels.
                _JOBS.labels(job.state, job.reason if job.reason in _REASONS else "other").inc()
