"""SQL of subscriptions (console's), and what console reads of deliveries (notifier's)."""

# ruff: noqa: S608 - statements are put together of constants; values are always arguments

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from shared.clock import new_id
from shared.db.database import Database, Transaction

_COLUMNS = "id, url, types, disabled_at IS NULL AS enabled, created_at"


async def put(
    tx: Transaction, tenant: str, url: str, types: Sequence[str], enabled: bool, secret: bytes
) -> tuple[Any, bool]:
    """The tenant's subscription, and whether it is a new one; an old one keeps its id and its secret."""
    row = await tx.connection.fetchrow(
        "INSERT INTO subscriptions (id, tenant, url, secret, types, disabled_at) "
        "VALUES ($1, $2, $3, $4, $5, CASE WHEN $6 THEN NULL ELSE now() END) ON CONFLICT (tenant) DO UPDATE SET "
        f"url = excluded.url, types = excluded.types, disabled_at = excluded.disabled_at RETURNING {_COLUMNS}, xmax = 0 AS new",
        new_id(), tenant, url, secret, list(types), enabled,
    )  # fmt: skip
    return row, row["new"]


async def get(database: Database, tenant: str) -> Any | None:
    return await database.fetchrow(f"SELECT {_COLUMNS} FROM subscriptions WHERE tenant = $1", tenant)


async def set_secret(tx: Transaction, tenant: str, secret: bytes) -> Any | None:
    return await tx.connection.fetchrow(
        f"UPDATE subscriptions SET secret = $2 WHERE tenant = $1 RETURNING {_COLUMNS}",
        tenant, secret,
    )  # fmt: skip


async def delete(tx: Transaction, tenant: str) -> uuid.UUID | None:
    """Its id. Its deliveries go with it."""
    id: uuid.UUID | None = await tx.connection.fetchval(
        "DELETE FROM subscriptions WHERE tenant = $1 RETURNING id", tenant
    )
    return id


async def deliveries(database: Database, tenant: str, limit: int, before: tuple[Any, ...] | None) -> list[Any]:
    """Newest first; `before`: (created_at, id) where the page before ended."""
    created_at, id = before or (None, None)
    return await database.fetch(
        "SELECT id, event, convert_from(payload, 'UTF8')::jsonb->>'type' AS type, state, tries, next_try_at, last_status, "
        "last_error, created_at, finished_at FROM deliveries WHERE tenant = $1 "
        "AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid)) ORDER BY created_at DESC, id DESC LIMIT $4",
        tenant, created_at, id, limit + 1,
    )  # fmt: skip
