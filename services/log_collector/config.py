"""Settings of the log collector: HUBFLOW_LOG_COLLECTOR_*."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import setting


@dataclass(frozen=True, slots=True)
class LogCollectorSettings:
    """Sizes in bytes, times in seconds."""

    PREFIX = "LOG_COLLECTOR"

    limit_bytes: int = setting(
        100 << 20, "how much of one log is kept; the rest is dropped with a last line that says so"
    )
    segment_bytes: int = setting(4 << 20, "how much of a live log is gathered in the database for one object")
    tail_limit_bytes: int = setting(
        32 << 20, "how much of one log waits in the database while object storage is away; then reading pauses"
    )
    buffer_bytes: int = setting(64 << 20, "how much output of all logs together may be in memory")
    flush_seconds: float = setting(0.15, "how long output waits at most before readers can see it")
    lease_seconds: float = setting(5.0, "after how long without a sign of life another process takes over the logs")
    uploads: int = setting(8, "how many objects are written at the same time")

    def __post_init__(self) -> None:
        if min(self.limit_bytes, self.segment_bytes, self.uploads) < 1 or self.buffer_bytes < 1 << 20:
            raise ValueError("HUBFLOW_LOG_COLLECTOR_*: sizes must be more than 0, BUFFER_BYTES at least 1 MiB")
        if self.tail_limit_bytes < self.segment_bytes:
            raise ValueError("HUBFLOW_LOG_COLLECTOR_TAIL_LIMIT_BYTES: must be at least SEGMENT_BYTES")
        if not 0 < self.flush_seconds <= 1:
            raise ValueError("HUBFLOW_LOG_COLLECTOR_FLUSH_SECONDS: must be more than 0 and at most 1")
        if self.lease_seconds < 2:
            raise ValueError("HUBFLOW_LOG_COLLECTOR_LEASE_SECONDS: must be at least 2 (it is renewed every second)")
