"""Settings of the status watcher: HUBFLOW_STATUS_WATCHER_*."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import setting

EXECUTOR_DEADLINE = 20.0
"""Seconds that the executor gives one call of `Runtime.start` (its setting `start_seconds` may not be more)."""


@dataclass(frozen=True, slots=True)
class StatusWatcherSettings:
    """How long things are kept and waited for, in seconds."""

    PREFIX = "STATUS_WATCHER"

    keep_finished: float = setting(
        30.0, "how long a finished container is kept at least; while it is there, no late executor can start it again"
    )
    sweep_seconds: float = setting(5.0, "how often database and runtime are compared, and finished containers removed")
    lost_seconds: float = setting(15.0, "how long after its start an attempt may be missing in the runtime's list")
    orphan_seconds: float = setting(60.0, "how long a container without a live attempt is let run")
    lease_seconds: float = setting(
        4.0, "after how long without a sign of life other replicas take over the work of one"
    )

    def __post_init__(self) -> None:
        if self.keep_finished <= EXECUTOR_DEADLINE:
            raise ValueError(
                f"HUBFLOW_STATUS_WATCHER_KEEP_FINISHED={self.keep_finished:g}: must be more than the "
                f"{EXECUTOR_DEADLINE:g} seconds that an executor may take to start a container"
            )
        if self.lease_seconds < 2:
            raise ValueError("HUBFLOW_STATUS_WATCHER_LEASE_SECONDS: must be at least 2 (it is renewed every second)")
        if min(self.sweep_seconds, self.lost_seconds, self.orphan_seconds) <= 0:
            raise ValueError("HUBFLOW_STATUS_WATCHER_*: all times are more than 0 seconds")
