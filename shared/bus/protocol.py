"""What every bus promises. `tests/contract/test_bus.py` runs against each implementation.

Two kinds of message. *Events* are durable: they reach every consumer group that is bound to their topic at least once, are
retried with growing delays when a handler fails, and are parked with the reason when it fails for good. *Nudges* reach
whoever listens at this moment, at most once; they only make readers look sooner at what the database holds.

Topics are dot-separated words; in patterns `*` stands for one word and `#` for any number of them.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

RETRY_DELAYS = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Seconds before the second, third, ... try of a handler that fails. After the last one the message is parked."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event on the bus."""

    id: uuid.UUID
    topic: str
    body: bytes
    tries: int = 1
    """How often it has been handed to this consumer, counting this time."""


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A parked message: what it was, whose queue it was in, and why it could not be handled."""

    id: uuid.UUID
    queue: str
    topic: str
    body: bytes
    reason: str
    tries: int


Handler = Callable[[Message], Awaitable[None]]
"""Returns: handled (and committed). TemporaryError: again later, and after the last try parked, unless it is one of those that
`shared.errors` says are never. PermanentError: parked at once. Anything else is a bug: retried, then parked."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A consumer group: every message of its topics is handled by one of its members."""

    name: str
    topics: Sequence[str]
    handler: Handler
    concurrency: int = 64
    """How many messages one member handles at a time; also the prefetch."""
    retry_delays: Sequence[float] = field(default=RETRY_DELAYS)
    says_when_begun: bool = False
    """Its handler lets messages wait, and calls `handling.note_begun` itself when the wait of one is over."""


class Listening(Protocol):
    """What `Bus.listen` has begun."""

    async def stop(self) -> None:
        """Hear no more."""
        ...


class Bus(Protocol):
    """See the module's docstring. All methods are for one event loop."""

    def publish(self, message: Message) -> asyncio.Future[None]:
        """Send an event. The future is done when it is safe: confirmed by the broker, or, where there is none, handled or
        parked by every consumer group. It fails with TemporaryError when that cannot be told, or when there is no queue for
        what some group must hear; then send it again. It fails with PermanentError where a broker cannot carry it (RabbitMQ: a
        topic of more than 255 bytes)."""
        ...

    async def consume(self, consumer: Consumer) -> None:
        """Join a consumer group and hand its messages to the handler until `close`."""
        ...

    def nudge(self, topic: str, body: bytes) -> None:
        """Tell whoever listens now. Never waits, never fails."""
        ...

    async def listen(self, topics: Sequence[str], callback: Callable[[str, bytes], None]) -> Listening:
        """Hear nudges and copies of events from the return on, at most once, until told to stop, or `close`. The callback must
        not block."""
        ...

    async def bind(self, consumer: str, topics: Sequence[str]) -> None:
        """From the return on, events of these topics reach the consumer group too, also while none of its members is there."""
        ...

    async def dead(self, limit: int = 100) -> list[DeadMessage]:
        """The oldest parked messages."""
        ...

    async def parked(self) -> int:
        """How many messages are parked."""
        ...

    async def replay(self, ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
        """Put parked messages back into the queues they came from, with a fresh count of tries. Returns those found."""
        ...

    async def ping(self) -> None:
        """Raise TemporaryError if the bus cannot take messages."""
        ...

    async def guard(self) -> None:
        """For ever: see to it that a connection that was lost comes back."""
        ...

    async def stop_consuming(self) -> None:
        """Take no new messages; return once all handlers in hand are done."""
        ...

    async def close(self) -> None:
        """Give back connections. Messages in hand that were not handled will be delivered again."""
        ...


def topic_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether a topic matches one of the patterns."""
    expression = re.compile("|".join(_regex(pattern) for pattern in patterns) or r"(?!)")
    return lambda topic: expression.fullmatch("." + topic) is not None


def _regex(pattern: str) -> str:
    """A regular expression for topics with a dot put before them, so that every word begins alike."""
    words = {"*": r"\.[^.]+", "#": r"(?:\.[^.]+)*"}
    return "".join(words.get(word, r"\." + re.escape(word)) for word in pattern.split("."))
