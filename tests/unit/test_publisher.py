"""What RabbitMQ cannot be made to do to a publisher; the rest is in tests/contract/test_bus.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.bus.publisher import Publisher
from shared.errors import TemporaryError


class Breaking:
    """In place of aio-pika's channel."""

    def __init__(self) -> None:
        self.error: BaseException = ZeroDivisionError("a bug")

    async def get_underlay_channel(self) -> Any:
        raise self.error


async def test_a_publisher_that_was_ended_begins_anew_and_leaves_nobody_waiting() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # else the bug is told, as it should be
    channel: Any = Breaking()
    publisher = Publisher(channel)
    for error in (ZeroDivisionError("a bug"), asyncio.CancelledError(), ZeroDivisionError("once more")):
        channel.error = error
        with pytest.raises(TemporaryError):
            await asyncio.wait_for(publisher.publish("e", "acme.run.created", "id", b"", content_type="x"), 5)
