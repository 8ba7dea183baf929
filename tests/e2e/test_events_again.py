"""Events that come twice, late and in any order, and messages that are none, over separate processes (T18, T23, T76)."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import msgpack
import pytest

from shared.db.database import open_database
from shared.embedded import S3Address
from shared.events import CONTENT_TYPE
from tests.e2e.system import System, open_system
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.servers
GROUPS = ("scheduler", "executor", "log_collector", "notifier")
WORKFLOW = """
name: again
env: {WITNESS: %s}
stages:
- name: make
  jobs:
  - name: flaky
    retries: {max: 1, backoff: {delay: 300ms}}
    script: |
      echo "$HUBFLOW_RUN flaky $HUBFLOW_ATTEMPT" >> "$WITNESS"
      test "$HUBFLOW_ATTEMPT" = 2
  - name: make
    script: |
      echo "$HUBFLOW_RUN make $HUBFLOW_ATTEMPT" >> "$WITNESS"
      echo "[JOB_OUT] COUNT = 42"
    outputs: [COUNT]
- name: ask
  type: pause
  pause: {timeout: 1s, on_timeout: approve}
- name: take
  jobs:
  - name: take
    inputs: {COUNT: "${{ jobs.make.outputs.COUNT }}"}
    script: |
      echo "$HUBFLOW_RUN take $HUBFLOW_ATTEMPT" >> "$WITNESS"
      echo "count is $COUNT"
"""


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, module_database: str, s3: S3Address, rabbitmq: RabbitMQ
) -> AsyncIterator[System]:
    broker = await rabbitmq.new_vhost()
    async with open_system(tmp_path_factory.mktemp("again"), module_database, s3, broker) as opened:
        await opened.apply(WORKFLOW % (opened.folder / "witness"))
        await opened.api("PUT", "/api/v1/subscription", {"url": "http://127.0.0.1:9/nobody", "types": ["run.finished"]})
        yield opened


@asynccontextmanager
async def echo(system: System, rng: random.Random) -> AsyncIterator[Counter[str]]:
    """Somebody who publishes each event twice more, up to three seconds late, so that they overtake one another."""
    echoed: Counter[str] = Counter()
    connection = await aio_pika.connect(system.environment["HUBFLOW_AMQP_URL"])
    late: set[asyncio.Task[None]] = set()
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("hubflow.events")
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "#")

        async def again(body: bytes, key: str, id: str | None, seconds: float) -> None:
            await asyncio.sleep(seconds)  # lateness is what is tested
            await exchange.publish(aio_pika.Message(body, message_id=id, content_type=CONTENT_TYPE), key)

        async def hear(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            id = str(message.message_id)
            if echoed[id]:
                return
            echoed[id] = 2
            for _ in range(2):
                task = asyncio.create_task(
                    again(message.body, message.routing_key or "", message.message_id, rng.uniform(0, 3))
                )
                late.add(task)
                task.add_done_callback(late.discard)

        await queue.consume(hear, no_ack=True)
        yield echoed
        while late:
            await asyncio.gather(*late)


async def test_t23_each_event_three_times_and_out_of_order_changes_nothing(system: System) -> None:
    async with echo(system, random.Random(7)) as echoed:
        runs = [await system.start_run("again") for _ in range(6)]
        views = [await system.wait(run) for run in runs]
    assert [view["state"] for view in views] == ["succeeded"] * 6
    assert len(echoed) > 6 * 20
    await until_quiet(system)
    counts = Counter((system.folder / "witness").read_text().splitlines())
    assert counts == Counter(
        f"{run} {attempt}" for run in runs for attempt in ("flaky 1", "flaky 2", "make 1", "take 1")
    )
    for run in runs:
        assert await system.log_of(run, "take") == "count is 42\n"
        events = (await system.api("GET", f"/api/v1/runs/{run}/events?limit=500"))["items"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert sum(event["type"] == "run.finished" for event in events) == 1


async def test_t76_messages_that_are_none_are_parked_by_each_group_and_hold_up_nobody(system: System) -> None:
    bodies = {
        "not msgpack": b"\xc1 nonsense",
        "not a map": msgpack.packb([1, 2, 3]),
        "no known type": msgpack.packb({"type": "moon.full", "tenant": "acme", "id": str(uuid.uuid4())}),
        "a field is wrong": msgpack.packb({"type": "run.created", "tenant": "acme", "id": "no uuid", "run": 7}),
    }
    connection = await aio_pika.connect(system.environment["HUBFLOW_AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        for group in GROUPS:
            for body in bodies.values():
                message = aio_pika.Message(body, headers={"hubflow-topic": "acme.run.finished"}, delivery_mode=2)
                await channel.default_exchange.publish(message, f"hubflow.{group}")
    assert (await system.wait(await system.start_run("again")))["state"] == "succeeded"
    wanted = Counter({f"hubflow.{group}": len(bodies) for group in GROUPS})
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        dead = (await system.api("GET", "/api/v1/dead-events"))["items"]
        if len(dead) >= wanted.total() or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.2)
    assert Counter(each["queue"] for each in dead) == wanted
    assert all(each["reason"].startswith("BadEvent: ") for each in dead)


async def until_quiet(system: System) -> None:
    """Every queue is empty."""
    async with (
        open_database(system.environment["HUBFLOW_DATABASE_URL"], max_connections=1) as opened,
        asyncio.timeout(60),
    ):
        while await opened.fetchval("SELECT count(*) FROM events WHERE sent_at IS NULL"):
            await asyncio.sleep(0.1)
    connection = await aio_pika.connect(system.environment["HUBFLOW_AMQP_URL"])
    async with connection, asyncio.timeout(60):
        channel = await connection.channel()
        for group in GROUPS:
            while True:
                queue = await channel.declare_queue(f"hubflow.{group}", passive=True)
                if not queue.declaration_result.message_count:
                    break
                await asyncio.sleep(0.1)
