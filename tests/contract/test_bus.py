"""What every bus promises, against each bus: RabbitMQ as the tests start it, and the one inside a process."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from prometheus_client import REGISTRY

from shared.bus.amqp import open_amqp_bus
from shared.bus.memory import MemoryBus
from shared.bus.protocol import Bus, Consumer, DeadMessage, Message, topic_matcher
from shared.clock import new_id
from shared.errors import InUseError, PermanentError, TemporaryError, UnavailableError

QUICK = (0.05, 0.05)
"""Delays of the tests; RabbitMQ rounds them up to its shortest delay queue."""


class DeadLettersInMemory:
    """For the in-process bus alone; with the database it is tested in tests/integration/test_outbox.py."""

    def __init__(self) -> None:
        self.messages: dict[tuple[uuid.UUID, str], DeadMessage] = {}

    async def park(self, message: DeadMessage) -> None:
        self.messages[message.id, message.queue] = message

    async def oldest(self, limit: int) -> list[DeadMessage]:
        return list(self.messages.values())[:limit]

    async def count(self) -> int:
        return len(self.messages)

    async def take(self, ids: Sequence[uuid.UUID]) -> list[DeadMessage]:
        return [message for message in self.messages.values() if message.id in ids]

    async def forget(self, message: DeadMessage) -> None:
        self.messages.pop((message.id, message.queue), None)


@pytest.fixture
async def in_process() -> AsyncIterator[Bus]:
    bus = MemoryBus(DeadLettersInMemory())
    yield bus
    await bus.close()


@pytest.fixture
async def on_rabbitmq(amqp_url: str) -> AsyncIterator[Bus]:
    bus = await open_amqp_bus(amqp_url)
    yield bus
    await bus.close()


@pytest.fixture(params=["in_process", pytest.param("on_rabbitmq", marks=pytest.mark.servers)])
def bus(request: pytest.FixtureRequest) -> Bus:
    opened: Bus = request.getfixturevalue(request.param)
    return opened


def message(topic: str = "acme.run.created", body: bytes = b"x") -> Message:
    return Message(uuid.uuid4(), topic, body)


class Hearing:
    """A handler that keeps what it got and does as told."""

    def __init__(self, act: Callable[[Message], Awaitable[None]] | None = None) -> None:
        self.heard: list[Message] = []
        self._act = act
        self._changed = asyncio.Condition()

    async def __call__(self, message: Message) -> None:
        async with self._changed:
            self.heard.append(message)
            self._changed.notify_all()
        if self._act:
            await self._act(message)

    async def until(self, count: int, seconds: float = 20) -> list[Message]:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.heard) >= count)
        return self.heard


async def dead_of(bus: Bus, count: int) -> list[DeadMessage]:
    async with asyncio.timeout(20):
        while len(found := await bus.dead()) < count:
            await asyncio.sleep(0.02)
    return found


async def parked(bus: Bus, count: int) -> None:
    """Wait until so many are parked: RabbitMQ counts what was looked at again a moment later."""
    async with asyncio.timeout(20):
        while await bus.parked() != count:
            await asyncio.sleep(0.02)


async def test_every_group_gets_the_event_and_its_members_share(bus: Bus) -> None:
    first, second = Hearing(), Hearing()
    await bus.consume(Consumer("one", ["*.run.*"], first))
    await bus.consume(Consumer("two", ["acme.#"], second))
    sent = message()
    await bus.publish(sent)
    for hearing in (first, second):
        [got] = await hearing.until(1)
        assert (got.id, got.topic, got.body, got.tries) == (sent.id, sent.topic, sent.body, 1)


async def test_topics_that_nobody_hears_are_safe_to_publish(bus: Bus) -> None:
    hearing = Hearing()
    await bus.consume(Consumer("one", ["acme.somebody.*"], hearing))
    await bus.publish(message("acme.nobody.listens"))
    await bus.publish(message("acme.somebody.listens"))
    assert [heard.topic for heard in await hearing.until(1)] == ["acme.somebody.listens"]


async def test_t75_a_thousand_publishes_do_not_wait_for_one_another(bus: Bus) -> None:
    hearing = Hearing()
    await bus.consume(Consumer("one", ["#"], hearing, concurrency=200))
    await asyncio.gather(*(bus.publish(message(body=str(n).encode())) for n in range(1000)))
    assert {m.body for m in await hearing.until(1000)} == {str(n).encode() for n in range(1000)}


async def test_a_message_that_cannot_be_written_holds_up_nobody(bus: Bus) -> None:
    """The name of a job made a topic longer than AMQP takes, and its process published nothing more, for ever."""
    hearing = Hearing()
    await bus.consume(Consumer("one", ["acme.run.*"], hearing))
    long = f"acme.log.{'x' * 300}"
    bus.nudge(long, b"")
    before, bad, after = bus.publish(message()), bus.publish(message(long)), bus.publish(message())
    # Inside one process there is no such limit.
    with contextlib.nullcontext() if isinstance(bus, MemoryBus) else pytest.raises(PermanentError, match="255 bytes"):
        await asyncio.wait_for(bad, 10)
    await asyncio.wait_for(asyncio.gather(before, after), 10)
    await asyncio.wait_for(bus.publish(message()), 10)
    assert len(await hearing.until(3)) == 3


async def test_a_handler_that_fails_is_tried_again_with_its_count(bus: Bus) -> None:
    async def fail_once(message: Message) -> None:
        if message.tries == 1:
            raise TemporaryError("not yet", delay=0.05)

    hearing = Hearing(fail_once)
    await bus.consume(Consumer("one", ["#"], hearing, retry_delays=QUICK))
    sent = message()
    await bus.publish(sent)
    assert [(m.id, m.topic, m.tries) for m in await hearing.until(2)] == [
        (sent.id, sent.topic, 1),
        (sent.id, sent.topic, 2),
    ]


async def test_a_failing_message_does_not_hold_up_the_others(bus: Bus) -> None:
    async def fail_bad(message: Message) -> None:
        if message.body == b"bad":
            raise TemporaryError("never")

    hearing = Hearing(fail_bad)
    await bus.consume(Consumer("one", ["#"], hearing, concurrency=1))
    bad = asyncio.ensure_future(bus.publish(message(body=b"bad")))
    await hearing.until(1)
    good = message(body=b"good")
    await bus.publish(good)
    assert good.id in [m.id for m in await hearing.until(2)]
    bad.cancel()


async def test_t76_what_fails_for_good_is_parked_with_the_reason_and_replayed(bus: Bus) -> None:
    broken = True

    async def act(message: Message) -> None:
        if broken:
            raise PermanentError("no such run", reason="UnknownRun")

    hearing = Hearing(act)
    await bus.consume(Consumer("one", ["#"], hearing))
    sent = message(body=b"poison")
    await bus.publish(sent)
    [dead] = await dead_of(bus, 1)
    assert (dead.id, dead.topic, dead.body, dead.reason) == (sent.id, sent.topic, b"poison", "UnknownRun: no such run")
    assert [each.id for each in await dead_of(bus, 1)] == [sent.id], "looking does not remove it"
    await parked(bus, 1)
    broken = False
    assert await bus.replay([sent.id]) == [sent.id]
    again = (await hearing.until(2))[-1]
    assert (again.id, again.topic, again.tries) == (sent.id, sent.topic, 1)
    assert await bus.dead() == []
    await parked(bus, 0)
    assert await bus.replay([sent.id]) == []


async def test_a_reason_of_any_text_is_kept_as_far_as_it_can_be(bus: Bus) -> None:
    async def act(_: Message) -> None:
        raise PermanentError("half a pair \ud83d and a \0", reason="Odd")

    await bus.consume(Consumer("one", ["#"], Hearing(act)))
    await asyncio.wait_for(bus.publish(message()), 10)
    [dead] = await dead_of(bus, 1)
    assert dead.reason == "Odd: half a pair \ufffd and a \ufffd"


async def test_a_bug_in_a_handler_is_retried_and_then_parked(bus: Bus) -> None:
    async def crash(_: Message) -> None:
        raise ZeroDivisionError("oops")

    hearing = Hearing(crash)
    await bus.consume(Consumer("one", ["#"], hearing, retry_delays=QUICK))
    parked = asyncio.ensure_future(bus.publish(message()))
    await hearing.until(3)
    [dead] = await dead_of(bus, 1)
    assert "after 3 tries: ZeroDivisionError: oops" in dead.reason
    await parked


async def test_t77_a_server_that_is_away_costs_no_try_however_long_it_lasts(bus: Bus) -> None:
    """Messages that came while the database was away for a quarter of an hour were parked, and their runs stood still."""
    answers = iter([UnavailableError("the database does not answer")] * 4 + [TemporaryError("not yet"), None])

    async def act(_: Message) -> None:
        if (error := next(answers)) is not None:
            raise error

    hearing = Hearing(act)
    await bus.consume(Consumer("one", ["#"], hearing, retry_delays=QUICK))
    sent = message()
    publishing = asyncio.ensure_future(bus.publish(sent))
    assert [(m.id, m.tries) for m in await hearing.until(6)] == [(sent.id, tries) for tries in (1, 1, 1, 1, 1, 2)]
    await publishing
    assert await bus.dead() == []


async def test_what_others_still_use_is_tried_until_they_have_done_and_never_parked(bus: Bus) -> None:
    """Shared volumes stayed for ever if object storage was away: their containers waited for it, and they for these."""
    answers = iter([InUseError("the volume is in use")] * 5 + [None])

    async def act(_: Message) -> None:
        if (error := next(answers)) is not None:
            raise error

    hearing = Hearing(act)
    await bus.consume(Consumer("one", ["#"], hearing, retry_delays=QUICK))
    publishing = asyncio.ensure_future(bus.publish(message()))
    assert [m.tries for m in await hearing.until(6)] == [1, 2, 3, 3, 3, 3]
    await publishing
    assert await bus.dead() == []


async def test_listeners_hear_events_and_nudges_of_their_topics(bus: Bus) -> None:
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    await bus.listen(["acme.#"], lambda topic, body: heard.put_nowait((topic, body)))
    await bus.publish(message("other.run.created"))
    await bus.publish(message("acme.run.created", b"event"))
    bus.nudge("acme.log.grown", b"nudge")
    async with asyncio.timeout(10):
        assert sorted([await heard.get(), await heard.get()]) == [
            ("acme.log.grown", b"nudge"),
            ("acme.run.created", b"event"),
        ]


async def test_a_listener_that_was_stopped_hears_nothing_more(bus: Bus) -> None:
    stopped: list[str] = []
    going_on: asyncio.Queue[str] = asyncio.Queue()
    listening = await bus.listen(["acme.#"], lambda topic, _: stopped.append(topic))
    await bus.listen(["acme.#"], lambda topic, _: going_on.put_nowait(topic))
    await listening.stop()
    await listening.stop()
    await bus.publish(message("acme.run.created"))
    assert await asyncio.wait_for(going_on.get(), 10) == "acme.run.created"
    assert stopped == []


async def test_a_group_hears_what_it_is_bound_to_later(bus: Bus) -> None:
    hearing = Hearing()
    await bus.consume(Consumer("one", ["*.quota.changed"], hearing))
    await bus.publish(message("acme.run.created", b"before"))
    await bus.bind("one", ["acme.#"])
    await bus.bind("one", ["acme.#"])
    await bus.publish(message("other.run.created", b"another's"))
    await bus.publish(message("acme.run.created", b"after"))
    await bus.publish(message("other.quota.changed", b"as ever"))
    await hearing.until(2)
    assert sorted(each.body for each in hearing.heard) == [b"after", b"as ever"]


async def test_stopping_finishes_what_is_in_hand_and_takes_nothing_new(bus: Bus) -> None:
    go_on = asyncio.Event()

    async def wait(_: Message) -> None:
        await go_on.wait()

    hearing = Hearing(wait)
    await bus.consume(Consumer("one", ["#"], hearing, concurrency=1))
    in_hand = asyncio.ensure_future(bus.publish(message()))
    await hearing.until(1)
    stopping = asyncio.ensure_future(bus.stop_consuming())
    later = asyncio.ensure_future(bus.publish(message()))
    await asyncio.wait([stopping], timeout=0.2)
    assert not stopping.done()
    go_on.set()
    await asyncio.wait_for(stopping, 10)
    await asyncio.wait_for(in_hand, 10)
    assert len(hearing.heard) == 1
    later.cancel()


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("#", "a.b.c", True), ("*.run.created", "acme.run.created", True), ("*.run.created", "a.b.run.created", False),
        ("acme.#", "acme", True), ("acme.#", "acme.job.log.stored", True), ("*.job.*", "acme.job.log.stored", False),
        ("#.stored", "acme.job.log.stored", True), ("a.*.c", "a.b.c", True), ("a.b", "a.bc", False),
    ],
)  # fmt: skip
def test_topics_match_as_in_a_topic_exchange(pattern: str, topic: str, matches: bool) -> None:
    assert topic_matcher([pattern])(topic) is matches


async def test_how_long_events_have_waited_can_be_measured(bus: Bus) -> None:
    handled = asyncio.Event()

    async def handler(_: Message) -> None:
        handled.set()

    name = f"measured-{uuid.uuid4().hex[:8]}"
    await bus.consume(Consumer(name, ("acme.#",), handler))
    await bus.publish(Message(new_id(), "acme.run.created", b"x"))
    await asyncio.wait_for(handled.wait(), 10)
    count, total = (
        REGISTRY.get_sample_value(f"hubflow_event_age_seconds_{what}", {"queue": name}) for what in ("count", "sum")
    )
    assert count == 1
    assert total is not None
    assert 0 <= total < 10
