"""What is delivered, and when it is tried again. No I/O, no clock."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from shared.clock import timestamp
from shared.events import DeliveryFailed, Event, SubscriptionTested

DELAYS = (5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0)
"""Seconds before the second, third, ... try. After the last one the delivery has failed."""
JITTER = 0.2
"""A delay is up to that share longer, so that receivers who come back are not met by everything at once."""
LONGEST_RETRY_AFTER = 3600.0
_BY_DEFAULT = ("run.", "stage.", "job.")


def is_wanted(types: Sequence[str], type: str) -> bool:
    """Does a subscription to `types` (empty: all of runs, stages and jobs) want events of `type`?

    That a delivery failed is never delivered: it would fail, too.
    """
    if type == DeliveryFailed.TYPE:
        return False
    if type == SubscriptionTested.TYPE:
        return True
    return type in types if types else type.startswith(_BY_DEFAULT)


def delivery_id(subscription: uuid.UUID, event: uuid.UUID) -> uuid.UUID:
    """Derived, so that an event that is heard twice is delivered once; also the `webhook-id` of every try."""
    return uuid.uuid5(subscription, str(event))


def payload(event: Event, about: Mapping[str, Any]) -> bytes:
    """The body, per Standard Webhooks: {"type", "timestamp", "data"}. `about`: what never changes about the run."""
    data = {name: value for name, value in event.to_map().items() if name not in {"type", "time", "trace"}}
    document = {"type": event.TYPE, "timestamp": timestamp(event.time), "data": {**about, **data}}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def delay_after(tries: int, random: float, retry_after: float | None = None) -> float | None:
    """Seconds until the next try after `tries` have failed, None if that was the last. `random`: 0 to 1.

    `retry_after`: what the receiver has asked for.
    """
    if tries > len(DELAYS):
        return None
    delay = DELAYS[tries - 1] * (1 + JITTER * random)
    return max(delay, min(retry_after or 0.0, LONGEST_RETRY_AFTER))
