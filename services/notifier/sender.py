"""Sends what is due: claims tries, signs and posts them, records what came of it.

A try that nobody recorded (this process was killed) is due again when its lease is over; the receiver knows it by its id.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from prometheus_client import Counter as Metric
from standardwebhooks import Webhook

from services.notifier import core, store
from services.notifier.config import NotifierSettings
from services.notifier.store import Try
from shared.clock import Clock
from shared.db.database import Database
from shared.errors import HubflowError, PermanentError, TemporaryError, UserError
from shared.events import DeliveryFailed
from shared.log import get_logger
from shared.outgoing import CheckedResolver, check_url
from shared.text import fit
from shared.vault import Vault

POLL_SECONDS = 1.0
LEASE_MARGIN = 30.0
"""Seconds beyond the time limit of a try until it counts as lost."""
LAST_MOMENT = 3.0
"""Seconds that tries under way have when the process ends."""
ANSWER_BYTES = 2048
"""As much of an answer is read; the rest is not wanted."""

_log = get_logger("notifier")
_TRIES = Metric("hubflow_notifier_tries", "Tries to deliver a webhook", ["outcome"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a try. `status` None: no answer; `error` "": it was taken."""

    status: int | None
    error: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """All that the sender may touch."""

    database: Database
    vault: Vault
    clock: Clock
    settings: NotifierSettings
    name: str
    """Of this process, for claims."""
    allow_private: bool
    session: aiohttp.ClientSession


@asynccontextmanager
async def session(settings: NotifierSettings, *, allow_private: bool) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that reaches only what it may, keeps no cookies and uses no proxy of the environment."""
    connector = aiohttp.TCPConnector(
        resolver=None if allow_private else CheckedResolver(), use_dns_cache=False, limit=0, force_close=True
    )
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=settings.timeout), cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "Hubflow (Standard Webhooks)"}, auto_decompress=False,
    ) as made:  # fmt: skip
        yield made


class Sender:
    """Keeps up to `concurrency` tries under way."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._woken = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._busy: Counter[uuid.UUID] = Counter()

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled; then what is under way has a moment to end, and the rest is left to its lease."""
        try:
            while True:
                self._woken.clear()
                if not await self._start_due():
                    await self._wait()
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=LAST_MOMENT)
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _start_due(self) -> int:
        """How many tries were begun."""
        settings = self._context.settings
        room = settings.concurrency - len(self._under_way)
        if room <= 0:
            return 0
        try:
            tries = await store.claim(
                self._context.database, +self._busy, room, settings.per_subscription, self._context.name,
                settings.timeout + LEASE_MARGIN,
            )  # fmt: skip
        except TemporaryError as error:
            _log.warning("deliveries not claimed", error=str(error))
            return 0
        for attempt in tries:
            self._busy[attempt.subscription] += 1
            task = asyncio.create_task(self._deliver(attempt), name=f"delivery {attempt.id}")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return len(tries)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _deliver(self, attempt: Try) -> None:
        try:
            try:
                outcome = await post(attempt, self._context)
            except Exception as error:
                # Unrecorded it would be tried again for ever.
                _log.exception("delivery not sent", delivery=str(attempt.id))
                outcome = Outcome(None, f"it could not be sent: {type(error).__name__}")
            await record(attempt, outcome, self._context)
        except HubflowError as error:
            _log.warning("delivery not recorded, it will be tried again", delivery=str(attempt.id), error=str(error))
        finally:
            self._busy[attempt.subscription] -= 1
            self._woken.set()


async def post(attempt: Try, context: Context) -> Outcome:
    """Sign and send. Never raises for what a receiver does."""
    try:
        check_url(attempt.url, allow_private=context.allow_private)
        headers = _headers(attempt, context)
    except (UserError, PermanentError) as error:
        return Outcome(None, str(error))
    try:
        async with context.session.post(
            attempt.url, data=attempt.payload, headers=headers, allow_redirects=False
        ) as response:
            told = await response.content.read(ANSWER_BYTES)
            if 200 <= response.status < 300:
                return Outcome(response.status)
            return Outcome(response.status, _refusal(response, told), _retry_after(response, context.clock.now()))
    except TimeoutError:
        return Outcome(None, f"no answer within {context.settings.timeout:g} seconds")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Outcome(None, str(error) or type(error).__name__)


def _headers(attempt: Try, context: Context) -> dict[str, str]:
    """A time and a signature of this very try; the id is the same for all."""
    now = context.clock.now()
    webhook = Webhook(context.vault.decrypt(attempt.secret))
    return {
        "Content-Type": "application/json",
        "webhook-id": str(attempt.id),
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": webhook.sign(str(attempt.id), now, attempt.payload.decode()),
    }


def _refusal(response: aiohttp.ClientResponse, told: bytes) -> str:
    if 300 <= response.status < 400:
        where = response.headers.get("Location", "nowhere")[:200]
        return f"status {response.status}: it leads to {where}, but redirects are not followed; set the final address"
    text = " ".join(told.decode("utf-8", "replace").split())[:300]
    return f"status {response.status}" + (f": {text}" if text else "")


def _retry_after(response: aiohttp.ClientResponse, now: datetime) -> float | None:
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()


async def record(attempt: Try, outcome: Outcome, context: Context) -> None:
    """Write down what came of a try; the last one that fails is told."""
    if not outcome.error and outcome.status is not None:
        _TRIES.labels("delivered").inc()
        await store.delivered(context.database, attempt, context.name, outcome.status)
        return
    error = fit(outcome.error.replace("\0", "")[:1000])
    delay = core.delay_after(attempt.tries, random.random(), outcome.retry_after)  # noqa: S311 - spreads retries
    if delay is not None:
        _TRIES.labels("retried").inc()
        await store.try_again(context.database, attempt, context.name, outcome.status, error, delay)
        return
    _TRIES.labels("failed").inc()
    _log.warning("delivery given up", tenant=attempt.tenant, delivery=str(attempt.id), url=attempt.url, error=error)
    async with context.database.transaction() as tx:
        if await store.failed(tx, attempt, context.name, outcome.status, error):
            tx.tell(DeliveryFailed(tenant=attempt.tenant, delivery=str(attempt.id), url=attempt.url, message=error))
