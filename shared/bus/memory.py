"""The bus of one process: same promises as RabbitMQ, no server.

Nothing is stored here. An event is safe in the database's outbox until every consumer group has handled or parked it: only
then is the future of `publish` done and the event marked as sent. A crash in between means that the next process publishes
it again.
"""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from shared.bus.handling import Verdict, handle
from shared.bus.protocol import Consumer, DeadMessage, Message, topic_matcher


class DeadLetters(Protocol):
    """Where parked messages are kept: `shared.db.dead_letters` in production."""

    async def park(self, message: DeadMessage) -> None: ...
    async def oldest(self, limit: int) -> list[DeadMessage]: ...
    async def count(self) -> int: ...
    async def take(self, ids: Sequence[uuid.UUID]) -> list[DeadMessage]:
        """Those that exist, without removing them."""
        ...

    async def forget(self, message: DeadMessage) -> None: ...


@dataclass(slots=True)
class _Group:
    consumer: Consumer
    matches: Callable[[str], bool]
    slots: asyncio.Semaphore
    deliveries: set[asyncio.Task[bool]] = field(default_factory=set)
    """Deliveries that have not been handled yet, waiting ones too."""
    handling: set[asyncio.Task[Any]] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Listener:
    others: list[_Listener]
    matches: Callable[[str], bool]
    callback: Callable[[str, bytes], None]

    async def stop(self) -> None:
        if self in self.others:
            self.others.remove(self)


class MemoryBus:
    """See `shared.bus.protocol.Bus`."""

    def __init__(self, dead_letters: DeadLetters) -> None:
        self._dead_letters = dead_letters
        self._groups: dict[str, _Group] = {}
        self._bound: dict[str, set[str]] = {}
        self._listeners: list[_Listener] = []
        self._stopping = False

    def publish(self, message: Message) -> asyncio.Future[None]:
        self._tell_listeners(message.topic, message.body)
        deliveries = [self._deliver(group, message) for group in self._groups.values() if group.matches(message.topic)]
        if not deliveries:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_result(None)
            return future
        return asyncio.ensure_future(_all(deliveries))

    async def consume(self, consumer: Consumer) -> None:
        if consumer.name in self._groups:
            raise ValueError(f"consumer group {consumer.name!r} has a member in this process already")
        slots = asyncio.Semaphore(consumer.concurrency)
        topics = [*consumer.topics, *sorted(self._bound.get(consumer.name, ()))]
        self._groups[consumer.name] = _Group(consumer, topic_matcher(topics), slots)

    async def bind(self, consumer: str, topics: Sequence[str]) -> None:
        bound = self._bound.setdefault(consumer, set())
        bound.update(topics)
        if (group := self._groups.get(consumer)) is not None:
            group.matches = topic_matcher([*group.consumer.topics, *sorted(bound)])

    def nudge(self, topic: str, body: bytes) -> None:
        self._tell_listeners(topic, body)

    async def listen(self, topics: Sequence[str], callback: Callable[[str, bytes], None]) -> _Listener:
        listener = _Listener(self._listeners, topic_matcher(topics), callback)
        self._listeners.append(listener)
        return listener

    async def dead(self, limit: int = 100) -> list[DeadMessage]:
        return await self._dead_letters.oldest(limit)

    async def parked(self) -> int:
        return await self._dead_letters.count()

    async def replay(self, ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
        found = await self._dead_letters.take(ids)
        for dead in found:
            # It is forgotten only once it is handled; if it is parked again, its row is simply the newer one.
            group = self._groups.get(dead.queue)
            if group is None or await self._deliver(group, Message(dead.id, dead.topic, dead.body)):
                await self._dead_letters.forget(dead)
        return [dead.id for dead in found]

    async def ping(self) -> None:
        """The process is alive, so its bus is."""

    async def guard(self) -> None:
        await asyncio.Event().wait()  # there is no connection

    async def stop_consuming(self) -> None:
        self._stopping = True
        while handling := [task for group in self._groups.values() for task in group.handling]:
            await asyncio.wait(handling)

    async def close(self) -> None:
        self._stopping = True
        tasks = [task for group in self._groups.values() for task in group.deliveries]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tell_listeners(self, topic: str, body: bytes) -> None:
        for listener in self._listeners:
            if listener.matches(topic):
                listener.callback(topic, body)

    def _deliver(self, group: _Group, message: Message) -> asyncio.Task[bool]:
        """Whether it was handled (and not parked)."""
        task = asyncio.create_task(
            self._until_handled(group, message),
            name=f"{group.consumer.name} {message.topic}",
            context=contextvars.Context(),  # what the publisher has bound to its log lines is not ours
        )
        group.deliveries.add(task)
        task.add_done_callback(group.deliveries.discard)
        return task

    async def _until_handled(self, group: _Group, message: Message) -> bool:
        while True:
            verdict = await self._handle_once(group, message)
            if verdict.dead:
                dead = DeadMessage(
                    message.id, group.consumer.name, message.topic, message.body, verdict.reason, message.tries
                )
                await self._dead_letters.park(dead)
                return False
            if verdict.retry_after is None:
                return True
            await asyncio.sleep(verdict.retry_after)
            message = replace(message, tries=verdict.tries + 1)

    async def _handle_once(self, group: _Group, message: Message) -> Verdict:
        async with group.slots:
            if self._stopping:
                await asyncio.Future()  # not handled: stays unsent in the outbox until `close` cancels this
            task = asyncio.current_task()
            if task is not None:
                group.handling.add(task)
            try:
                return await handle(group.consumer, message)
            finally:
                if task is not None:
                    group.handling.discard(task)


async def _all(deliveries: Sequence[Awaitable[bool]]) -> None:
    await asyncio.gather(*deliveries)
