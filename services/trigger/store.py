"""SQL of trigger: hook deliveries (its own table), and what it reads of workflows."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from services.trigger.core import Incoming
from shared.db.database import Database, Transaction
from shared.db.forgetting import DAY, Old
from shared.errors import TemporaryError, UserError
from shared.runs import NUMBER, latest_version
from shared.workflow.model import Workflow

MODELS_KEPT = 256
OLD = (
    # A client that repeats a request does so within minutes. The answers may hold secrets, encrypted.
    Old("idempotency_keys", "created_at", DAY),
    # GitHub lets a message be sent again for three days.
    Old("hook_deliveries", "received_at", 30 * DAY),
)
"""What is deleted here; of the answers the console keeps some, too."""


class Workflows:
    """Newest versions of workflows. A version never changes, so its parsed model is kept."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[str, str, int], Workflow] = OrderedDict()

    async def newest(self, connection: Any, tenant: str, name: str) -> tuple[int, Workflow, int]:
        """Its number and model, and a number for a new run of it. Raises UserError 404."""
        row = await connection.fetchrow(
            f"SELECT version, {NUMBER} AS number FROM workflows "  # noqa: S608 - a constant
            "WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL",
            tenant, name,
        )  # fmt: skip
        if row is None:
            await latest_version(connection, tenant, name)  # says which name is near
            raise TemporaryError(f"the workflow {name!r} was made this moment", delay=0.0)
        return row["version"], await self.version(connection, tenant, name, row["version"]), row["number"]

    async def version(self, connection: Any, tenant: str, name: str, version: int) -> Workflow:
        """The model of a version that exists."""
        key = (tenant, name, version)
        if key not in self._models:
            document = await connection.fetchval(
                "SELECT document FROM workflow_versions WHERE tenant = $1 AND workflow = $2 AND version = $3", *key
            )
            self._models[key] = Workflow.from_json(document)
            if len(self._models) > MODELS_KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return self._models[key]


async def hook(database: Database, tenant: str, workflow: str) -> tuple[bytes, int]:
    """The encrypted secret that hooks of a workflow are signed with, and its newest version. Raises UserError 404."""
    row = await database.fetchrow(
        "SELECT hook_secret, version FROM workflows WHERE tenant = $1 AND name = $2 AND deleted_at IS NULL",
        tenant,
        workflow,
    )
    if row is None:
        raise UserError(
            f"there is no hook for a workflow {workflow!r} of a tenant {tenant!r}", code="hook-not-found", status=404,
            hint="`hubflow hook show WORKFLOW` prints the address",
        )  # fmt: skip
    return row["hook_secret"], row["version"]


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a message came in."""

    tenant: str
    workflow: str
    source: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """The run that an earlier message has started. `same_id`: it was this very message."""

    run: uuid.UUID
    number: int
    state: str
    same_id: bool


async def receive(tx: Transaction, hook: Hook, incoming: Incoming) -> None:
    """Note the message, and hold up others that say the same until this transaction is over."""
    await tx.connection.execute(
        "WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended($1, 1))) "
        "INSERT INTO hook_deliveries (tenant, workflow, source, delivery, fingerprint, outcome) "
        "SELECT $2, $3, $4, $5, $6, 'received' FROM locked ON CONFLICT DO NOTHING",
        f"{hook.tenant}\n{hook.workflow}\n{incoming.fingerprint or incoming.delivery}",
        hook.tenant, hook.workflow, hook.source, incoming.delivery, incoming.fingerprint,
    )  # fmt: skip


async def earlier(tx: Transaction, hook: Hook, incoming: Incoming, window: float) -> Earlier | None:
    """The run that the same message, or one that says the same within `window` seconds, has started."""
    row: Any = await tx.connection.fetchrow(
        "SELECT r.id, r.number, r.state, d.delivery = $4 AND d.source = $3 AS same_id "
        "FROM hook_deliveries d JOIN runs r ON r.id = d.run "
        "WHERE d.tenant = $1 AND d.workflow = $2 AND ((d.source = $3 AND d.delivery = $4) "
        "OR ($5 <> '' AND d.fingerprint = $5 AND d.outcome = 'started' AND d.received_at > now() - make_interval(secs => $6))) "
        "ORDER BY same_id DESC, d.received_at LIMIT 1",
        hook.tenant, hook.workflow, hook.source, incoming.delivery, incoming.fingerprint, window,
    )  # fmt: skip
    return None if row is None else Earlier(row["id"], row["number"], row["state"], row["same_id"])


async def conclude(tx: Transaction, hook: Hook, delivery: str, outcome: str, run: uuid.UUID | None) -> None:
    """Record what a message has led to."""
    await tx.connection.execute(
        "UPDATE hook_deliveries SET outcome = $5, run = $6, received_at = now() "
        "WHERE tenant = $1 AND workflow = $2 AND source = $3 AND delivery = $4",
        hook.tenant, hook.workflow, hook.source, delivery, outcome, run,
    )  # fmt: skip
