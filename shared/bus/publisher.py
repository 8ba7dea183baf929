"""Publishing to RabbitMQ with confirms, and acknowledging, many messages in one write.

What is published in one turn of the event loop leaves as one piece of the stream, and all of it waits for its confirms at the
same time. aiormq (which carries aio-pika) can publish only one message after another, each with tasks, locks and waits of
its own, at about five times the processor time; so this speaks to its channel one level lower: it counts delivery tags, puts
frames into the channel's write queue, and lets aiormq resolve the confirms. Nothing else may publish on that channel.

A message that AMQP cannot carry fails alone: what was published with it leaves all the same.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import aio_pika.exceptions
import aiormq.exceptions
from aio_pika.abc import AbstractRobustChannel
from aiormq import spec
from aiormq.abc import AbstractChannel, ChannelFrame
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from shared import crash
from shared.crash import Point
from shared.errors import PermanentError, TemporaryError
from shared.log import get_logger

CONFIRM_TIMEOUT = 30.0
"""Seconds until a message that was not confirmed counts as not sent, unless the broker reads nothing for now."""

_BROKER_ERRORS = (*aio_pika.exceptions.CONNECTION_EXCEPTIONS, aiormq.exceptions.AMQPError, TimeoutError)
_UNWRITABLE = (TypeError, ValueError, struct.error)
"""What pamqp raises for values that AMQP has no form for."""
_log = get_logger("bus")


@dataclass(slots=True)
class _Outgoing:
    exchange: str
    key: str
    id: str
    body: bytes
    properties: spec.Basic.Properties
    mandatory: bool
    confirmed: asyncio.Future[None]


class Publisher:
    """Publishes on one channel of its own, which must have confirms on, and raise what is returned."""

    def __init__(self, channel: AbstractRobustChannel) -> None:
        self._robust = channel
        self._channel: Channel | None = None
        self._waiting: list[_Outgoing] = []
        self._unconfirmed: set[asyncio.Future[Any]] = set()
        self._flushing: asyncio.Task[None] | None = None
        self.returned = False
        """A message has come back, as there was no queue for it; whoever declares queues takes this back."""

    def publish(
        self, exchange: str, key: str, id: str, body: bytes,
        *, content_type: str, headers: Mapping[str, Any] | None = None, persistent: bool = True, mandatory: bool = False,
    ) -> asyncio.Future[None]:  # fmt: skip
        """The future is done when the broker has confirmed; it fails with TemporaryError when that cannot be told, and with
        PermanentError for what can never be sent. `mandatory`: also with TemporaryError if there is no queue for it, which the
        broker else confirms and forgets."""
        properties = spec.Basic.Properties(
            content_type=content_type,
            message_id=id,
            delivery_mode=2 if persistent else 1,
            headers=dict(headers) if headers else None,
        )
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Outgoing(exchange, key, id, body, properties, mandatory, confirmed))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="publisher")
        return confirmed

    async def _flush(self) -> None:
        """Send what has gathered, until nothing has. Starts in the next turn of the loop, when all of this turn's is there."""
        try:
            while self._waiting:
                await self._send()
        finally:
            # Whatever has ended this task: the next message begins another.
            self._flushing = None

    async def _send(self) -> None:
        waiting: list[_Outgoing] = []
        try:
            channel = await self._open_channel()
            waiting, self._waiting = self._waiting, []
            if payload := b"".join(self._written(channel, each) for each in waiting):
                await _write(channel, ChannelFrame(payload=payload, should_close=False))
        except BaseException as error:
            # Also of a bug, or when this task is cancelled: nobody may be left waiting for what is not on its way.
            self._fail_all(waiting, error)
            if not isinstance(error, _BROKER_ERRORS):
                raise
        else:
            _give_up_later(channel, waiting)

    def _fail_all(self, taken: list[_Outgoing], error: BaseException) -> None:
        """Those that were taken to be sent, and those that have come since."""
        taken, self._waiting = taken + self._waiting, []
        for each in taken:
            _fail(each.confirmed, each.key, error)

    async def _open_channel(self) -> Channel:
        async with asyncio.timeout(CONFIRM_TIMEOUT):
            channel = await self._robust.get_underlay_channel()
        if not isinstance(channel, Channel):
            raise TypeError("aio-pika does not stand on aiormq any more")
        if channel.is_closed or channel.connection.is_closed:
            # aio-pika says that it is connected before it has renewed its channels: this one is of the connection before, and
            # what is written to it would be waited for in vain.
            raise aiormq.exceptions.ChannelClosed
        if channel is not self._channel:
            self._channel, self._unconfirmed = channel, set()
            channel.closing.add_done_callback(partial(_lose, self._unconfirmed))
        return channel

    def _written(self, channel: Channel, each: _Outgoing) -> bytes:
        """The message as it goes over the wire; nothing of one that cannot, which fails."""
        try:
            payload = _payload(channel, each)
        except _UNWRITABLE as error:
            _refuse(each, error)
            return b""
        # Counted only now: the broker counts what reaches it.
        channel.delivery_tag += 1
        confirmation = asyncio.get_running_loop().create_future()
        channel.confirmations[channel.delivery_tag] = confirmation
        self._unconfirmed.add(confirmation)
        if each.mandatory:
            # By this aiormq finds whose confirmation fails when the message comes back.
            channel.message_id_delivery_tag[each.id] = channel.delivery_tag
        confirmation.add_done_callback(partial(self._confirm, each, channel, channel.delivery_tag))
        return payload

    def _confirm(self, each: _Outgoing, channel: Channel, tag: int, confirmation: asyncio.Future[Any]) -> None:
        self._unconfirmed.discard(confirmation)
        if each.mandatory and channel.message_id_delivery_tag.get(each.id) == tag:
            del channel.message_id_delivery_tag[each.id]
        error = confirmation.exception()
        if isinstance(error, aiormq.exceptions.PublishError):
            self.returned = True
        if error is not None:
            _fail(each.confirmed, each.key, error)
        elif not each.confirmed.done():
            each.confirmed.set_result(None)


def _payload(channel: Channel, each: _Outgoing) -> bytes:
    size = channel.max_content_size
    bodies = [ContentBody(each.body[at : at + size]) for at in range(0, len(each.body), size)]
    frames: list[Any] = [
        spec.Basic.Publish(exchange=each.exchange, routing_key=each.key, mandatory=each.mandatory),
        ContentHeader(body_size=len(each.body), properties=each.properties),
        *bodies,
    ]
    return ChannelFrame.marshall(channel.number, frames).payload


def _refuse(each: _Outgoing, error: Exception) -> None:
    failure = PermanentError(
        f"no message can be sent with the topic {each.key[:100]!a}: {error} (AMQP takes at most 255 bytes of it, and only text "
        "that is UTF-8)",
        reason="BadMessage",
    )
    failure.__cause__ = error
    _log.error("message refused", error=str(failure))
    if not each.confirmed.done():
        each.confirmed.set_exception(failure)


def _lose(unconfirmed: set[asyncio.Future[Any]], _: object) -> None:
    """The channel is gone, and with it every confirm that has not come."""
    for confirmation in list(unconfirmed):
        if not confirmation.done():
            confirmation.set_exception(aiormq.exceptions.ChannelClosed())


class Acknowledger:
    """Acknowledges what was handled; what is handled in one turn of the loop leaves as one write.

    A broker that is lost meanwhile delivers again what was not acknowledged, on a channel that knows nothing of these tags.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Channel, int]] = []
        self._flushing: asyncio.Task[None] | None = None

    def acknowledge(self, channel: AbstractChannel, delivery_tag: int) -> None:
        if not isinstance(channel, Channel):
            raise TypeError("aio-pika does not stand on aiormq any more")
        self._waiting.append((channel, delivery_tag))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="acknowledgements")

    async def flushed(self) -> None:
        """Return once everything handed in is on its way."""
        while self._flushing is not None:
            await asyncio.wait([self._flushing])

    async def _flush(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            for channel in {channel for channel, _ in waiting}:
                frames = [spec.Basic.Ack(delivery_tag=tag) for other, tag in waiting if other is channel]
                if channel.is_closed:
                    continue
                try:
                    await _write(channel, ChannelFrame.marshall(channel.number, frames))
                    crash.reached(Point.AFTER_ACK)
                except _BROKER_ERRORS as error:
                    _log.warning(
                        "messages not acknowledged", messages=len(frames), error=str(error) or type(error).__name__
                    )
        self._flushing = None


async def _write(channel: Channel, frame: ChannelFrame) -> None:
    """Hand a frame to the connection. Its queue is short, and nobody empties that of a connection whose peer has gone without
    a word: whoever waits there for ever would keep all that comes after it from being sent on the next connection."""
    async with asyncio.timeout(CONFIRM_TIMEOUT):
        await channel.write_queue.put(frame)


def _give_up_later(channel: Channel, waiting: list[_Outgoing]) -> None:
    asyncio.get_running_loop().call_later(CONFIRM_TIMEOUT, _give_up, channel, waiting)


def _give_up(channel: Channel, waiting: list[_Outgoing]) -> None:
    if _blocked(channel) and not channel.is_closed:
        # It will be read when the alarm is over, or lost with the channel; until then, what is sent again lies there twice.
        _give_up_later(channel, waiting)
        return
    for each in waiting:
        _fail(each.confirmed, each.key, TimeoutError(f"no confirm within {CONFIRM_TIMEOUT:g} s"))


def _blocked(channel: Channel) -> bool:
    """Whether the broker, in an alarm of memory or disk, has said that it reads nothing from this connection for now."""
    unblocked: asyncio.Event | None = getattr(channel.connection, "_Connection__connection_unblocked", None)
    return unblocked is not None and not unblocked.is_set()


def _fail(confirmed: asyncio.Future[None], key: str, error: BaseException) -> None:
    if not confirmed.done():
        text = str(error) or type(error).__name__
        failure = TemporaryError(f"RabbitMQ did not confirm {key} ({text}); it will be sent again")
        failure.__cause__ = error
        confirmed.set_exception(failure)
