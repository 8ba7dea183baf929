"""SQL of tenants, their tokens and their secrets."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from shared.auth import token_hash
from shared.clock import new_id
from shared.db.database import Database, Transaction


async def create(tx: Transaction, name: str, quota: Mapping[str, Any]) -> Any | None:
    """The new row (name, quota, created_at), or None if there is one of that name."""
    return await tx.connection.fetchrow(
        "INSERT INTO tenants (name, quota) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING name, quota, created_at",
        name, dict(quota),
    )  # fmt: skip


async def page(database: Database, limit: int, after: str | None) -> list[Any]:
    return await database.fetch(
        "SELECT name, quota, created_at FROM tenants WHERE $1::text IS NULL OR name > $1 ORDER BY name LIMIT $2",
        after, limit + 1,
    )  # fmt: skip


async def get(database: Database, name: str) -> Any | None:
    return await database.fetchrow("SELECT name, quota, created_at FROM tenants WHERE name = $1", name)


async def set_quota(tx: Transaction, name: str, quota: Mapping[str, Any]) -> Any | None:
    return await tx.connection.fetchrow(
        "UPDATE tenants SET quota = $2 WHERE name = $1 RETURNING name, quota, created_at", name, dict(quota)
    )


# ---------------------------------------------------------------- tokens


async def create_token(
    tx: Transaction, tenant: str | None, name: str, token: str, scopes: Sequence[str], expires_at: datetime | None
) -> Any:
    return await tx.connection.fetchrow(
        "INSERT INTO tokens (id, tenant, name, hash, scopes, expires_at) VALUES ($1, $2, $3, $4, $5, $6) "
        "RETURNING id, name, scopes, created_at, expires_at, revoked_at",
        new_id(), tenant, name, token_hash(token), list(scopes), expires_at,
    )  # fmt: skip


async def ensure_operator_token(database: Database, token: str) -> None:
    """Make `token` an operator's one, if it is not yet."""
    await database.execute(
        "INSERT INTO tokens (id, name, hash, scopes) VALUES ($1, 'bootstrap', $2, '{admin}') ON CONFLICT (hash) DO NOTHING",
        new_id(), token_hash(token),
    )  # fmt: skip


async def tokens_page(database: Database, tenant: str | None, limit: int, before: uuid.UUID | None) -> list[Any]:
    return await database.fetch(
        "SELECT id, name, scopes, created_at, expires_at, revoked_at FROM tokens "
        "WHERE tenant IS NOT DISTINCT FROM $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        tenant, before, limit + 1,
    )  # fmt: skip


async def revoke_token(tx: Transaction, tenant: str | None, id: uuid.UUID) -> Any | None:
    """The token's row, revoked now or before; None if there is none."""
    return await tx.connection.fetchrow(
        "UPDATE tokens SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 AND tenant IS NOT DISTINCT FROM $2 "
        "RETURNING id, name, scopes, created_at, expires_at, revoked_at",
        id, tenant,
    )  # fmt: skip


# ---------------------------------------------------------------- secrets


async def put_secret(tx: Transaction, tenant: str, name: str, value: bytes) -> Any:
    return await tx.connection.fetchrow(
        "INSERT INTO secrets (tenant, name, value) VALUES ($1, $2, $3) "
        "ON CONFLICT (tenant, name) DO UPDATE SET value = excluded.value, updated_at = now() RETURNING name, updated_at",
        tenant, name, value,
    )  # fmt: skip


async def secrets_page(database: Database, tenant: str, limit: int, after: str | None) -> list[Any]:
    return await database.fetch(
        "SELECT name, updated_at FROM secrets WHERE tenant = $1 AND ($2::text IS NULL OR name > $2) ORDER BY name LIMIT $3",
        tenant, after, limit + 1,
    )  # fmt: skip


async def delete_secret(tx: Transaction, tenant: str, name: str) -> bool:
    status: str = await tx.connection.execute("DELETE FROM secrets WHERE tenant = $1 AND name = $2", tenant, name)
    return status != "DELETE 0"
