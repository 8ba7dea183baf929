"""Making a run: the one insert of a run row that is not the scheduler's, used by trigger (every start) and console (retries).

Afterwards only the scheduler writes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.clock import new_id
from shared.db.database import Transaction
from shared.errors import UserError
from shared.events import RunCreated


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a run begins with. `trigger` is {"type": ..., "by": ..., "git": {...}?}; `inputs` are already checked."""

    tenant: str
    workflow: str
    version: int
    trigger: Mapping[str, Any]
    inputs: Mapping[str, Any]
    concurrency_group: str | None = None
    retry_of: uuid.UUID | None = None
    id: uuid.UUID = field(default_factory=new_id)


async def create_run(tx: Transaction, new: NewRun) -> tuple[uuid.UUID, int]:
    """Record a pending run and tell run.created. Returns its id and number."""
    number: int = await tx.connection.fetchval(
        "WITH counter AS (INSERT INTO run_counters (run, seq) VALUES ($1, 0)) "
        "INSERT INTO runs (id, tenant, workflow, version, trigger, inputs, concurrency_group, retry_of) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING number",
        new.id, new.tenant, new.workflow, new.version, dict(new.trigger), dict(new.inputs),
        new.concurrency_group, new.retry_of,
    )  # fmt: skip
    tx.tell(
        RunCreated(
            tenant=new.tenant,
            run=new.id,
            workflow=new.workflow,
            version=new.version,
            number=number,
            trigger=str(new.trigger.get("type", "api")),
        )
    )
    return new.id, number


async def latest_version(tx: Transaction, tenant: str, workflow: str) -> Any:
    """The newest version's row (version, document, plan). Raises UserError 404 naming the nearest workflow."""
    row = await tx.connection.fetchrow(
        "SELECT v.version, v.document, v.plan FROM workflows w JOIN workflow_versions v "
        "ON v.tenant = w.tenant AND v.workflow = w.name AND v.version = w.version "
        "WHERE w.tenant = $1 AND w.name = $2 AND w.deleted_at IS NULL",
        tenant, workflow,
    )  # fmt: skip
    if row is None:
        raise await _unknown_workflow(tx, tenant, workflow)
    return row


async def _unknown_workflow(tx: Transaction, tenant: str, workflow: str) -> UserError:
    import difflib

    rows = await tx.connection.fetch(
        "SELECT name FROM workflows WHERE tenant = $1 AND deleted_at IS NULL ORDER BY updated_at DESC LIMIT 1000",
        tenant,
    )
    near = difflib.get_close_matches(workflow, [row["name"] for row in rows], n=1)
    return UserError(
        f"there is no workflow {workflow!r} in the tenant {tenant!r}", code="workflow-not-found", status=404,
        hint=f"did you mean {near[0]!r}?" if near else "apply one with `hubflow workflow apply FILE`",
    )  # fmt: skip
