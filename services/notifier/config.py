"""Settings of notifier: HUBFLOW_NOTIFIER_*."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import setting


@dataclass(frozen=True, slots=True)
class NotifierSettings:
    """Webhooks to customers."""

    PREFIX = "NOTIFIER"

    timeout: float = setting(10.0, "seconds a receiver has to answer")
    concurrency: int = setting(64, "deliveries of this process under way at the same time")
    per_subscription: int = setting(4, "of these for one receiver, so that a slow one does not hold up the others")

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.concurrency < 1 or self.per_subscription < 1:
            raise ValueError("HUBFLOW_NOTIFIER_*: time and numbers must be above 0")
