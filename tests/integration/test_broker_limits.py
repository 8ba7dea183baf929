"""What RabbitMQ itself does to messages and channels: its limits, its restarts, its time limit for consumers."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import aio_pika
import pytest

from shared.bus import amqp, handling, publisher
from shared.bus.amqp import DELIVERY_LIMIT, AmqpBus, open_amqp_bus
from shared.bus.protocol import Consumer, Message
from shared.bus.topology import TOPICS
from shared.db.database import Database, open_database
from shared.db.outbox import Relay
from shared.embedded.process import free_ports
from shared.errors import PermanentError, TemporaryError
from shared.events import TenantQuotaChanged, WorkflowApplied
from shared.vault import new_key
from tests.chaos.proxy import opened_proxy
from tests.contract.test_bus import Hearing, dead_of, message
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.servers
CONSUMER_TIMEOUT_MS = 1500


@pytest.fixture
async def bus(amqp_url: str) -> AsyncIterator[AmqpBus]:
    opened = await open_amqp_bus(amqp_url)
    yield opened
    await opened.close()


def vhost_of(url: str) -> str:
    return quote(urlsplit(url).path[1:], safe="")


async def set_policy(broker: RabbitMQ, url: str, queue: str, **definition: object) -> None:
    body = {"pattern": f"^{queue}$", "definition": definition, "apply-to": "queues"}
    await broker.api("PUT", f"policies/{vhost_of(url)}/limit", body)
    async with asyncio.timeout(20):
        while (await broker.api("GET", f"queues/{vhost_of(url)}/{queue}")).get("policy") != "limit":
            await asyncio.sleep(0.1)


async def test_t76_a_message_whose_consumers_die_of_it_is_parked_by_the_broker_and_replayed(
    bus: AmqpBus, amqp_url: str
) -> None:
    await bus.consume(Consumer("deadly", ["acme.#"], Hearing()))
    await bus.stop_consuming()
    sent = message(body=b"poison")
    await bus.publish(sent)
    await dies_of_it(amqp_url, "hubflow.deadly")
    [dead] = await dead_of(bus, 1)
    assert (dead.id, dead.queue, dead.topic, dead.body) == (sent.id, "hubflow.deadly", sent.topic, b"poison")
    assert "delivery_limit" in dead.reason
    hearing = Hearing()
    await bus.consume(Consumer("deadly", ["acme.#"], hearing))
    assert await bus.replay([sent.id]) == [sent.id]
    assert [each.id for each in await hearing.until(1)] == [sent.id]
    assert await bus.dead() == []


@pytest.mark.parametrize("tries", ["many", "", -3])
async def test_t76_a_count_of_tries_that_is_none_holds_up_nobody(
    bus: AmqpBus, rabbitmq: RabbitMQ, amqp_url: str, tries: object
) -> None:
    async def refuses(_: Message) -> None:
        raise PermanentError("never", reason="BadInput")

    await bus.consume(Consumer("odd", ["acme.#"], refuses))
    sent = message()
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        exchange = await (await connection.channel()).get_exchange("hubflow.events", ensure=False)
        odd = aio_pika.Message(sent.body, message_id=str(sent.id), headers={"hubflow-tries": tries})
        await exchange.publish(odd, sent.topic)
        [dead] = await dead_of(bus, 1)
    assert (dead.id, dead.tries) == (sent.id, 1)


async def dies_of_it(url: str, queue: str) -> None:
    """One consumer after another takes the message and is gone without an answer."""
    for _ in range(DELIVERY_LIMIT + 1):
        connection = await aio_pika.connect(url)
        async with connection, asyncio.timeout(20):
            taken = await (await connection.channel()).get_queue(queue, ensure=False)
            while await taken.get(no_ack=False, fail=False) is None:
                await asyncio.sleep(0.02)


async def test_t74_a_full_queue_refuses_and_the_event_stays_in_the_outbox_until_there_is_room(
    bus: AmqpBus, rabbitmq: RabbitMQ, amqp_url: str, database: str
) -> None:
    hearing = Hearing()
    await bus.consume(Consumer("full", ["acme.#"], hearing))
    await bus.stop_consuming()
    await set_policy(rabbitmq, amqp_url, "hubflow.full", **{"max-length": 10})
    async with open_database(database) as opened:
        opened.relay = Relay(opened, bus)
        await until_refused(bus)
        async with opened.transaction() as tx:
            tx.tell(event := TenantQuotaChanged(tenant="acme", by="ann"))
        await opened.relay.flush()
        assert await unsent(opened) == 1
        await bus.consume(Consumer("full", ["acme.#"], hearing))
        async with asyncio.timeout(30):
            while await unsent(opened):
                await opened.relay.sweep(age=0)
                await opened.relay.flush()
                await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            while event.id not in {each.id for each in hearing.heard}:
                await asyncio.sleep(0.02)


async def test_t74_a_message_that_cannot_be_put_off_now_is_put_off_later(
    bus: AmqpBus, rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    """The queue where failed messages wait is full. They stayed in the hands of their consumer, unseen, until it ended."""
    await set_policy(rabbitmq, amqp_url, "hubflow.delay.1000", **{"max-length": 1})

    async def fail_once(each: Message) -> None:
        if each.tries == 1:
            raise TemporaryError("not yet")

    hearing = Hearing(fail_once)
    await bus.consume(Consumer("one", ["acme.#"], hearing))
    sent = [message() for _ in range(30)]
    await asyncio.gather(*(bus.publish(each) for each in sent))
    async with asyncio.timeout(90):
        while {each.id for each in hearing.heard if each.tries == 2} != {each.id for each in sent}:
            await asyncio.sleep(0.05)
    assert {each.id for each in hearing.heard if each.tries > 2} == set(), "put off twice"


async def until_refused(bus: AmqpBus) -> None:
    """A quorum queue takes a few more than its limit, and then says no."""
    for _ in range(200):
        try:
            await bus.publish(message())
        except TemporaryError:
            return
    raise AssertionError("the queue never refused")


async def unsent(database: Database) -> int:
    count: int = await database.fetchval("SELECT count(*) FROM events WHERE sent_at IS NULL")
    return count


async def test_t74_an_alarm_of_the_broker_is_waited_out_and_not_filled_with_repetitions(
    bus: AmqpBus, rabbitmq: RabbitMQ, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event was given up after 30 seconds, swept up and written into the same connection once more."""
    monkeypatch.setattr(publisher, "CONFIRM_TIMEOUT", 1.0)
    hearing = Hearing()
    await bus.consume(Consumer("full", ["acme.#"], hearing))
    async with open_database(database) as opened:
        opened.relay = Relay(opened, bus)
        async with rabbitmq.alarmed():
            async with opened.transaction() as tx:
                tx.tell(event := TenantQuotaChanged(tenant="acme", by="ann"))
            for _ in range(3):
                await asyncio.sleep(1.0)  # longer than the time limit: this is what is tested
                assert await opened.relay.sweep(age=0) == 0, "it was given up"
            assert hearing.heard == []
        assert [each.id for each in await hearing.until(1)] == [event.id]
        await opened.relay.flush()
        assert await unsent(opened) == 0


async def test_t74_an_event_for_a_queue_that_is_gone_stays_in_the_outbox_until_it_is_declared_again(
    bus: AmqpBus, rabbitmq: RabbitMQ, amqp_url: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deleted a queue by hand while nobody heard it: the broker confirmed such an event, and it was lost."""
    monkeypatch.setattr(amqp, "GUARD_INTERVAL", 0.1)
    await rabbitmq.api("DELETE", f"queues/{vhost_of(amqp_url)}/hubflow.scheduler")
    async with open_database(database) as opened:
        opened.relay = Relay(opened, bus)
        async with opened.transaction() as tx:
            tx.tell(event := TenantQuotaChanged(tenant="acme", by="ann"))
            tx.tell(WorkflowApplied(tenant="acme", workflow="w", version=1, by="ann"))
        await opened.relay.flush()
        assert await unsent(opened) == 1, "nobody has to hear of the other one"
        guard = asyncio.create_task(bus.guard())
        async with asyncio.timeout(30):
            while await unsent(opened):
                await opened.relay.sweep(age=0)
                await opened.relay.flush()
                await asyncio.sleep(0.1)
        guard.cancel()
    hearing = Hearing()
    await bus.consume(Consumer("scheduler", TOPICS["scheduler"], hearing))
    assert [each.id for each in await hearing.until(1)] == [event.id]


async def test_t74_what_is_put_off_or_parked_is_not_lost_with_a_queue_that_is_gone(
    bus: AmqpBus, rabbitmq: RabbitMQ, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp, "GUARD_INTERVAL", 0.1)
    for queue in ("hubflow.delay.1000", "hubflow.dead"):
        await rabbitmq.api("DELETE", f"queues/{vhost_of(amqp_url)}/{queue}")
    hopeless = uuid.uuid4()

    async def act(each: Message) -> None:
        if each.id == hopeless:
            raise PermanentError("never", reason="BadInput")
        if each.tries == 1:
            raise TemporaryError("not yet")

    hearing = Hearing(act)
    await bus.consume(Consumer("one", ["acme.#"], hearing))
    await asyncio.gather(bus.publish(sent := message()), bus.publish(Message(hopeless, "acme.run.created", b"")))
    await hearing.until(2)
    guard = asyncio.create_task(bus.guard())
    async with asyncio.timeout(30):
        while [each.id for each in hearing.heard if each.tries == 2] != [sent.id]:
            await asyncio.sleep(0.05)
    assert [each.id for each in await dead_of(bus, 1)] == [hopeless]
    guard.cancel()


async def test_t75_a_thousand_publishes_over_a_slow_link_wait_for_their_confirms_together(
    rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    at = urlsplit(amqp_url)
    async with opened_proxy("broker", at.port or 0) as proxy:
        bus = await open_amqp_bus(amqp_url.replace(f":{at.port}/", f":{proxy.port}/"))
        proxy.delay(lambda: 0.02)
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(bus.publish(message("acme.run.created")) for _ in range(1000)))
        assert asyncio.get_running_loop().time() - begun < 5, "one after another they take 40 s"
        await bus.close()


# ---------------------------------------------------------------- restarts


async def test_t73_a_broker_that_is_killed_under_load_loses_nothing(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    publisher, consumer = await open_amqp_bus(amqp_url), await open_amqp_bus(amqp_url)
    hearing = Hearing()
    await consumer.consume(Consumer("load", ["acme.#"], hearing, concurrency=50))
    wanted = [message(body=str(n).encode()) for n in range(600)]

    async def publish(each: Message) -> None:
        """As the outbox does: again, until it is confirmed."""
        while True:
            try:
                return await publisher.publish(each)
            except TemporaryError:
                await asyncio.sleep(0.2)

    going = asyncio.gather(*(publish(each) for each in wanted[:300]))
    await hearing.until(20)
    restarting = asyncio.create_task(rabbitmq.restart())
    later = asyncio.gather(*(publish(each) for each in wanted[300:]))
    async with asyncio.timeout(90):
        await restarting
        await asyncio.gather(going, later)
        while {each.id for each in hearing.heard} != {each.id for each in wanted}:
            await asyncio.sleep(0.05)
        await _answers(publisher)
    assert await publisher.dead() == []
    await publisher.close()
    await consumer.close()


async def _answers(bus: AmqpBus) -> None:
    """All may have been confirmed before the broker went: then its connection is still on its way back."""
    while True:
        try:
            return await bus.ping()
        except TemporaryError:
            await asyncio.sleep(0.05)


# ---------------------------------------------------------------- consumers that take their time


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[RabbitMQ]:
    """A broker that closes the channel of whoever has not acknowledged within a second or two."""
    broker = RabbitMQ(tmp_path / "rabbitmq", free_ports(4))
    broker.configure()
    with (broker.folder / "rabbitmq.conf").open("a") as file:
        file.write(f"consumer_timeout = {CONSUMER_TIMEOUT_MS}\n")
    (broker.folder / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 500}]}].\n")
    try:
        await broker.start()
        yield broker
    finally:
        await broker.close()


async def test_t72_a_channel_that_the_broker_closed_is_opened_again(impatient: RabbitMQ) -> None:
    bus = await open_amqp_bus(impatient.url())
    slow = True

    async def act(_: Message) -> None:
        if slow:
            await asyncio.sleep(4 * CONSUMER_TIMEOUT_MS / 1000)  # longer than the broker allows: this is what is tested

    hearing = Hearing(act)
    await bus.consume(Consumer("slow", ["acme.#"], hearing))
    first = message()
    await bus.publish(first)
    await hearing.until(1)
    slow = False
    again = await hearing.until(2, seconds=30)
    assert {each.id for each in again} == {first.id}, "delivered again, as nobody has acknowledged it"
    second = message()
    await bus.publish(second)
    async with asyncio.timeout(20):
        while second.id not in {each.id for each in hearing.heard}:
            await asyncio.sleep(0.02)
    await bus.close()


async def test_t72_a_handler_is_given_up_long_before_the_broker_would_close_its_channel(
    bus: AmqpBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handling.HANDLER_TIMEOUT <= 1800 / 2, "RabbitMQ's consumer_timeout is half an hour by default"
    monkeypatch.setattr(handling, "HANDLER_TIMEOUT", 0.5)
    stuck = uuid.uuid4()

    async def act(each: Message) -> None:
        if each.id == stuck and each.tries == 1:
            await asyncio.Event().wait()

    hearing = Hearing(act)
    await bus.consume(Consumer("one", ["acme.#"], hearing, retry_delays=(1.0,)))
    await bus.publish(Message(stuck, "acme.run.created", b"slow"))
    await hearing.until(1)
    other = message()
    await bus.publish(other)
    heard = await hearing.until(3)
    assert [(each.id, each.tries) for each in heard if each.id == stuck] == [(stuck, 1), (stuck, 2)]
    assert other.id in {each.id for each in heard}


async def test_t73_a_process_that_cannot_declare_its_queues_ends_so_that_it_is_started_again(
    rabbitmq: RabbitMQ, amqp_url: str, database: str
) -> None:
    """aio-pika's task that reconnects survives being cancelled: it kept such a process alive, deaf, for ever."""
    queue = f"queues/{vhost_of(amqp_url)}/hubflow.dead"
    await rabbitmq.api("PUT", queue, {"durable": True, "arguments": {"x-queue-type": "classic"}})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "serve", "notifier", stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HUBFLOW_DATABASE_URL": database, "HUBFLOW_AMQP_URL": amqp_url,
             "HUBFLOW_SECRET_KEY": new_key(), "HUBFLOW_HTTP_PORT": "0"},
    )  # fmt: skip
    try:
        _, said = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 1
    assert b"RabbitMQ does not answer" in said
