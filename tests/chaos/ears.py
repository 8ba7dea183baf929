"""What hears from outside: a subscriber on the broker, a receiver of webhooks, and the witness of containers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import msgpack
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from tests.chaos.pods import PodEngine
from tests.servers.dockerd import Dockerd

QUEUE = "customer.chaos"


@dataclass(slots=True)
class Subscriber:
    """A customer's own queue, bound to everything. `events`: id -> the event as it came; `times`: how often."""

    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    changed: list[str] = field(default_factory=list)
    """Ids whose bytes were not the same each time."""

    def hear(self, body: bytes) -> None:
        event = msgpack.unpackb(body)
        id = str(event["id"])
        if self.events.setdefault(id, event) != event:
            self.changed.append(id)
        self.times[id] += 1

    async def listen(self, url: str) -> None:
        """Until cancelled; comes back whenever the broker does."""
        while True:
            try:
                await self._listen_once(url)
            except (aio_pika.exceptions.AMQPError, OSError, TimeoutError, RuntimeError):
                await asyncio.sleep(0.3)

    async def _listen_once(self, url: str) -> None:
        connection = await aio_pika.connect(url, timeout=5)
        try:
            channel = await connection.channel()
            await channel.set_qos(500)
            queue = await declare_queue(channel)
            async with queue.iterator() as messages:
                async for message in messages:
                    self.hear(message.body)
                    await message.ack()
        finally:
            with contextlib.suppress(aio_pika.exceptions.AMQPError, OSError, RuntimeError):
                await connection.close()


async def declare_queue(channel: Any) -> Any:
    queue = await channel.declare_queue(
        QUEUE, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    )
    await queue.bind("hubflow.events", "#")
    return queue


@dataclass(slots=True)
class Receiver:
    """A customer's webhook endpoint, which is sometimes unwell. One path for each tenant."""

    rng: random.Random
    secrets: dict[str, str] = field(default_factory=dict)
    taken: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """tenant -> webhook-id -> how often it was taken"""
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    forged: int = 0
    away: bool = False
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        tenant, body = request.match_info["tenant"], await request.read()
        if self.away or self.rng.random() < 0.03:
            return web.Response(status=self.rng.choice((500, 502, 503, 429)))
        try:
            Webhook(self.secrets[tenant]).verify(body, dict(request.headers))
        except WebhookVerificationError:
            self.forged += 1
            return web.Response(status=401)
        id = request.headers["webhook-id"]
        self.taken[tenant][id] += 1
        self.bodies[id] = json.loads(body)
        return web.Response(status=204)


@contextlib.asynccontextmanager
async def opened_receiver(rng: random.Random) -> AsyncIterator[Receiver]:
    receiver = Receiver(rng)
    app = web.Application()
    app.router.add_post("/{tenant}", receiver.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@dataclass(frozen=True, slots=True)
class Said:
    """One line of the witness."""

    what: str
    run: str
    job: str
    attempt: int


class Witness:
    """How often each attempt's own code has begun. Plain processes: a file that jobs append to. Engine: its events."""

    def __init__(self, path: Path, engine: Dockerd | PodEngine | None, installation: str) -> None:
        self.path = path
        self._engine = engine
        self._installation = installation
        self._started: list[Said] = []
        path.touch()
        path.chmod(0o666)

    def said(self) -> list[Said]:
        """In the order in which it happened."""
        if self._engine is not None:
            return list(self._started)
        lines = [line.rsplit(" ", 3) for line in self.path.read_text().splitlines()]
        return [Said(what, run, job, int(attempt)) for what, run, job, attempt in lines]

    async def watch(self) -> None:
        """Hear the engine's own events, until cancelled."""
        if self._engine is None:
            return
        if isinstance(self._engine, PodEngine):
            await self._engine.watch(self._installation, self._hear_of)
            return
        filters = json.dumps(
            {"type": ["container"], "event": ["start", "die"], "label": [f"hubflow.installation={self._installation}"]}
        )
        connector = aiohttp.UnixConnector(str(self._engine.socket))
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://docker/events", params={"filters": filters}) as response,
        ):
            async for line in response.content:
                self._hear(json.loads(line))

    def _hear_of(self, what: str, labels: dict[str, str]) -> None:
        self._started.append(Said(what, labels["run"], labels["job"], int(labels["attempt"])))

    def _hear(self, event: dict[str, Any]) -> None:
        labels = event["Actor"]["Attributes"]
        if "hubflow.label.run" not in labels:
            return
        what = "begin" if event["Action"] == "start" else "end"
        self._started.append(
            Said(what, labels["hubflow.label.run"], labels["hubflow.label.job"], int(labels["hubflow.label.attempt"]))
        )
