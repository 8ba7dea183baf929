"""Who did what: every decision and every administrative act."""

from __future__ import annotations

from typing import Any

from shared.clock import new_id
from shared.db.database import Database, Transaction


async def record(tx: Transaction, tenant: str | None, actor: str, action: str, subject: str, **details: Any) -> None:
    """Note an act in the transaction that does it. `action` is `<thing>.<verb>`."""
    await tx.connection.execute(
        "INSERT INTO audit (id, tenant, actor, action, subject, details) VALUES ($1, $2, $3, $4, $5, $6)",
        new_id(), tenant, actor, action, subject, details,
    )  # fmt: skip


async def page(database: Database, tenant: str, limit: int, before: Any) -> list[Any]:
    """Newest first; `before` is the id where the page before ended."""
    return await database.fetch(
        "SELECT id, at, actor, action, subject, details FROM audit "
        "WHERE tenant = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        tenant, before, limit + 1,
    )  # fmt: skip
