"""Events on their way: recorded with the change that causes them, published after commit, swept up after a crash.

The table `events` is outbox and journal in one. `record` runs inside the causing transaction. After commit the same
process publishes at once (`Relay.send`); what a crash, a lost broker or a failed mark left behind is found by
`Relay.sweep` of any process. Both may publish the same event: consumers drop what they have handled (`inbox`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from shared import crash
from shared.bus.protocol import Bus, Message
from shared.crash import Point
from shared.errors import HubflowError, TemporaryError
from shared.events import Event
from shared.log import get_logger

if TYPE_CHECKING:
    from shared.db.database import Database

SWEEP_INTERVAL = 1.0
"""Seconds between two looks for events that were left behind."""
SWEEP_AGE = 5.0
"""Seconds after which an event that nobody has marked as sent counts as left behind."""
SWEEP_LIMIT = 1000
UNSENT_LIMIT = 100_000
"""Up to which events left behind are counted."""
MARK_INTERVAL = 0.1
"""Seconds to gather sent events before they are marked together. (After a crash, what was not marked is sent once more.)"""

_log = get_logger("outbox")


def recording(first: int, only: str = "") -> str:
    """CTEs that record the events in the parameters from `$first` on (`columns` makes them), for a statement that is a change
    and its events in one. `only`: a condition on an event `g` (id, tenant, run, type, body), where the change decides about it.

    The CTE `recorded` (id, seq) tells what was recorded.
    """
    parameters = ", ".join(
        f"${first + n}::{kind}[]" for n, kind in enumerate(("uuid", "text", "uuid", "text", "bytea"))
    )
    where = f" WHERE {only}" if only else ""
    return f"""
told AS (
    SELECT g.* FROM unnest({parameters}) WITH ORDINALITY AS g (id, tenant, run, type, body, n){where}
), amounts AS (
    SELECT run, count(*) AS amount FROM told WHERE run IS NOT NULL GROUP BY run
), turns AS (
    SELECT run FROM run_counters WHERE run IN (SELECT run FROM amounts) ORDER BY run FOR UPDATE
), counted AS (
    UPDATE run_counters c SET seq = c.seq + a.amount FROM amounts a, turns t
    WHERE c.run = a.run AND t.run = c.run RETURNING c.run, c.seq - a.amount AS base
), recorded AS (
    INSERT INTO events (id, tenant, run, seq, type, body)
    SELECT t.id, t.tenant, t.run, c.base + row_number() OVER (PARTITION BY t.run ORDER BY t.n), t.type, t.body
    FROM told t LEFT JOIN counted c ON c.run = t.run
    RETURNING id, seq
)"""  # noqa: S608 - constants


_RECORD = f"WITH {recording(1)} SELECT id, seq FROM recorded"  # noqa: S608 - constants

_CLAIM = """
UPDATE events SET claimed_at = now() WHERE id IN (
    SELECT id FROM events WHERE sent_at IS NULL AND created_at < now() - make_interval(secs => $1)
        AND (claimed_at IS NULL OR claimed_at < now() - make_interval(secs => $1)) AND id <> ALL ($2::uuid[])
    ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED
) RETURNING id, tenant, type, seq, body
"""

_UNSENT = """
SELECT count(*) FROM (
    SELECT FROM events WHERE sent_at IS NULL AND created_at < now() - make_interval(secs => $1) LIMIT $2
) left_behind
"""

# Without "and not sent yet", which would tempt PostgreSQL to look through all that was ever not sent.
_MARK = "UPDATE events SET sent_at = now() WHERE id = ANY ($1::uuid[])"


async def record(connection: Any, events: Sequence[Event]) -> list[Message]:
    """Write the events in the order given, in the connection's transaction. Returns what is to be published after commit."""
    given = columns(events)
    rows = await connection.fetch(_RECORD, *given)
    return messages(events, given, {row["id"]: row["seq"] for row in rows})


def columns(events: Sequence[Event]) -> tuple[list[Any], ...]:
    """The parameters of `recording`: one list a column."""
    given: tuple[list[Any], ...] = ([], [], [], [], [])
    for event in events:
        row = (event.id, event.tenant, event.run, event.TYPE, msgpack.packb(event.to_map()))
        for column, value in zip(given, row, strict=True):
            column.append(value)
    return given


def messages(
    events: Sequence[Event], given: tuple[list[Any], ...], seqs: Mapping[uuid.UUID, int | None]
) -> list[Message]:
    """What is to be published: the events that were recorded, which are those that have a seq (or None, without a run)."""
    return [
        Message(event.id, event.topic, with_seq(body, seqs[event.id]))
        for event, body in zip(events, given[-1], strict=True)
        if event.id in seqs
    ]


async def unsent(database: Database) -> int:
    """How many events are left behind, of all processes."""
    count: int = await database.fetchval(_UNSENT, SWEEP_AGE, UNSENT_LIMIT)
    return count


class Relay:
    """Publishes committed events and marks them as sent. One for each process."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._in_flight: dict[uuid.UUID, asyncio.Future[None]] = {}
        self._sent: list[uuid.UUID] = []
        self._something_sent = asyncio.Event()

    def send(self, messages: Sequence[Message]) -> None:
        """Publish events that have just been committed. Returns at once; failures are left to the sweep."""
        for message in messages:
            self._publish(message)

    async def run(self) -> None:
        """Mark what was sent and sweep up what was left, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mark_sent(), name="outbox marks")
            group.create_task(self._sweep_periodically(), name="outbox sweep")

    async def sweep(self, age: float = SWEEP_AGE) -> int:
        """Publish what is older than `age` seconds and not marked as sent. Returns how many there were."""
        rows = await self._database.fetch(_CLAIM, age, list(self._in_flight), SWEEP_LIMIT)
        # They come in any order; a run's are told in that of its commits.
        for row in sorted(rows, key=lambda row: row["seq"] or 0):
            self._publish(Message(row["id"], f"{row['tenant']}.{row['type']}", with_seq(row["body"], row["seq"])))
        if rows:
            _log.info("outbox swept", events=len(rows))
        return len(rows)

    async def flush(self) -> None:
        """Wait until everything handed in is published (or left to the sweep), then mark it."""
        while self._in_flight:
            await asyncio.wait(list(self._in_flight.values()))
        await self._mark()

    def _publish(self, message: Message) -> None:
        future = self._bus.publish(message)
        self._in_flight[message.id] = future
        future.add_done_callback(lambda done: self._published(message.id, done))

    def _published(self, id: uuid.UUID, future: asyncio.Future[None]) -> None:
        self._in_flight.pop(id, None)
        if future.cancelled():
            return
        if error := future.exception():
            _log.warning("event not published, the sweep will", event_id=str(id), error=str(error))
            return
        crash.reached(Point.AFTER_PUBLISH)
        self._sent.append(id)
        self._something_sent.set()

    async def _mark_sent(self) -> None:
        while True:
            await self._something_sent.wait()
            self._something_sent.clear()
            await asyncio.sleep(MARK_INTERVAL)  # gathers; nothing waits for a mark
            try:
                await self._mark()
            except TemporaryError as error:
                _log.warning("sent events not marked, they will be sent again", error=str(error))

    async def _mark(self) -> None:
        sent, self._sent = self._sent, []
        if sent:
            await self._database.execute_relaxed(_MARK, sent)
            crash.reached(Point.AFTER_MARK)

    async def _sweep_periodically(self) -> None:
        while True:
            try:
                while await self.sweep() == SWEEP_LIMIT:
                    pass
            except HubflowError as error:
                _log.warning("outbox sweep failed, it goes on", error=str(error))
            await asyncio.sleep(SWEEP_INTERVAL)


_FIXMAP = 0x80
"""First byte of a msgpack map of up to 15 entries, plus their number (msgpack's specification, "map format family")."""


def with_seq(body: bytes, seq: int | None) -> bytes:
    """The recorded body with its seq put in, as it goes over the wire."""
    if seq is None:
        return body
    if _FIXMAP <= body[0] < _FIXMAP + 15:  # room for one more: put it at the end, and leave the rest as it is
        return b"".join((bytes((body[0] + 1,)), body[1:], _SEQ, msgpack.packb(seq)))
    packed: bytes = msgpack.packb({**msgpack.unpackb(body), "seq": seq})
    return packed


_SEQ = msgpack.packb("seq")
