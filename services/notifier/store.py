"""SQL of deliveries (notifier's own table), and what it reads of subscriptions and runs."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.db.database import Database, Transaction
from shared.db.outbox import with_seq

CLOCKS_DIFFER_MS = 60_000
"""Milliseconds by which the clocks of two processes may differ."""

_CLAIM = """
WITH room AS (
    SELECT s.id, s.url, s.secret, $4 - coalesce(u.busy, 0) AS free FROM subscriptions s
    LEFT JOIN unnest($1::uuid[], $2::integer[]) AS u (id, busy) ON u.id = s.id
    WHERE s.disabled_at IS NULL AND $4 > coalesce(u.busy, 0)
), due AS (
    SELECT d.id, room.url, room.secret FROM room CROSS JOIN LATERAL (
        SELECT id FROM deliveries WHERE subscription = room.id AND state = 'waiting' AND next_try_at <= now()
        ORDER BY next_try_at LIMIT room.free FOR UPDATE SKIP LOCKED
    ) d LIMIT $3
)
UPDATE deliveries d SET holder = $5, tries = d.tries + 1, next_try_at = now() + make_interval(secs => $6)
FROM due WHERE d.id = due.id
RETURNING d.id, d.subscription, d.tenant, d.payload, d.tries, due.url, due.secret
"""


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who wants what."""

    id: uuid.UUID
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a delivery, claimed. `secret`: encrypted."""

    id: uuid.UUID
    subscription: uuid.UUID
    tenant: str
    payload: bytes
    tries: int
    url: str
    secret: bytes


async def subscriptions(database: Database) -> dict[str, Subscription]:
    """Those that are enabled, by tenant."""
    rows = await database.fetch("SELECT tenant, id, types FROM subscriptions WHERE disabled_at IS NULL")
    return {row["tenant"]: Subscription(row["id"], tuple(row["types"])) for row in rows}


async def told_since(database: Database, tenant: str, event: uuid.UUID) -> AsyncIterator[tuple[str, bytes]]:
    """Type and body, as they go over the wire, of the tenant's events that were recorded after this one, oldest first."""
    since = await database.fetchval("SELECT created_at FROM events WHERE id = $1", event)
    # Ids are made by the clocks of many processes and recorded by one: a minute is more than they differ.
    after = uuid.UUID(int=max(0, event.int - (CLOCKS_DIFFER_MS << 80)))
    while since is not None:
        rows = await database.fetch(
            "SELECT id, type, body, seq, created_at >= $3 AS since FROM events WHERE tenant = $1 AND id > $2 "
            "ORDER BY id LIMIT 500",
            tenant, after, since,
        )  # fmt: skip
        for row in rows:
            if row["since"]:
                yield row["type"], with_seq(row["body"], row["seq"])
        if not rows:
            return
        after = rows[-1]["id"]


async def about_run(database: Database, run: uuid.UUID) -> Mapping[str, Any]:
    """What never changes about a run."""
    row = await database.fetchrow("SELECT workflow, number FROM runs WHERE id = $1", run)
    return {} if row is None else dict(row)


async def add(
    database: Database, id: uuid.UUID, subscription: uuid.UUID, tenant: str, event: uuid.UUID, payload: bytes
) -> None:
    """Record a delivery, unless it is there or the subscription is gone. Its id is the inbox: it is derived from both."""
    await database.execute(
        "INSERT INTO deliveries (id, subscription, tenant, event, payload, next_try_at) "
        "SELECT $1, s.id, $3, $4, $5, now() FROM subscriptions s WHERE s.id = $2 FOR KEY SHARE ON CONFLICT DO NOTHING",
        id, subscription, tenant, event, payload,
    )  # fmt: skip


async def claim(
    database: Database, busy: Mapping[uuid.UUID, int], limit: int, per_subscription: int, holder: str, lease: float
) -> list[Try]:
    """Take up to `limit` tries that are due, for `lease` seconds; not more for a subscription than leaves it with
    `per_subscription` together with those under way (`busy`)."""
    rows = await database.fetch(_CLAIM, list(busy), list(busy.values()), limit, per_subscription, holder, lease)
    return [Try(*row) for row in rows]


async def delivered(database: Database, attempt: Try, holder: str, status: int) -> None:
    await database.execute(
        "UPDATE deliveries SET state = 'delivered', last_status = $4, last_error = '', next_try_at = NULL, "
        "finished_at = now() WHERE id = $1 AND state = 'waiting' AND holder = $2 AND tries = $3",
        attempt.id, holder, attempt.tries, status,
    )  # fmt: skip


async def try_again(
    database: Database, attempt: Try, holder: str, status: int | None, error: str, delay: float
) -> None:
    await database.execute(
        "UPDATE deliveries SET last_status = $4, last_error = $5, next_try_at = now() + make_interval(secs => $6), "
        "holder = NULL WHERE id = $1 AND state = 'waiting' AND holder = $2 AND tries = $3",
        attempt.id, holder, attempt.tries, status, error, delay,
    )  # fmt: skip


async def failed(tx: Transaction, attempt: Try, holder: str, status: int | None, error: str) -> bool:
    """Whether this was the try that ended it."""
    moved: str = await tx.connection.execute(
        "UPDATE deliveries SET state = 'failed', last_status = $4, last_error = $5, next_try_at = NULL, finished_at = now() "
        "WHERE id = $1 AND state = 'waiting' AND holder = $2 AND tries = $3",
        attempt.id, holder, attempt.tries, status, error,
    )  # fmt: skip
    return moved != "UPDATE 0"
