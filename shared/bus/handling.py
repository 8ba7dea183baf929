"""One call of a handler, and what its outcome means. The same for every bus."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from prometheus_client import Histogram

from shared.bus.protocol import RETRY_DELAYS, Consumer, Message
from shared.errors import InUseError, LostRaceError, PermanentError, TemporaryError, UnavailableError
from shared.log import get_logger
from shared.text import fit

HANDLER_TIMEOUT = 300.0
"""Seconds after which a handler is given up and tried again: far below RabbitMQ's consumer_timeout (30 min), which would
close the channel (T72)."""

RACES = 5
"""How many transactions of a handler may lose a race before that costs a try."""
OUTAGE_DELAYS = 2
"""While a server is away the second of the usual delays is taken, again and again: 5 seconds."""
_AGE = Histogram(
    "hubflow_event_age_seconds", "How old an event is when work on it begins for the first time", ["queue"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)  # fmt: skip
"""By it one sees that a service needs more replicas (k8s/components/autoscaling)."""
_log = get_logger("bus")


@dataclass(frozen=True, slots=True)
class Verdict:
    """handled (neither field set), again after some seconds, or dead with a reason."""

    retry_after: float | None = None
    dead: bool = False
    tries: int = 0
    """How many tries it has cost, this one too."""
    reason: str = ""


_HANDLED = Verdict()


async def handle(consumer: Consumer, message: Message) -> Verdict:
    """Call the handler and translate what it raised. Raises nothing but CancelledError."""
    if not consumer.says_when_begun:
        note_begun(consumer.name, message)
    try:
        async with asyncio.timeout(HANDLER_TIMEOUT):
            await _call(consumer, message)
    except UnavailableError as error:
        return _wait(consumer, message, _text(error))
    except InUseError as error:
        return _until_free(consumer, message, _text(error))
    except TemporaryError as error:
        return _again(consumer, message, _text(error), error.delay)
    except PermanentError as error:
        _log.error(
            "message parked", queue=consumer.name, topic=message.topic, event_id=str(message.id), reason=str(error)
        )
        return Verdict(dead=True, reason=f"{error.reason}: {_text(error)}")
    except Exception as error:
        # A bug: told once with its trace, then retried quietly like anything else.
        if message.tries == 1:
            _log.exception("handler failed", queue=consumer.name, topic=message.topic, event_id=str(message.id))
        return _again(consumer, message, f"{type(error).__name__}: {_text(error)}", None)
    return _HANDLED


def note_begun(queue: str, message: Message) -> None:
    """Work on this message begins: note how old it is, unless this has been tried before."""
    if message.tries == 1 and message.id.version == 7:  # whose first 48 bits are the milliseconds of its making
        _AGE.labels(queue).observe(max(0.0, time.time() - (message.id.int >> 80) / 1000))


async def _call(consumer: Consumer, message: Message) -> None:
    """Begin again at once for as many races as it may lose: to put the message off takes a second, and one of its tries."""
    for _ in range(RACES):
        try:
            return await consumer.handler(message)
        except LostRaceError as error:
            await asyncio.sleep(_spread(error.delay or 0.0))
    return await consumer.handler(message)


def _again(consumer: Consumer, message: Message, reason: str, delay: float | None) -> Verdict:
    if message.tries > len(consumer.retry_delays):
        _log.error(
            "message parked after its last try",
            queue=consumer.name, topic=message.topic, event_id=str(message.id), tries=message.tries, reason=reason,
        )  # fmt: skip
        return Verdict(dead=True, reason=f"gave up after {message.tries} tries: {reason}")
    wait = consumer.retry_delays[message.tries - 1] if delay is None else delay
    _log.warning("message will be tried again", queue=consumer.name, topic=message.topic, seconds=wait, reason=reason)
    return Verdict(retry_after=_spread(wait), tries=message.tries, reason=reason)


def _wait(consumer: Consumer, message: Message, reason: str) -> Verdict:
    """Something everybody needs is away. Delays that grow would make what waits longest wait longest after it is back."""
    wait = max(consumer.retry_delays[:OUTAGE_DELAYS], default=1.0)
    _log.warning("message waits for a server", queue=consumer.name, topic=message.topic, seconds=wait, reason=reason)
    return Verdict(retry_after=_spread(wait), tries=message.tries - 1, reason=reason)


def _until_free(consumer: Consumer, message: Message, reason: str) -> Verdict:
    """Others use it, who knows how long. The delays grow like those of any failure, but no try is the last."""
    delays = consumer.retry_delays or RETRY_DELAYS
    tries = min(message.tries, len(delays))
    wait = delays[tries - 1]
    _log.warning(
        "message waits until others have done", queue=consumer.name, topic=message.topic, seconds=wait, reason=reason
    )
    return Verdict(retry_after=_spread(wait), tries=tries, reason=reason)


def _text(error: Exception) -> str:
    """Its words, which may quote anything, as they can be kept: neither AMQP nor PostgreSQL takes text of any kind."""
    text: str = fit(str(error))
    return text


def _spread(seconds: float) -> float:
    return seconds * random.uniform(0.9, 1.1)  # noqa: S311 - spreads retries, no secret
