"""Which consumer group hears which topics.

It stands in one place because queues must exist before the first event is published: a process declares all of them when it
connects, so that nothing is lost when a service starts for the first time after others have already told something.
"""

from __future__ import annotations

TOPICS: dict[str, tuple[str, ...]] = {
    "scheduler": (
        "*.run.created",
        "*.run.cancel_requested",
        "*.stage.decided",
        "*.job.submitted",
        "*.job.running",
        "*.job.finished",
        "*.tenant.quota_changed",
    ),
    "executor": ("*.job.ready", "*.job.stop_requested", "*.run.finished"),
    "log_collector": ("*.job.submitted",),
    "notifier": ("*.subscription.*",),
}
"""Consumer group -> patterns of routing keys. The notifier binds the tenants that have a subscription by itself: events that
nobody has subscribed to cost it nothing."""
