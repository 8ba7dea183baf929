"""Making a run: the one insert of a run row that is not the scheduler's, used by trigger (every start) and console (retries).

Afterwards only the scheduler writes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.clock import new_id
from shared.db.database import Database, Transaction
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


NUMBER = "nextval(pg_get_serial_sequence('runs', 'number'))"
"""SQL that takes the number of a new run."""

_INSERT = """INSERT INTO runs (id, number, tenant, workflow, version, trigger, inputs, concurrency_group, retry_of)
    OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"""

_CREATE = f"WITH counter AS (INSERT INTO run_counters (run, seq) VALUES ($1, 0)) {_INSERT}"  # noqa: S608 - constants

_CREATE_AND_TELL = f"""
WITH counter AS (
    INSERT INTO run_counters (run, seq) VALUES ($1, 1)
), run AS (
    {_INSERT}
)
INSERT INTO events (id, tenant, run, seq, type, body)
SELECT id, tenant, run, 1, type, body
FROM unnest($10::uuid[], $11::text[], $12::uuid[], $13::text[], $14::bytea[]) AS e (id, tenant, run, type, body)
RETURNING id, seq
"""  # noqa: S608 - constants


async def create_run(tx: Transaction, new: NewRun, number: int | None = None) -> tuple[uuid.UUID, int]:
    """Record a pending run and tell run.created. `number`: one that was taken before (`NUMBER`). Returns its id and number."""
    if number is None:
        number = await tx.connection.fetchval(f"SELECT {NUMBER}")
    await tx.connection.execute(_CREATE, *_row(new, number))
    tx.tell(_created(new, number))
    return new.id, number


async def create_run_at_once(database: Database, new: NewRun, number: int) -> tuple[uuid.UUID, int]:
    """The same, as a transaction of its own: one statement."""
    await database.change(
        _CREATE_AND_TELL, *_row(new, number), told=[_created(new, number)],
        seqs=lambda rows: {row["id"]: row["seq"] for row in rows},
    )  # fmt: skip
    return new.id, number


def _row(new: NewRun, number: int) -> tuple[Any, ...]:
    return (
        new.id, number, new.tenant, new.workflow, new.version, dict(new.trigger), dict(new.inputs),
        new.concurrency_group, new.retry_of,
    )  # fmt: skip


def _created(new: NewRun, number: int) -> RunCreated:
    return RunCreated(
        tenant=new.tenant,
        run=new.id,
        workflow=new.workflow,
        version=new.version,
        number=number,
        trigger=str(new.trigger.get("type", "api")),
    )


async def latest_version(connection: Any, tenant: str, workflow: str) -> Any:
    """The newest version's row (version, document, plan). Raises UserError 404 naming the nearest workflow."""
    row = await connection.fetchrow(
        "SELECT v.version, v.document, v.plan FROM workflows w JOIN workflow_versions v "
        "ON v.tenant = w.tenant AND v.workflow = w.name AND v.version = w.version "
        "WHERE w.tenant = $1 AND w.name = $2 AND w.deleted_at IS NULL",
        tenant, workflow,
    )  # fmt: skip
    if row is None:
        raise await _unknown_workflow(connection, tenant, workflow)
    return row


async def _unknown_workflow(connection: Any, tenant: str, workflow: str) -> UserError:
    import difflib

    rows = await connection.fetch(
        "SELECT name FROM workflows WHERE tenant = $1 AND deleted_at IS NULL ORDER BY updated_at DESC LIMIT 1000",
        tenant,
    )
    near = difflib.get_close_matches(workflow, [row["name"] for row in rows], n=1)
    return UserError(
        f"there is no workflow {workflow!r} in the tenant {tenant!r}", code="workflow-not-found", status=404,
        hint=f"did you mean {near[0]!r}?" if near else "apply one with `hubflow workflow apply FILE`",
    )  # fmt: skip
