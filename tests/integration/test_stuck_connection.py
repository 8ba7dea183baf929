"""A connection to RabbitMQ that aio-pika itself would never get back."""

from __future__ import annotations

import asyncio
import contextlib

import aiormq.exceptions
import pytest

from shared.bus import amqp
from shared.bus.amqp import open_amqp_bus
from shared.errors import TemporaryError
from tests.contract.test_bus import message

pytestmark = pytest.mark.servers


async def test_t76_a_channel_that_waits_for_ever_under_its_lock_does_not_keep_the_connection_away(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp, "GUARD_INTERVAL", 0.2)
    monkeypatch.setattr(amqp, "STUCK_AFTER", 1.0)
    bus = await open_amqp_bus(amqp_url)
    reopening = asyncio.Event()
    reopen = bus._declaring.reopen

    async def reopen_for_ever() -> None:
        bus._declaring.reopen = reopen
        reopening.set()
        await asyncio.Event().wait()

    try:
        # The broker closes the channel because of a fault of ours; it reopens itself, and waits for what never comes ...
        bus._declaring.reopen = reopen_for_ever
        channel = await bus._declaring.get_underlay_channel()
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await channel.queue_declare("no-such-queue", passive=True)
        async with asyncio.timeout(10):
            await reopening.wait()
        # ... while the connection is lost.
        await bus._connection.transport.connection.close(ConnectionError("lost"))
        async with asyncio.timeout(30):
            while not bus._waits_for_a_lock():
                await asyncio.sleep(0.05)
        guard = asyncio.create_task(bus.guard())
        async with asyncio.timeout(30):
            while bus._waits_for_a_lock():
                await asyncio.sleep(0.05)
            while True:
                # Its channel may be renewed last; the outbox sends again, too.
                with contextlib.suppress(TemporaryError):
                    await bus.publish(message())
                    break
            await bus._declaring.declare_queue("works", auto_delete=True)
        guard.cancel()
    finally:
        await bus.close()
