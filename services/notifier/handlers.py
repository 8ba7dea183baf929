"""Events that somebody subscribed to become deliveries; nothing is sent here (see sender.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.notifier import core, store
from services.notifier.subscribers import Subscribers
from shared.bus.protocol import Consumer, Message
from shared.bus.topology import TOPICS
from shared.db.database import Database
from shared.events import decode


@dataclass(frozen=True, slots=True)
class Context:
    """All that the handler may touch."""

    database: Database
    subscribers: Subscribers
    url: Callable[[], str]
    """Address of the installation, without a slash at the end."""
    wake: Callable[[], None]
    """Tells the sender that there is something to send."""


async def on_event(message: Message, context: Context) -> None:
    """Any event: recorded for delivery as it is now, if its tenant has subscribed to its type."""
    tenant, _, type = message.topic.partition(".")
    subscription = await context.subscribers.of(tenant)
    if subscription is None or not core.is_wanted(subscription.types, type):
        return
    event = decode(message.body)
    about = {}
    if event.run is not None:
        about = {
            **await store.about_run(context.database, event.run),
            "url": f"{context.url()}/api/v1/runs/{event.run}",
        }
    id = core.delivery_id(subscription.id, event.id)
    await store.add(context.database, id, subscription.id, tenant, event.id, core.payload(event, about))
    context.wake()


def consumer(context: Context) -> Consumer:
    """Who hears what: notifier hears everything."""

    async def handle(message: Message) -> None:
        await on_event(message, context)

    return Consumer("notifier", TOPICS["notifier"], handle)
