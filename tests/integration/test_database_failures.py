"""What a database does to transactions: it goes away in the middle, chooses another one first, and is migrated underneath."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from services.scheduler.handlers import on_time
from shared.bus.memory import MemoryBus
from shared.bus.protocol import Consumer, Message
from shared.db import database as database_module
from shared.db.database import RACES, Database, Transaction, open_database
from shared.db.dead_letters import DatabaseDeadLetters
from shared.db.migrate import Migration, migrate, migrations
from shared.db.outbox import Relay
from shared.embedded import embedded_postgres
from shared.embedded.postgres import tcp_dsn
from shared.embedded.process import Server
from shared.errors import TemporaryError
from shared.events import Event, JobReady, JobStopRequested, TenantQuotaChanged, decode
from tests.chaos.proxy import opened_proxy
from tests.integration.scheduling import Scheduling
from tests.integration.test_scheduler import TWO_STAGES

QUICK = (0.05, 0.05, 0.2, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


class Killable:
    """A PostgreSQL that a test may kill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self.dsn = ""

    async def start(self) -> None:
        self.dsn = await self._stack.enter_async_context(embedded_postgres(self._folder, die_with_parent=True))

    async def kill(self) -> None:
        server = Server.find(self._folder / "postgres" / "server.json", str(self._folder / "postgres" / "data"))
        assert server is not None
        os.killpg(server.pid, signal.SIGKILL)
        await server.ended(10)
        await self._stack.aclose()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Killable]:
    server = Killable(tmp_path)
    await server.start()
    yield server
    await server._stack.aclose()


@pytest.fixture
async def opened(database: str) -> AsyncIterator[Database]:
    async with open_database(database) as opened:
        yield opened


async def counting(database: Database, name: str, message: Message, pause: Callable[[], Awaitable[None]]) -> None:
    """A handler as all are: the inbox, a change, an event that follows from it."""
    async with database.transaction(decode(message.body)) as tx:
        if not await tx.first_time(name):
            return
        await tx.connection.execute("UPDATE effects SET n = n + 1")
        await pause()
        tx.tell(TenantQuotaChanged(tenant="other", by=name))


async def test_t77_a_database_killed_in_the_middle_of_a_transaction_gets_it_once(server: Killable) -> None:
    killed = False

    async def kill_once() -> None:
        nonlocal killed
        if not killed:
            killed = True
            await server.kill()
            await server.start()

    async with open_database(server.dsn) as database:
        await migrate(database)
        await database.execute("CREATE TABLE effects (n int)")
        await database.execute("INSERT INTO effects VALUES (0)")
        bus, heard = MemoryBus(DatabaseDeadLetters(database)), Counter[uuid.UUID]()

        async def hear(message: Message) -> None:
            heard[message.id] += 1

        await bus.consume(
            Consumer("counter", ["acme.#"], lambda m: counting(database, "counter", m, kill_once), retry_delays=QUICK)
        )
        await bus.consume(Consumer("after", ["other.#"], hear))
        database.relay = Relay(database, bus)
        cause = TenantQuotaChanged(tenant="acme", by="ann")
        async with database.transaction() as tx:
            tx.tell(cause)
        await database.relay.flush()
        async with asyncio.timeout(60):
            while not heard:
                await until_swept(database)
        assert killed
        assert await database.fetchval("SELECT n FROM effects") == 1
        assert len(heard) == 1, "the event that follows exists once, however often it was published"
        await bus.close()


async def until_swept(database: Database) -> None:
    try:
        await database.relay.sweep(age=0)  # type: ignore[union-attr]
        await database.relay.flush()  # type: ignore[union-attr]
    except TemporaryError:
        await asyncio.sleep(0.05)


async def test_t77_every_statement_of_a_transaction_that_is_cut_is_temporary(server: Killable) -> None:
    async with open_database(server.dsn) as database:
        await migrate(database)
        await database.execute("INSERT INTO tenants (name) VALUES ('before')")

        async def cut_in_the_middle() -> None:
            async with database.transaction() as tx:
                await tx.connection.execute("INSERT INTO tenants (name) VALUES ('acme')")
                await server.kill()
                await tx.connection.execute("INSERT INTO tenants (name) VALUES ('bob')")

        with pytest.raises(TemporaryError, match="does not answer"):
            await cut_in_the_middle()
        await server.start()
        async with asyncio.timeout(30):
            while (names := await tenants(database)) is None:
                await asyncio.sleep(0.05)
        assert names == ["before"]


async def tenants(database: Database) -> list[str] | None:
    try:
        return [row["name"] for row in await database.fetch("SELECT name FROM tenants ORDER BY name")]
    except TemporaryError:
        return None


async def test_t16_a_transaction_whose_process_has_silently_gone_gives_its_locks_back(
    database: str, server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-open: nothing arrives any more in either direction, and neither side is told."""
    settings = {**database_module._SESSION, "idle_in_transaction_session_timeout": "1s"}
    monkeypatch.setattr(database_module, "_SESSION", settings)
    assert database_module.ABANDONED_SECONDS <= 60
    tcp = urlsplit(tcp_dsn(server_folder))._replace(path=urlsplit(database).path)
    async with opened_proxy("database", tcp.port or 0) as proxy, open_database(database) as alive:
        netloc = f"{tcp.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"
        await alive.execute("INSERT INTO tenants (name) VALUES ('acme')")
        gone = await asyncpg.connect(urlunsplit(tcp._replace(netloc=netloc)), server_settings=database_module._SESSION)
        await gone.execute("BEGIN")
        await gone.execute("SELECT FROM tenants WHERE name = 'acme' FOR UPDATE")
        proxy.swallow()
        async with asyncio.timeout(15):
            await alive.execute("UPDATE tenants SET quota = '{}' WHERE name = 'acme'")
        gone.terminate()


# ---------------------------------------------------------------- races


async def test_a_deadlock_is_resolved_and_both_handlers_have_had_their_effect_once(opened: Database) -> None:
    """Two handlers lock the same rows in opposite order; the database ends one, which is tried again."""
    await opened.execute("CREATE TABLE effects (name text PRIMARY KEY, n int)")
    await opened.execute("INSERT INTO effects VALUES ('a', 0), ('b', 0)")
    both_hold_one = asyncio.Barrier(2)
    tries: Counter[str] = Counter()

    async def add(tx: Transaction, row: str) -> None:
        await tx.connection.execute("UPDATE effects SET n = n + 1 WHERE name = $1", row)

    def handler(name: str, first: str, second: str) -> Callable[[Message], Awaitable[None]]:
        async def handle(message: Message) -> None:
            tries[name] += 1
            async with opened.transaction(decode(message.body)) as tx:
                assert await tx.first_time(name)
                await add(tx, first)
                if tries[name] == 1:
                    await both_hold_one.wait()
                await add(tx, second)

        return handle

    bus = MemoryBus(DatabaseDeadLetters(opened))
    await bus.consume(Consumer("one", ["#"], handler("one", "a", "b"), retry_delays=QUICK))
    await bus.consume(Consumer("two", ["#"], handler("two", "b", "a"), retry_delays=QUICK))
    opened.relay = Relay(opened, bus)
    async with opened.transaction() as tx:
        tx.tell(TenantQuotaChanged(tenant="acme", by="ann"))
    async with asyncio.timeout(30):
        await opened.relay.flush()
    assert sorted(tries.values()) == [1, 2]
    assert [row["n"] for row in await opened.fetch("SELECT n FROM effects")] == [2, 2]
    assert await bus.dead() == []


async def test_a_transaction_that_fails_to_serialise_is_tried_again(opened: Database) -> None:
    """At the strictest isolation a concurrent change makes the commit fail: temporary, with a short delay."""
    await opened.execute("CREATE TABLE effects (n int)")
    await opened.execute("INSERT INTO effects VALUES (0)")

    async def overtaken() -> None:
        async with opened.transaction() as tx:
            await tx.connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            seen = await tx.connection.fetchval("SELECT n FROM effects")
            await opened.execute("UPDATE effects SET n = n + 10")
            await tx.connection.execute("UPDATE effects SET n = $1", seen + 1)
            tx.tell(TenantQuotaChanged(tenant="acme", by="ann"))

    with pytest.raises(TemporaryError, match="another transaction came first") as caught:
        await overtaken()
    assert caught.value.delay is not None
    assert caught.value.delay < 1
    assert await opened.fetchval("SELECT n FROM effects") == 10
    assert await opened.fetchval("SELECT count(*) FROM events") == 0


async def test_a_handler_whose_transactions_lose_races_costs_no_try(opened: Database) -> None:
    await opened.execute("CREATE TABLE effects (n int)")
    await opened.execute("INSERT INTO effects VALUES (0)")
    tries, races = [], iter(range(4))

    async def overtaken(message: Message) -> None:
        tries.append(message.tries)
        async with opened.transaction() as tx:
            await tx.connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            seen = await tx.connection.fetchval("SELECT n FROM effects")
            if next(races, None) is not None:
                await opened.execute("UPDATE effects SET n = n + 10")
            await tx.connection.execute("UPDATE effects SET n = $1", seen + 1)

    bus = MemoryBus(DatabaseDeadLetters(opened))
    await bus.consume(Consumer("one", ["#"], overtaken, retry_delays=()))
    opened.relay = Relay(opened, bus)
    async with opened.transaction() as tx:
        tx.tell(TenantQuotaChanged(tenant="acme", by="ann"))
    async with asyncio.timeout(30):
        await opened.relay.flush()
        while await opened.fetchval("SELECT n FROM effects") != 41:
            await asyncio.sleep(0.01)
    assert tries == [1] * 5
    assert await bus.dead() == []


async def test_a_single_statement_that_loses_a_race_is_begun_again_at_once(opened: Database) -> None:
    """Its message would be put off for a second, and be parked after six races."""
    await opened.execute("CREATE SEQUENCE tries")
    await opened.execute(
        "CREATE FUNCTION try(lucky bigint) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('tries') <> lucky THEN RAISE deadlock_detected; END IF; RETURN lucky; END $$"
    )
    for ask in (opened.fetchval, opened.fetchrow, opened.fetch, opened.execute, opened.execute_relaxed):
        await opened.execute("ALTER SEQUENCE tries RESTART")
        await ask("SELECT try($1)", RACES)
        with pytest.raises(TemporaryError, match="another transaction"):
            await ask("SELECT try(0)")
        assert await opened.fetchval("SELECT last_value FROM tries") == 2 * RACES


# ---------------------------------------------------------------- two relays


async def test_t78_two_relays_sweep_each_event_up_once_and_in_order(opened: Database, database: str) -> None:
    runs = [uuid.uuid4() for _ in range(5)]
    await opened.execute("INSERT INTO run_counters (run, seq) SELECT unnest($1::uuid[]), 0", runs)
    for _ in range(40):
        async with opened.transaction() as tx:  # without a relay: as if each process had died after its commit
            tx.tell(*(JobReady(tenant="acme", run=run, stage="s", job="a", attempt=1) for run in runs))
    # Transactions of one run that overlap may begin in another order than they commit in, which is that of seq.
    await opened.execute("UPDATE events SET created_at = now() - interval '1 minute' - seq * interval '1 millisecond'")
    got: list[list[Event]] = [[], []]

    async with open_database(database) as other:
        relays = []
        for each, mine in zip((opened, other), got, strict=True):
            bus = MemoryBus(DatabaseDeadLetters(each))

            async def hear(message: Message, mine: list[Event] = mine) -> None:
                mine.append(decode(message.body))

            await bus.consume(Consumer("receiver", ["#"], hear))
            relays.append(Relay(each, bus))
        swept = 0
        while count := sum(await asyncio.gather(*(relay.sweep(age=30) for relay in relays))):
            swept += count
            await asyncio.gather(*(relay.flush() for relay in relays))
    all_got = [event for mine in got for event in mine]
    assert swept == len({event.id for event in all_got}) == len(all_got) == 200, (
        "nobody has swept up what the other had"
    )
    for run in runs:
        first, second = ([event.seq or 0 for event in mine if event.run == run] for mine in got)
        assert (first, second) == (sorted(first), sorted(second)), "each relay in order"
        assert sorted(first + second) == list(range(1, 41))


async def test_t78_an_event_published_by_two_relays_has_its_effect_once(opened: Database, database: str) -> None:
    """One relay has published and not marked it yet when the other sweeps: the consumer drops what it has handled."""
    await opened.execute("CREATE TABLE effects (n int)")
    await opened.execute("INSERT INTO effects VALUES (0)")

    async def no_pause() -> None:
        pass

    async with open_database(database) as other:
        for each in (opened, other):
            bus = MemoryBus(DatabaseDeadLetters(each))
            handler = lambda m, each=each: counting(each, "counter", m, no_pause)  # noqa: E731
            await bus.consume(Consumer("counter", ["acme.#"], handler, retry_delays=QUICK))
            each.relay = Relay(each, bus)
        async with opened.transaction() as tx:
            tx.tell(TenantQuotaChanged(tenant="acme", by="ann"))
        assert other.relay is not None
        assert opened.relay is not None
        assert await other.relay.sweep(age=0) >= 1
        await asyncio.gather(opened.relay.flush(), other.relay.flush())
    assert await opened.fetchval("SELECT n FROM effects") == 1
    assert await opened.fetchval("SELECT count(*) FROM events WHERE tenant = 'other'") == 1


# ---------------------------------------------------------------- the same event twice, late, and in any order


async def test_t18_all_events_of_a_finished_run_again_in_reverse_change_nothing(scheduling: Scheduling) -> None:
    run = await scheduling.start(await scheduling.workflow(TWO_STAGES))
    for job in ("lint", "unit", "compile"):
        await scheduling.finish(run, job)
    told = await scheduling.told(run)
    before = [dict(row) for row in await scheduling.database.fetch("SELECT * FROM jobs WHERE run = $1", run)]
    for event in reversed(told):
        await scheduling.hear([event])
    await scheduling.hear(told + told)
    assert await scheduling.told(run) == told
    assert [dict(row) for row in await scheduling.database.fetch("SELECT * FROM jobs WHERE run = $1", run)] == before


@pytest.fixture
async def scheduling(opened: Database) -> Scheduling:
    scheduling = Scheduling(opened)
    await scheduling.tenant()
    return scheduling


# ---------------------------------------------------------------- migrations under a running system


async def test_t95_what_is_due_after_a_migration_is_done_and_not_put_off(scheduling: Scheduling) -> None:
    """Its statements were planned for the tables as they were, on connections that have them still."""
    workflow = await scheduling.workflow(TWO_STAGES)
    first, second = await scheduling.start(workflow), await scheduling.start(workflow)
    await scheduling.database.execute("UPDATE runs SET wake_at = wake_at + interval '1 day' WHERE id = $1", second)
    scheduling.clock.turn(3600)
    assert await on_time(scheduling.context) == 1
    assert await asked_to_stop(scheduling, first), "its jobs were never submitted"
    more = Migration("9999_more", "ALTER TABLE jobs ADD COLUMN colour text; ALTER TABLE stages ADD COLUMN colour text")
    assert await migrate(scheduling.database, [*migrations(), more]) == ["9999_more"]
    scheduling.clock.turn(86400)
    async with asyncio.timeout(10):
        while not await asked_to_stop(scheduling, second):
            with contextlib.suppress(TemporaryError):
                assert await on_time(scheduling.context), "the run is put off"


async def asked_to_stop(scheduling: Scheduling, run: uuid.UUID) -> bool:
    query = "SELECT EXISTS (SELECT FROM events WHERE run = $1 AND type = $2)"
    return bool(await scheduling.database.fetchval(query, run, JobStopRequested.TYPE))


async def test_t95_the_schema_grows_while_replicas_work(scheduling: Scheduling) -> None:
    """A migration waits for transactions in progress and holds up new ones for a moment; nobody fails."""
    run = await scheduling.start(await scheduling.workflow(TWO_STAGES))
    more = Migration(
        "9999_more",
        "ALTER TABLE runs ADD COLUMN colour text NOT NULL DEFAULT 'red'; ALTER TABLE jobs ADD COLUMN colour text; "
        "ALTER TABLE events ADD COLUMN colour text; CREATE INDEX colours ON runs (colour)",
    )
    working = asyncio.gather(*(scheduling.finish(run, job) for job in ("lint", "unit")))
    assert await migrate(scheduling.database, [*migrations(), more]) == ["9999_more"]
    await working
    await scheduling.finish(run, "compile")
    assert await scheduling.state(run) == "succeeded"
