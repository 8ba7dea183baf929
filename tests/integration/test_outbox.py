"""Events and the change that causes them are one; what a crash leaves behind is found."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import uuid
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from shared.bus.memory import MemoryBus
from shared.bus.protocol import Consumer, Message
from shared.db.database import Database, open_database
from shared.db.dead_letters import DatabaseDeadLetters
from shared.db.migrate import Migration, migrate, migrations, pending
from shared.db.outbox import Relay
from shared.errors import PermanentError, TemporaryError
from shared.events import JobReady, TenantQuotaChanged, WorkflowApplied, decode
from shared.measures import measure


@pytest.fixture
async def opened(database: str) -> AsyncIterator[Database]:
    async with open_database(database) as opened:
        yield opened


async def a_run(database: Database) -> uuid.UUID:
    run = uuid.uuid4()
    await database.execute("INSERT INTO run_counters (run, seq) VALUES ($1, 0)", run)
    return run


def ready(run: uuid.UUID, job: str = "a") -> JobReady:
    return JobReady(tenant="acme", run=run, stage="s", job=job, attempt=1)


class Receiver:
    def __init__(self) -> None:
        self.got: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.got.append(message)


async def connected(database: Database, receiver: Receiver) -> MemoryBus:
    bus = MemoryBus(DatabaseDeadLetters(database))
    await bus.consume(Consumer("receiver", ["#"], receiver))
    database.relay = Relay(database, bus)
    return bus


async def test_a_committed_event_is_published_and_marked(opened: Database) -> None:
    receiver = Receiver()
    await connected(opened, receiver)
    run = await a_run(opened)
    async with opened.transaction() as tx:
        tx.tell(ready(run, "a"), ready(run, "b"))
        assert receiver.got == []
    await opened.relay.flush()  # type: ignore[union-attr]
    assert [(decode(m.body).seq, m.topic) for m in receiver.got] == [(1, "acme.job.ready"), (2, "acme.job.ready")]
    assert await opened.fetchval("SELECT count(*) FROM events WHERE sent_at IS NULL") == 0


async def test_what_is_rolled_back_was_never_told_and_leaves_no_gap(opened: Database) -> None:
    receiver = Receiver()
    await connected(opened, receiver)
    run = await a_run(opened)

    async def fail_after_telling() -> None:
        async with opened.transaction() as tx:
            tx.tell(ready(run))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_after_telling()
    async with opened.transaction() as tx:
        tx.tell(ready(run))
    await opened.relay.flush()  # type: ignore[union-attr]
    assert [decode(m.body).seq for m in receiver.got] == [1]


async def test_seq_has_no_gaps_under_concurrent_writers(opened: Database) -> None:
    runs = [await a_run(opened) for _ in range(3)]

    async def write() -> None:
        async with opened.transaction() as tx:
            tx.tell(*(ready(run) for run in runs))

    await asyncio.gather(*(write() for _ in range(40)))
    for run in runs:
        rows = await opened.fetch("SELECT seq FROM events WHERE run = $1 ORDER BY seq", run)
        assert [row["seq"] for row in rows] == list(range(1, 41))


async def test_t27_the_sweep_publishes_what_a_crash_left(opened: Database) -> None:
    run = await a_run(opened)
    async with opened.transaction() as tx:  # no relay: as if the process had died after the commit
        tx.tell(ready(run))
    receiver = Receiver()
    await connected(opened, receiver)
    assert await opened.relay.sweep(age=60) == 0, "too young: its own process may be about to send it"  # type: ignore[union-attr]
    assert await opened.relay.sweep(age=0) == 1  # type: ignore[union-attr]
    await opened.relay.flush()  # type: ignore[union-attr]
    assert [decode(m.body).seq for m in receiver.got] == [1]
    assert await opened.relay.sweep(age=0) == 0  # type: ignore[union-attr]


async def test_t74_an_event_that_cannot_be_published_stays(opened: Database) -> None:
    class Refusing(MemoryBus):
        def publish(self, message: Message) -> asyncio.Future[None]:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(TemporaryError("no broker"))
            return future

    opened.relay = Relay(opened, Refusing(DatabaseDeadLetters(opened)))
    async with opened.transaction() as tx:
        tx.tell(TenantQuotaChanged(tenant="acme", by="ann"))
    await opened.relay.flush()
    assert await opened.fetchval("SELECT count(*) FROM events WHERE sent_at IS NULL") == 1


async def test_an_event_in_hand_of_the_in_process_bus_is_not_marked_before_it_is_handled(opened: Database) -> None:
    go_on = asyncio.Event()
    bus = MemoryBus(DatabaseDeadLetters(opened))

    async def wait(_: Message) -> None:
        await go_on.wait()

    await bus.consume(Consumer("slow", ["#"], wait))
    opened.relay = Relay(opened, bus)
    async with opened.transaction() as tx:
        tx.tell(TenantQuotaChanged(tenant="acme", by="ann"))
    flushing = asyncio.ensure_future(opened.relay.flush())
    await asyncio.wait([flushing], timeout=0.2)
    assert await opened.fetchval("SELECT count(*) FROM events WHERE sent_at IS NULL") == 1
    go_on.set()
    await flushing
    assert await opened.fetchval("SELECT count(*) FROM events WHERE sent_at IS NULL") == 0


async def test_parked_events_of_the_in_process_bus_are_kept_in_the_database(opened: Database) -> None:
    bus = MemoryBus(DatabaseDeadLetters(opened))

    async def refuse(_: Message) -> None:
        raise PermanentError("nobody knows this run", reason="UnknownRun")

    await bus.consume(Consumer("one", ["#"], refuse))
    sent = Message(uuid.uuid4(), "acme.run.created", b"body")
    await bus.publish(sent)
    [dead] = await bus.dead()
    assert (dead.id, dead.queue, dead.reason) == (sent.id, "one", "UnknownRun: nobody knows this run")
    assert await bus.replay([sent.id]) == [sent.id]
    assert len(await bus.dead()) == 1, "refused again, parked again"


async def test_what_waits_and_what_is_parked_is_measured(opened: Database) -> None:
    bus = MemoryBus(DatabaseDeadLetters(opened))
    async with opened.transaction() as tx:
        tx.tell(*(TenantQuotaChanged(tenant="acme", by="ann") for _ in range(3)))
    await bus_with_one_parked(bus)
    await measure(opened, bus)
    assert measured() == (0, 1), "what was just recorded is on its way"
    await opened.execute("UPDATE events SET created_at = now() - interval '6 seconds'")
    await measure(opened, bus)
    assert measured() == (3, 1)

    class Away(MemoryBus):
        async def parked(self) -> int:
            raise TemporaryError("RabbitMQ does not answer")

    await measure(opened, Away(DatabaseDeadLetters(opened)))
    unsent, parked = measured()
    assert unsent == 3
    assert math.isnan(parked), "what cannot be measured is not what it was before"


async def bus_with_one_parked(bus: MemoryBus) -> None:
    async def refuse(_: Message) -> None:
        raise PermanentError("nobody knows this run", reason="UnknownRun")

    await bus.consume(Consumer("one", ["#"], refuse))
    await bus.publish(Message(uuid.uuid4(), "acme.run.created", b"body"))


def measured() -> tuple[float, float]:
    unsent, parked = (REGISTRY.get_sample_value(f"hubflow_{name}") for name in ("events_unsent", "messages_parked"))
    assert unsent is not None
    assert parked is not None
    return unsent, parked


async def test_cause_and_trace_follow_from_the_event_that_is_handled(opened: Database) -> None:
    cause = WorkflowApplied(tenant="acme", workflow="w", version=1, by="ann", trace="00-1-2-01")
    async with opened.transaction(cause) as tx:
        assert await tx.first_time("me")
        tx.tell(TenantQuotaChanged(tenant="acme", by="ann"))
    [told] = tx.told
    assert (told.cause, told.trace) == (cause.id, "00-1-2-01")
    async with opened.transaction(cause) as tx:
        assert not await tx.first_time("me")
        assert await tx.first_time("somebody else")


async def test_many_processes_may_migrate_at_once(empty_database: str) -> None:
    async def one() -> list[str]:
        async with open_database(empty_database, max_connections=2) as database:
            return await migrate(database)

    applied = await asyncio.gather(*(one() for _ in range(8)))
    assert sorted(name for names in applied for name in names) == [migration.name for migration in migrations()]


async def test_a_changed_migration_is_refused_and_a_broken_one_leaves_nothing(empty_database: str) -> None:
    async with open_database(empty_database) as database:
        assert await pending(database) == [migration.name for migration in migrations()]
        first = Migration("0001", "CREATE TABLE a (x int)")
        await migrate(database, [first])
        with pytest.raises(PermanentError, match="0001 was changed"):
            await migrate(database, [Migration("0001", "CREATE TABLE b (x int)")])
        import asyncpg

        with pytest.raises(asyncpg.PostgresSyntaxError):
            await migrate(database, [first, Migration("0002", "CREATE TABLE c (x int); NONSENSE")])
        assert await database.fetchval("SELECT to_regclass('c')") is None


async def test_an_unreachable_database_is_a_temporary_error_without_its_password() -> None:
    with pytest.raises(TemporaryError, match="HUBFLOW_DATABASE_URL") as caught:
        async with open_database("postgresql://user:s3cret@127.0.0.1:9/none"):
            pass
    assert "s3cret" not in str(caught.value)


async def test_who_waits_for_migrations_goes_on_when_somebody_has_made_them(empty_database: str) -> None:
    waiting = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "migrate", "--wait",
        env={**os.environ, "HUBFLOW_DATABASE_URL": empty_database}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert waiting.stderr is not None
    assert b"waiting for 0001" in await asyncio.wait_for(waiting.stderr.readline(), 60)
    async with open_database(empty_database) as database:
        await migrate(database)
    assert await asyncio.wait_for(waiting.wait(), 30) == 0
