"""The pool, and the one way to change state: `Database.transaction`.

    async with database.transaction(cause=event) as tx:
        if not await tx.first_time("executor"):
            return                               # handled before: a crash came between commit and acknowledgement
        await tx.connection.execute(...)         # the change
        tx.tell(JobSubmitted(...))               # what follows from it
    # committed here, and the events are on their way

asyncpg's errors are translated here: TemporaryError for a server that is away or a transaction that lost a race (a single
statement is begun again before); anything else is a bug and passes through.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Any

import asyncpg

from shared import crash
from shared.bus.protocol import Message
from shared.crash import Point
from shared.db import outbox
from shared.errors import LostRaceError, UnavailableError
from shared.events import Event
from shared.text import fit_json

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg says of a connection that is being lost at this very moment
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password that is being changed
    asyncpg.InvalidCatalogNameError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.ReadOnlySQLTransactionError,  # a failover is going on
)
_LOST_A_RACE = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    # To a migration: the statement was planned for the tables as they were before.
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)

RACES = 3
"""How often a statement may lose a race before it fails."""
STATEMENT_SECONDS = 20
"""Seconds that a statement may take. Ours take milliseconds; one that does not end is of a server that has silently gone, and
the messages in hand wait for it. (Migrations have a time limit of their own.)"""
CONNECT_SECONDS = 10
ABANDONED_SECONDS = 30
"""Seconds without a statement after which the server ends a transaction. Ours last milliseconds, and wait for nothing."""
_SESSION = {
    # A plan is made once. Arrays make PostgreSQL plan anew for each length, which takes longer than the statement.
    "plan_cache_mode": "force_generic_plan",
    # And it may be made while the tables are nearly empty, of which it must not keep the habit: rows are found by an index.
    "enable_seqscan": "off",
    # Nor may a join read a whole index to find the few rows of a batch, which it takes for cheap while the tables are small.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # A process whose machine or network has gone without a word leaves its transaction behind, with the locks of runs that
    # nobody else could touch until TCP gives up, which takes PostgreSQL two hours by default.
    "idle_in_transaction_session_timeout": f"{ABANDONED_SECONDS}s",
    "tcp_keepalives_idle": f"{ABANDONED_SECONDS}s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
}


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that needs no clean-up between uses: nothing here leaves session state behind (locks and settings are
    those of a transaction), and the usual reset would cost every use a round trip."""

    def get_reset_query(self) -> str:
        return ""


class Transaction:
    """One transaction in progress. `connection` runs statements; `tell` collects the events that follow."""

    def __init__(self, connection: Any, cause: Event | None) -> None:
        self.connection = connection
        self.cause = cause
        self.told: list[Event] = []

    def tell(self, *events: Event) -> None:
        """Record events with this transaction; they are published after commit, in this order."""
        self.told.extend(events if self.cause is None else [event.caused_by(self.cause) for event in events])

    async def first_time(self, consumer: str) -> bool:
        """Note that `consumer` handles the causing event now. False: it has already done so."""
        if self.cause is None:
            raise TypeError("first_time needs a transaction with a cause")
        return bool(await self.first_times(consumer, [self.cause.id]))

    async def first_times(self, consumer: str, events: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """The same for many events at once: those that `consumer` has not handled yet."""
        rows = await self.connection.fetch(
            "INSERT INTO inbox (consumer, event) SELECT $1, unnest($2::uuid[]) ON CONFLICT DO NOTHING RETURNING event",
            consumer,
            list(events),
        )
        return {row["event"] for row in rows}


class Database:
    """A pool of connections to one PostgreSQL database. See the module's docstring."""

    def __init__(self, pool: Any, relaxed: Any) -> None:
        self._pool = pool
        self._relaxed = relaxed
        self.relay: outbox.Relay | None = None
        """Set by whoever hosts the services; without it events wait for another process's sweep."""

    @asynccontextmanager
    async def transaction(self, cause: Event | None = None) -> AsyncIterator[Transaction]:
        """Everything inside is committed together, with the events told, or not at all."""
        with translated_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                transaction = Transaction(connection, cause)
                yield transaction
                recorded = await outbox.record(connection, transaction.told) if transaction.told else []
                crash.reached(Point.BEFORE_COMMIT)
        crash.reached(Point.AFTER_COMMIT)
        self._send(recorded)

    async def change(
        self,
        statement: str,
        *arguments: Any,
        told: Sequence[Event],
        seqs: Callable[[Any], Mapping[uuid.UUID, int | None]],
    ) -> list[Any]:
        """A change that is one statement: it records the events `told` by itself (`outbox.recording`, whose parameters come
        after `arguments`), so that one round trip is the whole transaction. `seqs`: event -> seq of those that were recorded,
        from the rows it returns."""
        given = outbox.columns(told)
        crash.reached(Point.BEFORE_COMMIT)
        with translated_errors():
            rows: list[Any] = await _alone(self._pool.fetch, statement, *arguments, *given)
        crash.reached(Point.AFTER_COMMIT)
        self._send(outbox.messages(told, given, seqs(rows)))
        return rows

    def _send(self, recorded: Sequence[Message]) -> None:
        if recorded and self.relay is not None:
            self.relay.send(recorded)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection for several reads."""
        with translated_errors():
            async with self._pool.acquire() as connection:
                yield connection

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        with translated_errors():
            rows: list[Any] = await _alone(self._pool.fetch, query, *arguments)
        if rows:
            _done(query)
        return rows

    async def fetchrow(self, query: str, *arguments: Any) -> Any | None:
        with translated_errors():
            row = await _alone(self._pool.fetchrow, query, *arguments)
        if row is not None:
            _done(query)
        return row

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        with translated_errors():
            value = await _alone(self._pool.fetchval, query, *arguments)
        if value is not None:
            _done(query)
        return value

    async def execute(self, query: str, *arguments: Any) -> str:
        with translated_errors():
            status: str = await _alone(self._pool.execute, query, *arguments)
        if not status.endswith(" 0"):
            _done(query)
        return status

    async def execute_relaxed(self, query: str, *arguments: Any) -> str:
        """For what may be lost in a crash of the server (marks, leases): returns before it is on disk."""
        with translated_errors():
            status: str = await _alone(self._relaxed.execute, query, *arguments)
            return status

    async def ping(self) -> None:
        """Raise TemporaryError if the database does not answer."""
        await self.fetchval("SELECT 1")


@asynccontextmanager
async def open_database(dsn: str, *, max_connections: int = 10) -> AsyncIterator[Database]:
    """Connect. Raises TemporaryError, naming the address without its password, when the server does not answer."""
    with translated_errors():
        pool = await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=max_connections,
            init=_prepare_connection,
            connection_class=_Connection,
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            server_settings=_SESSION,
        )
        relaxed = await asyncpg.create_pool(
            dsn, min_size=0, max_size=2, init=_prepare_connection, connection_class=_Connection,
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            server_settings={**_SESSION, "synchronous_commit": "off"},
        )  # fmt: skip
    try:
        yield Database(pool, relaxed)
    finally:
        for each in (pool, relaxed):
            each.terminate()  # everything that matters was committed or will be rolled back


async def _prepare_connection(connection: Any) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_dump, decoder=json.loads, format="text")


def _dump(value: Any) -> str:
    # PostgreSQL's jsonb has no NUL character; what a job prints may.
    return fit_json(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


async def _alone(run: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Run a statement that is a transaction of its own. One that has lost a race has changed nothing and is begun again: the
    message that it is run for would have to wait a second, and has only so many tries."""
    for _ in range(RACES - 1):
        with suppress(*_LOST_A_RACE):
            return await run(*arguments)
    return await run(*arguments)


def _done(query: str) -> None:
    """A statement has read rows or written them."""
    if _is_write(query):
        crash.reached(Point.AFTER_WRITE)


@lru_cache(maxsize=1024)
def _is_write(query: str) -> bool:
    return re.search(r"\b(INSERT INTO|UPDATE \w+( \w+)? SET|DELETE FROM)\b", query) is not None


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn asyncpg's errors into Hubflow's."""
    try:
        yield
    except _LOST_A_RACE as error:
        raise LostRaceError(f"another transaction came first: {error}", delay=0.05) from error
    except _AWAY as error:
        text = str(error) or type(error).__name__
        raise UnavailableError(
            f"the database does not answer ({text}); check HUBFLOW_DATABASE_URL and the server"
        ) from error
