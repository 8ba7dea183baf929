"""Notifier with real receivers on loopback, a real PostgreSQL, and the console through which subscriptions are made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from services.console.main import SERVICE as CONSOLE
from services.notifier import core, handlers, sender
from services.notifier.main import SERVICE as NOTIFIER
from services.notifier.subscribers import Subscribers
from services.trigger.main import SERVICE as TRIGGER
from shared.bus.memory import MemoryBus
from shared.bus.protocol import Message
from shared.db.database import Database, open_database
from shared.db.dead_letters import DatabaseDeadLetters
from shared.events import RunFinished
from tests.integration.serving import Client, Served, serving

WORKFLOW = "name: w\nstages: [{name: s, jobs: {j: {script: 'true'}}}]\n"
ALLOWED = {"HUBFLOW_ALLOW_PRIVATE_TARGETS": "true"}


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Receiver:
    """A customer's server. `answer` decides about each request."""

    url: str = ""
    received: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await self.received.put(Received({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        return await self.answer(request) if self.answer else web.Response(status=204)

    async def next(self) -> Received:
        async with asyncio.timeout(10):
            return await self.received.get()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def served(database: str) -> AsyncIterator[Served]:
    async with serving(database, [TRIGGER, CONSOLE, NOTIFIER], ALLOWED) as served:
        yield served


async def tenant(served: Served, name: str) -> Client:
    client = await served.tenant(name)
    await client.ok("PUT", "/api/v1/workflows/w", WORKFLOW, headers={"Content-Type": "application/yaml"})
    return client


async def subscribe(client: Client, url: str, *types: str) -> str:
    """The secret."""
    made = await client.ok("PUT", "/api/v1/subscription", {"url": url, "types": list(types)})
    return str(made["secret"])


async def deliveries(client: Client) -> list[dict[str, Any]]:
    return (await client.get("/api/v1/deliveries"))["items"]


async def become_due(database: Database) -> None:
    """What would take hours: the next try of every waiting delivery is due now."""
    await database.execute("UPDATE deliveries SET next_try_at = now() WHERE state = 'waiting' AND holder IS NULL")


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_run_is_told_signed_and_once(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    secret = await subscribe(acme, receiver.url)
    run = await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    got = await receiver.next()
    document = Webhook(secret).verify(got.body, got.headers)
    assert (document["type"], document["data"]["run"], document["data"]["seq"]) == ("run.created", run["id"], 1)
    assert (document["data"]["number"], document["data"]["workflow"]) == (run["number"], "w")
    await until(lambda: _states(acme, ["delivered"]))
    (delivery,) = await deliveries(acme)
    assert (delivery["id"], delivery["last_status"], delivery["tries"]) == (got.headers["webhook-id"], 204, 1)
    assert receiver.received.empty()


async def _states(client: Client, wanted: list[str]) -> bool:
    return sorted(each["state"] for each in await deliveries(client)) == wanted


async def test_events_heard_twice_are_delivered_once(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    await subscribe(acme, receiver.url)
    await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    await receiver.next()
    await served.host.database.execute("UPDATE events SET sent_at = NULL, claimed_at = NULL")
    assert served.host.database.relay is not None
    await served.host.database.relay.sweep(0)
    await served.host.database.relay.flush()
    await until(lambda: _states(acme, ["delivered"]))
    assert receiver.received.empty()


async def test_only_wanted_types_and_only_ones_own(served: Served, receiver: Receiver) -> None:
    acme, other = await tenant(served, "acme"), await tenant(served, "other")
    await subscribe(acme, receiver.url, "run.cancel_requested")
    await other.ok("POST", "/api/v1/workflows/w/runs", {})
    run = await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    await acme.ok("POST", f"/api/v1/runs/{run['id']}/cancel", {})
    assert (await receiver.next()).document["type"] == "run.cancel_requested"
    assert len(await deliveries(acme)) == 1
    assert await deliveries(other) == []


async def test_a_disabled_or_deleted_subscription_is_quiet_at_once(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    await subscribe(acme, receiver.url)
    await acme.ok("PUT", "/api/v1/subscription", {"url": receiver.url, "enabled": False})
    await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    await acme.ok("DELETE", "/api/v1/subscription")
    await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    assert (await acme.call("POST", "/api/v1/subscription/test", {})).status == 404
    await subscribe(acme, receiver.url)
    await acme.ok("POST", "/api/v1/subscription/test", {})
    assert (await receiver.next()).document["type"] == "subscription.tested"
    assert receiver.received.empty()


@pytest.mark.parametrize("case", ["500", "301", "bytes", "date", "timeout", "slow", "huge", "closed"])
async def test_t79_whatever_a_receiver_does_is_tried_again(database: str, receiver: Receiver, case: str) -> None:
    ended = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if case in {"500", "301"}:
            return web.Response(status=int(case), headers={"Location": "http://169.254.169.254/"}, text="no\0 thanks")
        assert request.transport is not None
        if case == "bytes":
            request.transport.write(b"HTTP/1.1 301 Moved\r\nLocation: /\xff\r\nContent-Length: 0\r\n\r\n")
        if case == "date":
            return web.Response(status=503, headers={"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"})
        if case == "closed":
            request.transport.abort()
        response = web.StreamResponse(status=503)
        if case == "timeout":
            await ended.wait()
        await response.prepare(request)
        with contextlib.suppress(ConnectionResetError):
            while not ended.is_set():
                await response.write(b"x" * (1 if case == "slow" else 1_000_000))
                await asyncio.sleep(0.05)
        return response

    receiver.answer = answer
    environment = ALLOWED | {"HUBFLOW_NOTIFIER_TIMEOUT": "0.5"}
    async with serving(database, [TRIGGER, CONSOLE, NOTIFIER], environment) as served:
        acme = await tenant(served, "acme")
        await subscribe(acme, receiver.url, "run.created")
        await acme.ok("POST", "/api/v1/workflows/w/runs", {})
        first = await receiver.next()
        await until(lambda: _has_error(acme))
        (delivery,) = await deliveries(acme)
        assert (delivery["state"], delivery["tries"]) == ("waiting", 1)
        assert {
            "301": "redirects are not followed",
            "bytes": "it leads to /\ufffd,",
            "date": "status 503",
            "500": "status 500: no thanks",
            "timeout": "within 0.5 seconds",
        }.get(case, "") in delivery["last_error"]
        receiver.answer = None
        ended.set()
        await become_due(served.host.database)
        again = await receiver.next()
        assert again.headers["webhook-id"] == first.headers["webhook-id"]
        await until(lambda: _states(acme, ["delivered"]))


async def test_t79_a_receiver_that_does_not_speak_tls_is_tried_again(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    await subscribe(acme, receiver.url.replace("http:", "https:"), "run.created")
    await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    await until(lambda: _has_error(acme))
    (delivery,) = await deliveries(acme)
    assert (delivery["state"], delivery["tries"], delivery["last_status"]) == ("waiting", 1, None)
    assert "SSL" in delivery["last_error"]


async def test_a_bug_of_ours_costs_a_try(served: Served, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sender, "_headers", broken)
    acme = await tenant(served, "acme")
    await subscribe(acme, receiver.url, "run.created")
    await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    await until(lambda: _has_error(acme))
    (delivery,) = await deliveries(acme)
    assert (delivery["state"], delivery["tries"]) == ("waiting", 1)
    assert "ZeroDivisionError" in delivery["last_error"]


async def _has_error(client: Client) -> bool:
    found = await deliveries(client)
    return bool(found) and all(each["last_error"] for each in found)


async def test_t80_a_retry_has_the_same_id_and_body_and_a_fresh_signature(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    secret = await subscribe(acme, receiver.url, "run.created")

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=500)

    receiver.answer = refuse
    run = await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    first = await receiver.next()
    await until(lambda: _has_error(acme))
    await served.host.database.execute("UPDATE runs SET state = 'failed', finished_at = now()")
    receiver.answer = None
    begun = int(first.headers["webhook-timestamp"])
    while int(served.host.clock.now().timestamp()) == begun:
        await asyncio.sleep(0.05)
    await become_due(served.host.database)
    second = await receiver.next()
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert second.body == first.body
    assert second.headers["webhook-signature"] != first.headers["webhook-signature"]
    assert Webhook(secret).verify(second.body, second.headers)["data"]["run"] == run["id"]


async def test_t79_after_the_last_try_it_has_failed_and_that_is_told(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    await subscribe(acme, receiver.url, "run.created", "delivery.failed")

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=500)

    receiver.answer = refuse
    await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    for _ in range(len(core.DELAYS) + 1):
        await receiver.next()
        await until(lambda: _settled(served.host.database))
        await become_due(served.host.database)
    await until(lambda: _states(acme, ["failed"]))
    (delivery,) = await deliveries(acme)
    assert delivery["tries"] == len(core.DELAYS) + 1
    told = await served.host.database.fetchval("SELECT count(*) FROM events WHERE type = 'delivery.failed'")
    assert told == 1
    assert receiver.received.empty()


async def _settled(database: Database) -> bool:
    return await database.fetchval(
        "SELECT NOT EXISTS (SELECT 1 FROM deliveries WHERE state = 'waiting' AND holder IS NOT NULL)"
    )


async def test_t79_a_slow_receiver_does_not_hold_up_others(served: Served, receiver: Receiver) -> None:
    release = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    slow, quick = await tenant(served, "slow"), await tenant(served, "quick")
    async with receiving() as hanging:
        hanging.answer = hang
        await subscribe(slow, hanging.url)
        await subscribe(quick, receiver.url)
        for _ in range(100):
            await slow.ok("POST", "/api/v1/workflows/w/runs", {})
        await quick.ok("POST", "/api/v1/workflows/w/runs", {})
        assert (await receiver.next()).document["type"] == "run.created"
        assert hanging.received.qsize() <= 4
        release.set()
        async with asyncio.timeout(20):
            for _ in range(100):
                await hanging.received.get()


async def test_a_delivery_whose_process_was_killed_is_sent_again(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    await subscribe(acme, receiver.url, "run.created")
    await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    first = await receiver.next()
    await until(lambda: _states(acme, ["delivered"]))
    await served.host.database.execute(
        "UPDATE deliveries SET state = 'waiting', holder = 'killed', finished_at = NULL, next_try_at = now()"
    )
    assert (await receiver.next()).headers["webhook-id"] == first.headers["webhook-id"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://10.1.2.3/",
        "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://0.0.0.0/", "http://100.64.0.1/",
        "ftp://example.org/", "http://user:pass@example.org/", "example.org", "http://", "http://a b/", "http://example.org:x/",
        "http://169\u3002254\u3002169\u3002254/", "http://\uff11\uff12\uff17.0.0.1:8080/", "http://[\uff1a:1]/",
        "http://[x", "http://[1:2]/", "http://example.org:99999999/",
    ],
)  # fmt: skip
async def test_t82_addresses_of_our_own_network_are_refused(database: str, url: str) -> None:
    async with serving(database, [CONSOLE]) as served:
        acme = await served.tenant("acme")
        answer = await acme.call("PUT", "/api/v1/subscription", {"url": url})
        assert (answer.status, answer.body["code"]) == (422, "invalid-url")


@pytest.mark.parametrize("host", ["localhost", "2130706433", "127.1", "0x7f000001"])
async def test_t82_names_that_lead_home_are_refused_when_used(database: str, receiver: Receiver, host: str) -> None:
    async with serving(database, [TRIGGER, CONSOLE, NOTIFIER]) as served:
        acme = await tenant(served, "acme")
        await subscribe(acme, receiver.url.replace("127.0.0.1", host), "run.created")
        await acme.ok("POST", "/api/v1/workflows/w/runs", {})
        await until(lambda: _has_error(acme))
        (delivery,) = await deliveries(acme)
        # What is no canonical address is refused by the client itself, the rest after its name was resolved.
        assert ("which is not allowed" in delivery["last_error"]) or ("not a canonical" in delivery["last_error"])
        assert receiver.received.empty()


async def test_t81_events_of_a_run_carry_a_rising_seq(served: Served, receiver: Receiver) -> None:
    acme = await tenant(served, "acme")
    await subscribe(acme, receiver.url)
    run = await acme.ok("POST", "/api/v1/workflows/w/runs", {})
    async with served.host.database.transaction() as tx:
        tx.tell(*(RunFinished(tenant="acme", run=uuid.UUID(run["id"]), state="failed") for _ in range(3)))
    got = [(await receiver.next()).document["data"]["seq"] for _ in range(4)]
    assert sorted(got) == [1, 2, 3, 4]


async def test_over_rabbitmq_it_works_the_same(database: str, amqp_url: str, receiver: Receiver) -> None:
    environment = ALLOWED | {"HUBFLOW_AMQP_URL": amqp_url}
    async with serving(database, [TRIGGER, CONSOLE, NOTIFIER], environment) as served:
        acme = await tenant(served, "acme")
        secret = await subscribe(acme, receiver.url)
        await acme.ok("POST", "/api/v1/subscription/test", {})
        got = await receiver.next()
        assert Webhook(secret).verify(got.body, got.headers)["type"] == "subscription.tested"
        run = await acme.ok("POST", "/api/v1/workflows/w/runs", {})
        waiting = asyncio.create_task(acme.get(f"/api/v1/runs/{run['id']}?wait=30&until=change&since=1"))
        assert (await receiver.next()).document["type"] == "run.created"
        await acme.ok("POST", f"/api/v1/runs/{run['id']}/cancel", {})
        assert (await waiting)["seq"] == 2


async def test_what_is_told_before_the_queue_is_bound_is_delivered_too(database: str, receiver: Receiver) -> None:
    """The queue is bound to a tenant when the notifier hears of its subscription; here that is when all is over."""
    async with serving(database, [TRIGGER, CONSOLE], ALLOWED) as served:
        client = await tenant(served, "acme")
        await client.ok("POST", "/api/v1/workflows/w/runs", {})
        await subscribe(client, receiver.url, "run.created")
        late = await client.ok("POST", "/api/v1/workflows/w/runs", {})
    async with open_database(database) as opened:
        row = await opened.fetchrow("SELECT id, body FROM events WHERE type = 'subscription.changed'")
        bus = MemoryBus(DatabaseDeadLetters(opened))
        context = handlers.Context(opened, bus, Subscribers(opened), lambda: "http://hubflow", lambda: None)
        for _ in range(2):
            await handlers.on_event(Message(row["id"], "acme.subscription.changed", row["body"]), context)
        [payload] = [each["payload"] for each in await opened.fetch("SELECT payload FROM deliveries")]
        data = json.loads(payload)["data"]
        assert (data["run"], data["seq"]) == (late["id"], 1)
        await bus.close()
