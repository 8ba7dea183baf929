"""SQL of workflows and their versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from shared.db.database import Database, Transaction
from shared.errors import UserError


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A checked workflow file. `document`: the model as JSON."""

    source: str
    document: dict[str, Any]
    plan: dict[str, Any]
    by: str

    @property
    def digest(self) -> str:
        return digest_of(self.source)


def digest_of(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


async def apply(tx: Transaction, tenant: str, name: str, new: NewVersion, hook_secret: bytes) -> tuple[int, bool]:
    """Its version, and whether it is a new one: the file that is the newest already stays that version."""
    row = await tx.connection.fetchrow(
        "INSERT INTO workflows (tenant, name, version, hook_secret) VALUES ($1, $2, 0, $3) "
        # The update changes nothing; it locks the row, so that two who apply at once get different versions.
        "ON CONFLICT (tenant, name) DO UPDATE SET version = workflows.version RETURNING version, deleted_at",
        tenant, name, hook_secret,
    )  # fmt: skip
    if row["deleted_at"] is None and await _digest(tx, tenant, name, row["version"]) == new.digest:
        return row["version"], False
    version: int = row["version"] + 1
    await tx.connection.execute(
        "INSERT INTO workflow_versions (tenant, workflow, version, source, document, plan, digest, created_by) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        tenant, name, version, new.source, new.document, new.plan, new.digest, new.by,
    )  # fmt: skip
    await tx.connection.execute(
        "UPDATE workflows SET version = $3, updated_at = now(), deleted_at = NULL WHERE tenant = $1 AND name = $2",
        tenant, name, version,
    )  # fmt: skip
    return version, True


async def _digest(tx: Transaction, tenant: str, name: str, version: int) -> str | None:
    digest: str | None = await tx.connection.fetchval(
        "SELECT digest FROM workflow_versions WHERE tenant = $1 AND workflow = $2 AND version = $3",
        tenant,
        name,
        version,
    )
    return digest


async def newest_digest(database: Database, tenant: str, name: str) -> tuple[int, str]:
    """The newest version and its digest; (0, "") if there is no such workflow."""
    row = await database.fetchrow(
        "SELECT v.version, v.digest FROM workflows w JOIN workflow_versions v "
        "ON v.tenant = w.tenant AND v.workflow = w.name AND v.version = w.version "
        "WHERE w.tenant = $1 AND w.name = $2 AND w.deleted_at IS NULL",
        tenant, name,
    )  # fmt: skip
    return (0, "") if row is None else (row["version"], row["digest"])


async def page(database: Database, tenant: str, limit: int, after: str | None) -> list[Any]:
    return await database.fetch(
        "SELECT w.name, w.version, w.created_at, w.updated_at, v.document->>'description' AS description "
        "FROM workflows w JOIN workflow_versions v ON v.tenant = w.tenant AND v.workflow = w.name AND v.version = w.version "
        "WHERE w.tenant = $1 AND w.deleted_at IS NULL AND ($2::text IS NULL OR w.name > $2) ORDER BY w.name LIMIT $3",
        tenant, after, limit + 1,
    )  # fmt: skip


async def get(database: Database, tenant: str, name: str, version: int | None = None) -> Any:
    """The workflow with one version's source and document (None: the newest). Raises UserError 404."""
    row = await database.fetchrow(
        "SELECT w.name, v.version, w.version AS newest, w.created_at, w.updated_at, v.source, v.document, v.digest, "
        "v.created_by, v.created_at AS applied_at FROM workflows w JOIN workflow_versions v "
        "ON v.tenant = w.tenant AND v.workflow = w.name AND v.version = coalesce($3, w.version) "
        "WHERE w.tenant = $1 AND w.name = $2 AND w.deleted_at IS NULL",
        tenant, name, version,
    )  # fmt: skip
    if row is None:
        what = f"no workflow {name!r}" if version is None else f"no version {version} of a workflow {name!r}"
        raise UserError(
            f"there is {what}", code="workflow-not-found", status=404, hint="`hubflow workflow list` shows all"
        )
    return row


async def versions_page(database: Database, tenant: str, name: str, limit: int, before: int | None) -> list[Any]:
    return await database.fetch(
        "SELECT version, digest, created_by, created_at FROM workflow_versions "
        "WHERE tenant = $1 AND workflow = $2 AND ($3::bigint IS NULL OR version < $3) ORDER BY version DESC LIMIT $4",
        tenant, name, before, limit + 1,
    )  # fmt: skip


async def delete(tx: Transaction, tenant: str, name: str) -> bool:
    """Its versions and runs stay readable by their runs; a later apply goes on counting."""
    status: str = await tx.connection.execute(
        "UPDATE workflows SET deleted_at = now() WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL", tenant, name
    )
    return status != "UPDATE 0"


async def hook_secret(database: Database, tenant: str, name: str) -> bytes | None:
    secret: bytes | None = await database.fetchval(
        "SELECT hook_secret FROM workflows WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL", tenant, name
    )
    return secret


async def set_hook_secret(tx: Transaction, tenant: str, name: str, secret: bytes) -> bool:
    status: str = await tx.connection.execute(
        "UPDATE workflows SET hook_secret = $3 WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL",
        tenant, name, secret,
    )  # fmt: skip
    return status != "UPDATE 0"
