"""Events that somebody subscribed to become deliveries; nothing is sent here (see sender.py).

The notifier's queue is bound only to the tenants that have a subscription. What a tenant's events tell between the moment when
it subscribes and the moment when the queue is bound is read from the journal (the table `events`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.notifier import core, store
from services.notifier.store import Subscription
from services.notifier.subscribers import Subscribers
from shared.bus.protocol import Bus, Consumer, Message
from shared.bus.topology import TOPICS
from shared.db.database import Database
from shared.events import SubscriptionChanged, decode

CONSUMER = "notifier"


@dataclass(frozen=True, slots=True)
class Context:
    """All that the handler may touch."""

    database: Database
    bus: Bus
    subscribers: Subscribers
    url: Callable[[], str]
    """Address of the installation, without a slash at the end."""
    wake: Callable[[], None]
    """Tells the sender that there is something to send."""


async def on_event(message: Message, context: Context) -> None:
    """Any event: recorded for delivery as it is now, if its tenant has subscribed to its type."""
    tenant, _, type = message.topic.partition(".")
    if type == SubscriptionChanged.TYPE:
        await on_subscription_changed(message, context)
    subscription = await context.subscribers.of(tenant)
    if subscription is not None:
        await _record(tenant, type, message.body, subscription, context)


async def on_subscription_changed(message: Message, context: Context) -> None:
    """From now on the tenant's events come here; those since the change are made up for."""
    event = decode(message.body)
    subscription = await context.subscribers.now(event.tenant)
    if subscription is None:
        return  # the queue stays bound: what comes is ignored, and a new subscription cannot race with an unbinding
    await context.bus.bind(CONSUMER, [topic_of(event.tenant)])
    async for type, body in store.told_since(context.database, event.tenant, event.id):
        await _record(event.tenant, type, body, subscription, context)


async def _record(tenant: str, type: str, body: bytes, subscription: Subscription, context: Context) -> None:
    if not core.is_wanted(subscription.types, type):
        return
    event = decode(body)
    about = {}
    if event.run is not None:
        about = {
            **await store.about_run(context.database, event.run),
            "url": f"{context.url()}/api/v1/runs/{event.run}",
        }
    id = core.delivery_id(subscription.id, event.id)
    await store.add(context.database, id, subscription.id, tenant, event.id, core.payload(event, about))
    context.wake()


def topic_of(tenant: str) -> str:
    """All events of a tenant."""
    return f"{tenant}.#"


def consumer(context: Context) -> Consumer:
    """Who hears what: notifier hears everything of those who have subscribed."""

    async def handle(message: Message) -> None:
        await on_event(message, context)

    return Consumer(CONSUMER, TOPICS[CONSUMER], handle)
