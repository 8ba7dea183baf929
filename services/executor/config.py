"""Settings of the executor: HUBFLOW_EXECUTOR_*."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import setting

LONGEST_START = 20.0
"""Seconds; the status watcher keeps finished containers longer than this (its `keep_finished`), so that a late start of the
same attempt meets the old container and does nothing."""


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """How containers are started."""

    PREFIX = "EXECUTOR"

    concurrency: int = setting(64, "how many containers this process starts at the same time")
    start_seconds: float = setting(20.0, "how long one try to start a container may take; at most 20")
    patience_seconds: float = setting(
        240.0, "how long a start (with its image pull) is tried before others have a turn"
    )
    hub: str = setting("", "host of the registry that _WORKFLOW_FLOW_URL names; empty: the host of HUBFLOW_PUBLIC_URL")
    insecure_registries: str = setting("", "registries (host:port, separated by commas) that are spoken to without TLS")

    def __post_init__(self) -> None:
        if not 0 < self.start_seconds <= LONGEST_START:
            raise ValueError(
                f"HUBFLOW_EXECUTOR_START_SECONDS={self.start_seconds:g}: must be more than 0 and at most "
                f"{LONGEST_START:g}, less than the status watcher keeps finished containers"
            )
        if self.concurrency < 1:
            raise ValueError("HUBFLOW_EXECUTOR_CONCURRENCY: must be at least 1")
        if not self.start_seconds <= self.patience_seconds <= 280:
            raise ValueError(
                "HUBFLOW_EXECUTOR_PATIENCE_SECONDS: must be between START_SECONDS and 280 (a handler has 300)"
            )
