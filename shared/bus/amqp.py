"""The bus on RabbitMQ (>= 3.10), with aio-pika.

    hubflow.events  (topic)  --bindings-->  hubflow.<consumer>  (quorum queue, delivery-limit, dead-letters to hubflow.dead)
    hubflow.delay.<ms> (fanout) ----------> hubflow.delay.<ms>  (quorum queue with a TTL; expires into the queue it came from)
    hubflow.dead    (fanout) ------------>  hubflow.dead        (quorum queue: parked messages, with the reason as a header)
    hubflow.live    (topic)  ------------>  exclusive queues of listeners (at most once)

A failed message is published to a delay queue (confirmed) and then acknowledged; a crash between the two means a
duplicate, which the inbox drops. Publisher confirms are pipelined: any number of publishes wait for theirs at the same
time (T75).
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aio_pika
import aiormq.exceptions
from aio_pika.abc import (
    AbstractIncomingMessage,
    AbstractRobustChannel,
    AbstractRobustConnection,
)
from yarl import URL

from shared import crash
from shared.bus.handling import Verdict, handle
from shared.bus.protocol import RETRY_DELAYS, Consumer, DeadMessage, Message, topic_matcher
from shared.bus.publisher import Acknowledger, Publisher
from shared.bus.topology import TOPICS
from shared.crash import Point
from shared.errors import TemporaryError
from shared.events import CONTENT_TYPE
from shared.log import get_logger

EVENTS = "hubflow.events"
LIVE = "hubflow.live"
DEAD = "hubflow.dead"
DELIVERY_LIMIT = 20
"""How often RabbitMQ redelivers a message whose consumers die of it, before it is parked."""
LOOKS_LIMIT = 1_000_000_000
"""How often parked messages may be looked at: each look is a delivery. RabbitMQ 4 has a default of 20, and 3.x takes -1 for
less than none, so unlimited is a number that nobody reaches."""
HEARTBEAT = 10
"""Seconds between signs of life, unless the URL says otherwise. A broker that has gone without a word is noticed after three
of them; with the library's own 60 that would be three minutes in which a process hears nothing."""
PUT_AWAY_AGAIN = 1.0
"""Seconds until a message that could neither be put off nor parked is tried to be once more."""
GUARD_INTERVAL = 5.0
"""Seconds between two looks at the connection."""
STUCK_AFTER = 20.0
"""Seconds without a connection after which it is asked whether others get one; and that declaring queues again may take."""
LISTENER_BACKLOG = 100_000
"""Messages kept for a listener that does not read; older ones are dropped."""

_BROKER_ERRORS = (*aio_pika.exceptions.CONNECTION_EXCEPTIONS, aiormq.exceptions.AMQPError, TimeoutError)
"""What aio-pika raises while a broker is away or going; StopAsyncIteration is among them, when it dies in the handshake."""
_log = get_logger("bus")


class AmqpBus:
    """See `shared.bus.protocol.Bus`. Open with `open_amqp_bus`."""

    def __init__(self, url: str, connection: AbstractRobustConnection) -> None:
        self._url = url
        self._connection = connection
        self._publisher: Publisher
        self._declaring: aio_pika.abc.AbstractChannel
        self._acknowledger = Acknowledger()
        self._consumers: list[tuple[aio_pika.abc.AbstractQueue, str]] = []
        self._handling: set[asyncio.Task[Any]] = set()
        self._closing = False

    # ------------------------------------------------------------ publishing

    def publish(self, message: Message) -> asyncio.Future[None]:
        return self._publish(
            EVENTS, message.topic, message.id, message.body, mandatory=_heard(message.topic.partition(".")[2])
        )

    def nudge(self, topic: str, body: bytes) -> None:
        self._publish(LIVE, topic, uuid.uuid4(), body, persistent=False, mandatory=False).add_done_callback(
            _note_lost_nudge
        )

    def _publish(
        self, exchange: str, key: str, id: uuid.UUID, body: bytes,
        headers: dict[str, Any] | None = None, *, persistent: bool = True, mandatory: bool = True,
    ) -> asyncio.Future[None]:  # fmt: skip
        return self._publisher.publish(
            exchange, key, str(id), body,
            content_type=CONTENT_TYPE, headers=headers, persistent=persistent, mandatory=mandatory,
        )  # fmt: skip

    # ------------------------------------------------------------ consuming

    async def consume(self, consumer: Consumer) -> None:
        with _translated_errors():
            await self._consume(consumer)

    async def _consume(self, consumer: Consumer) -> None:
        channel = await self._connection.channel()
        await channel.set_qos(prefetch_count=consumer.concurrency)
        queue = await self._declare_queue(channel, consumer.name, consumer.topics)

        async def on_message(incoming: AbstractIncomingMessage) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._handling.add(task)
            try:
                await self._handle(consumer, queue.name, incoming)
            finally:
                if task is not None:
                    self._handling.discard(task)

        tag = await queue.consume(on_message)
        self._consumers.append((queue, tag))

    async def _handle(self, consumer: Consumer, queue: str, incoming: AbstractIncomingMessage) -> None:
        headers = incoming.headers
        tries = _tries(headers, 1)
        topic = str(headers.get("hubflow-topic", incoming.routing_key))
        message = Message(_message_id(incoming), topic, incoming.body, tries)
        verdict = await handle(consumer, message)
        while True:
            try:
                await self._put_away(verdict, queue, message)
                crash.reached(Point.BEFORE_ACK)
                self._acknowledger.acknowledge(incoming.channel, incoming.delivery_tag or 0)
                return
            except (TemporaryError, *_BROKER_ERRORS) as error:
                _log.warning("message not acknowledged", queue=queue, topic=topic, error=_text(error))
            if incoming.channel.is_closed:
                return  # the broker delivers it again, and the inbox knows whether it was handled
            # It is in our hands for as long as the channel lives: nobody else will be given it.
            await asyncio.sleep(PUT_AWAY_AGAIN)

    async def _put_away(self, verdict: Verdict, queue: str, message: Message) -> None:
        """Park or put off a message that was not handled. Returns once that is confirmed."""
        headers = {"hubflow-topic": message.topic, "hubflow-reason": verdict.reason[:2000]}
        if verdict.dead:
            await self._publish(DEAD, queue, message.id, message.body, {**headers, "hubflow-tries": message.tries})
        elif verdict.retry_after is not None:
            delay = _delay_exchange(min(RETRY_DELAYS, key=lambda each: abs(each - (verdict.retry_after or 0.0))))
            await self._publish(delay, queue, message.id, message.body, {**headers, "hubflow-tries": verdict.tries + 1})

    async def listen(self, topics: Sequence[str], callback: Callable[[str, bytes], None]) -> _Listener:
        with _translated_errors():
            return await self._listen(topics, callback)

    async def _listen(self, topics: Sequence[str], callback: Callable[[str, bytes], None]) -> _Listener:
        channel = await self._connection.channel()
        queue = await channel.declare_queue(
            f"hubflow.live.{uuid.uuid4()}", exclusive=True, auto_delete=True,
            arguments={"x-max-length": LISTENER_BACKLOG, "x-overflow": "drop-head"},
        )  # fmt: skip

        async def on_message(incoming: AbstractIncomingMessage) -> None:
            callback(incoming.routing_key or "", incoming.body)

        self._consumers.append((queue, await queue.consume(on_message, no_ack=True)))
        for exchange in (EVENTS, LIVE):
            for topic in topics:
                await queue.bind(exchange, topic)
        return _Listener(channel)

    async def bind(self, consumer: str, topics: Sequence[str]) -> None:
        queue = await self._declaring.get_queue(_queue_name(consumer), ensure=False)
        try:
            for topic in topics:
                await queue.bind(EVENTS, topic)
        except _BROKER_ERRORS as error:
            raise TemporaryError(f"RabbitMQ did not bind {queue.name} ({_text(error)})") from error

    # ------------------------------------------------------------ parked messages

    async def dead(self, limit: int = 100) -> list[DeadMessage]:
        async with self._connection.channel() as channel:
            # Closing the channel puts everything back, unacknowledged and in order.
            return [_dead(message) for message in await _get(channel, limit)]

    async def parked(self) -> int:
        with _translated_errors():
            async with self._connection.channel() as channel:
                queue = await channel.get_queue(DEAD)
                return queue.declaration_result.message_count or 0

    async def replay(self, ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
        wanted, replayed = set(ids), []
        async with self._connection.channel() as channel:
            for message in await _get(channel, None):
                dead = _dead(message)
                if dead.id in wanted:
                    await self._publish("", dead.queue, dead.id, dead.body, {"hubflow-topic": dead.topic})
                    await message.ack()
                    replayed.append(dead.id)
        return replayed

    # ------------------------------------------------------------ life

    async def ping(self) -> None:
        if self._connection.is_closed or not self._connection.connected.is_set():
            raise TemporaryError("RabbitMQ does not answer; check HUBFLOW_AMQP_URL and the broker")

    async def guard(self) -> None:
        lost_at: float | None = None
        while True:
            await asyncio.sleep(GUARD_INTERVAL)
            now = time.monotonic()
            if self._closing or (self._connection.connected.is_set() and not self._waits_for_a_lock()):
                lost_at = None
                if self._publisher.returned and not self._closing:
                    await self._declare_again()
                continue
            lost_at = lost_at or now
            if now - lost_at > STUCK_AFTER and await _answers(self._url):
                lost_at = now
                _free_the_lock()

    async def _declare_again(self) -> None:
        """Somebody has deleted a queue by hand, and what had to be in it came back."""
        self._publisher.returned = False
        try:
            async with asyncio.timeout(STUCK_AFTER), self._connection.channel() as channel:
                await self._declare(channel)
            _log.warning("message came back, the queues are declared again")
        except _BROKER_ERRORS as error:
            self._publisher.returned = True
            _log.warning("queues not declared", error=_text(error))

    def _waits_for_a_lock(self) -> bool:
        """aio-pika says that it is connected before its channels are restored, so it is asked what it waits for."""
        task: asyncio.Task[Any] | None = getattr(self._connection, "_RobustConnection__reconnection_task", None)
        return task is not None and bool(where := _where(task)) and where[-1].endswith(" acquire")

    async def stop_consuming(self) -> None:
        for queue, tag in self._consumers:
            try:
                await queue.cancel(tag)
            except _BROKER_ERRORS as error:
                _log.debug("consumer not cancelled", error=_text(error))
        self._consumers.clear()
        while self._handling:
            await asyncio.wait(list(self._handling))
        await self._acknowledger.flushed()

    async def close(self) -> None:
        self._closing = True
        try:
            await self._connection.close()
        except _BROKER_ERRORS as error:
            _log.debug("connection not closed", error=_text(error))

    async def open(self) -> None:
        """Declare everything; called once, by `open_amqp_bus`."""
        publishing = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        if not isinstance(publishing, AbstractRobustChannel):
            raise TypeError("aio-pika gave a channel that does not reconnect")
        self._publisher = Publisher(publishing)
        self._declaring = await self._connection.channel()
        await self._declare(self._declaring)

    async def _declare(self, channel: aio_pika.abc.AbstractChannel) -> None:
        await channel.declare_exchange(EVENTS, "topic", durable=True)
        await channel.declare_exchange(LIVE, "topic", durable=True)
        await channel.declare_exchange(DEAD, "fanout", durable=True)
        parked = await channel.declare_queue(
            DEAD, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": LOOKS_LIMIT}
        )
        await parked.bind(DEAD)
        for seconds in RETRY_DELAYS:
            name = _delay_exchange(seconds)
            await channel.declare_exchange(name, "fanout", durable=True)
            waiting = await channel.declare_queue(
                name, durable=True,
                arguments={
                    "x-queue-type": "quorum", "x-message-ttl": int(seconds * 1000),
                    "x-dead-letter-exchange": "", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
                },
            )  # fmt: skip
            await waiting.bind(name)
        for consumer, topics in TOPICS.items():
            await self._declare_queue(channel, consumer, topics)

    async def _declare_queue(
        self, channel: aio_pika.abc.AbstractChannel, consumer: str, topics: Sequence[str]
    ) -> aio_pika.abc.AbstractQueue:
        name = _queue_name(consumer)
        queue = await channel.declare_queue(
            name, durable=True,
            arguments={
                "x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": DEAD, "x-dead-letter-routing-key": name,
                "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
            },
        )  # fmt: skip
        for topic in topics:
            await queue.bind(EVENTS, topic)
        return queue


async def open_amqp_bus(url: str) -> AmqpBus:
    """Connect and declare. Raises TemporaryError when the broker does not answer (the URL's password is not shown)."""
    with _translated_errors():
        connection = await aio_pika.connect_robust(_with_heartbeat(url), reconnect_interval=0.5, timeout=10)
        bus = AmqpBus(url, connection)
        try:
            await bus.open()
        except BaseException:
            # aio-pika's task that reconnects survives being cancelled, unless its connection was closed: it would keep the
            # process from ending, and so from being started again.
            await bus.close()
            raise
    return bus


@functools.lru_cache(maxsize=256)
def _heard(type: str) -> bool:
    """Whether some consumer group must hear of events of this type, whosever they are: without a queue they are not sent."""
    return topic_matcher([topic for topics in TOPICS.values() for topic in topics])(f"tenant.{type}")


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn the library's errors into Hubflow's."""
    try:
        yield
    except _BROKER_ERRORS as error:
        raise TemporaryError(
            f"RabbitMQ does not answer ({_text(error)}); check HUBFLOW_AMQP_URL and the broker"
        ) from error


class _Listener:
    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self._channel = channel

    async def stop(self) -> None:
        """Closing the channel removes its exclusive queue."""
        try:
            await self._channel.close()
        except _BROKER_ERRORS as error:
            _log.debug("listener not closed", error=_text(error))


def _queue_name(consumer: str) -> str:
    return f"hubflow.{consumer}"


def _note_lost_nudge(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()):
        _log.debug("nudge lost", error=str(error))


async def _answers(url: str) -> bool:
    """Does the broker take a new connection?"""
    try:
        connection = await aio_pika.connect(url, timeout=10)
        await connection.close()
    except _BROKER_ERRORS:
        return False
    return True


def _free_the_lock() -> None:
    """Cancel who holds the lock of a channel that aio-pika wants to restore. Seen in storms of `make chaos` (aio-pika 10.2): a
    channel that was closed reopens itself under this lock on a connection that is lost meanwhile, and waits for ever; then the
    next connection waits for the lock, for ever, too. The new connection restores the channel anyway."""
    for task in asyncio.all_tasks():
        where = _where(task)
        if any(place.startswith("robust_channel.py") and place.endswith(" restore") for place in where):
            holds = not where[-1].endswith(" acquire")
            _log.warning("connection is stuck", waits_in=where, cancelled=holds)
            if holds:
                task.cancel()


def _where(task: asyncio.Task[Any]) -> list[str]:
    """The functions that a task is waiting in, outermost first."""
    places: list[str] = []
    waits: Any = task.get_coro()
    while frame := getattr(waits, "cr_frame", None):
        places.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
        waits = getattr(waits, "cr_await", None)
    return places


def _with_heartbeat(url: str) -> URL:
    parsed = URL(url)
    return parsed if "heartbeat" in parsed.query else parsed.update_query(heartbeat=HEARTBEAT)


def _delay_exchange(seconds: float) -> str:
    return f"hubflow.delay.{int(seconds * 1000)}"


def _message_id(incoming: AbstractIncomingMessage) -> uuid.UUID:
    try:
        return uuid.UUID(incoming.message_id or "")
    except ValueError:
        # Not one of ours; the same bytes get the same id, so that it can be parked and named.
        return uuid.uuid5(uuid.NAMESPACE_OID, incoming.body.hex())


async def _get(channel: aio_pika.abc.AbstractChannel, limit: int | None) -> list[AbstractIncomingMessage]:
    queue = await channel.get_queue(DEAD, ensure=False)
    messages: list[AbstractIncomingMessage] = []
    while limit is None or len(messages) < limit:
        message = await queue.get(no_ack=False, fail=False)
        if message is None:
            break
        messages.append(message)
    return messages


def _dead(message: AbstractIncomingMessage) -> DeadMessage:
    headers = message.headers
    reason = (
        _word(headers.get("hubflow-reason")) or f"RabbitMQ: {_word(headers.get('x-first-death-reason')) or 'unknown'}"
    )
    return DeadMessage(
        id=_message_id(message),
        queue=message.routing_key or "",
        topic=str(headers.get("hubflow-topic") or _first_topic(headers)),
        body=message.body,
        reason=reason,
        tries=_tries(headers, DELIVERY_LIMIT),
    )


def _tries(headers: Any, usual: int) -> int:
    """How often it was handled, as we have noted; `usual` where we have not, or somebody else has written there."""
    try:
        return max(1, int(_word(headers.get("hubflow-tries")) or usual))
    except ValueError:
        return usual


def _first_topic(headers: Any) -> str:
    """The topic a message had before RabbitMQ itself dead-lettered it."""
    for death in headers.get("x-death") or []:
        for key in death.get("routing-keys") or []:
            return _word(key)
    return ""


def _word(value: Any) -> str:
    """A header's text, whichever of AMQP's two kinds of string it came as."""
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
