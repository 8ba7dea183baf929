"""SQL of decisions. The first row wins, whoever writes it (console for people, scheduler for time limits)."""

from __future__ import annotations

import uuid
from typing import Any

from shared.db.database import Database, Transaction

_STAGE = """
SELECT r.id, r.number, r.tenant, r.workflow, r.version, r.state AS run_state, r.trigger, r.inputs, r.created_at,
    jsonb_path_query_first(v.document, '$.stages[*] ? (@.name == $name)', jsonb_build_object('name', $2::text)) AS stage,
    v.document->'inputs' AS declared_inputs, v.document->'env' AS env,
    (SELECT s.state FROM stages s WHERE s.run = r.id AND s.name = $2) AS state,
    (SELECT jsonb_build_object('action', d.action, 'by', d.by, 'comment', d.comment, 'at', d.at)
        FROM decisions d WHERE d.run = r.id AND d.stage = $2) AS decision,
    (SELECT jsonb_object_agg(j.name, jsonb_build_object('state', j.state, 'outputs', coalesce(o.outputs, '{}')))
        FROM jobs j LEFT JOIN attempt_outcomes o ON o.run = coalesce(j.carried_from, j.run) AND o.job = j.name
            AND o.state = 'succeeded' WHERE j.run = r.id) AS jobs
FROM runs r JOIN workflow_versions v ON v.tenant = r.tenant AND v.workflow = r.workflow AND v.version = r.version
WHERE r.id = $1
"""


async def stage(database: Database, run: uuid.UUID, name: str) -> Any | None:
    """The run with what its workflow says about the stage (`stage`, None if it has no such one), and how far it is."""
    return await database.fetchrow(_STAGE, run, name)


async def locked_stage(tx: Transaction, run: uuid.UUID, name: str) -> Any | None:
    """The same; the run stays as it is until the transaction ends."""
    return await tx.connection.fetchrow(f"{_STAGE} FOR SHARE OF r", run, name)


async def decide(tx: Transaction, run: uuid.UUID, stage: str, action: str, by: str, comment: str) -> Any | None:
    """The new decision (action, by, comment, at), or None if somebody was quicker."""
    return await tx.connection.fetchrow(
        "INSERT INTO decisions (run, stage, action, by, comment) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT DO NOTHING RETURNING action, by, comment, at",
        run, stage, action, by, comment,
    )  # fmt: skip


async def existing(tx: Transaction, run: uuid.UUID, stage: str) -> Any | None:
    """The decision of whoever was quicker; committed in the meantime, so a new statement sees it."""
    return await tx.connection.fetchrow(
        "SELECT action, by, comment, at FROM decisions WHERE run = $1 AND stage = $2", run, stage
    )
