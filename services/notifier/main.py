"""Wires notifier: a consumer of all events, and a sender. Any number of replicas may run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.notifier import handlers, sender
from services.notifier.config import NotifierSettings
from services.notifier.sender import Sender
from services.notifier.subscribers import TOPICS, Subscribers
from shared.service import Host, Parts, Service


@asynccontextmanager
async def _open(host: Host, settings: NotifierSettings) -> AsyncIterator[Parts]:
    allow_private = host.settings.allow_private_targets
    subscribers = Subscribers(host.database)
    await host.bus.listen(TOPICS, subscribers.heard)
    # Bindings are kept by RabbitMQ, but not by a new one, nor by the bus of one process.
    await host.bus.bind(handlers.CONSUMER, [handlers.topic_of(tenant) for tenant in await subscribers.tenants()])
    async with sender.session(settings, allow_private=allow_private) as session:
        sending = Sender(
            sender.Context(host.database, host.vault, host.clock, settings, host.name, allow_private, session)
        )
        context = handlers.Context(host.database, host.bus, subscribers, lambda: host.public_url, sending.wake)
        yield Parts(
            consumers=[handlers.consumer(context)],
            tasks={"sender": sending.run, "subscriptions": subscribers.refresh},
        )


SERVICE = Service(name="notifier", open=_open, settings=NotifierSettings)
