"""Settings of trigger: HUBFLOW_TRIGGER_*."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import setting


@dataclass(frozen=True, slots=True)
class TriggerSettings:
    """What comes in from outside, and its limits."""

    PREFIX = "TRIGGER"

    push_bytes: int = setting(25 * 1024 * 1024, "largest body of a git push hook; GitHub sends up to 25 MiB")
    webhook_bytes: int = setting(1024 * 1024, "largest body of a generic webhook")
    large_bodies: int = setting(4, "bodies above 1 MiB that are held in memory at the same time")
    body_seconds: float = setting(30.0, "how long a sender may take to send its body")
    same_push_seconds: float = setting(
        10.0, "a push of the same commit to the same ref within this time starts no second run (two hooks, two senders)"
    )

    def __post_init__(self) -> None:
        if min(self.push_bytes, self.webhook_bytes, self.large_bodies) < 1 or self.body_seconds <= 0:
            raise ValueError("HUBFLOW_TRIGGER_*: limits of size, number and time must be above 0")
