"""TencentHub's component `run_flow`: it starts another workflow of the same tenant and does not wait for it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from services.executor.core import Claim
from shared.db.database import Transaction
from shared.errors import PermanentError, UserError
from shared.runs import NewRun, create_run, latest_version
from shared.states import Reason
from shared.workflow.inputs import resolve_inputs
from shared.workflow.model import Workflow

DEEPEST = 10
"""Workflows that start workflows: after so many steps it is taken for an endless loop."""


async def start_other_workflow(tx: Transaction, claimed: Claim, environment: Mapping[str, str]) -> dict[str, str]:
    """Record the run, named after the attempt that asks for it. Returns the job's outputs. Raises PermanentError(BadInput)."""
    name = environment.get("FLOW_ID", "").strip("/").rsplit("/", 1)[-1]
    depth = int(claimed.trigger.get("depth") or 0) + 1
    if not name:
        raise PermanentError(
            "the input FLOW_ID is missing: give it `namespace/repository/workflow`", reason=Reason.BAD_INPUT
        )
    if depth > DEEPEST:
        raise PermanentError(f"{DEEPEST} workflows have started one another: is it a loop?", reason=Reason.BAD_INPUT)
    run = uuid.uuid5(claimed.run, claimed.container)
    if await tx.connection.fetchval("SELECT true FROM runs WHERE id = $1", run):
        return {}
    try:
        row = await latest_version(tx.connection, claimed.tenant, name)
        inputs = resolve_inputs(Workflow.from_json(row["document"]), {})
    except UserError as error:
        raise PermanentError(f"{error}. {error.hint}", reason=Reason.BAD_INPUT) from error
    trigger = {"type": "run_flow", "by": f"run {claimed.number}", "run": str(claimed.run), "depth": depth}
    _, number = await create_run(
        tx, NewRun(tenant=claimed.tenant, workflow=name, version=row["version"], trigger=trigger, inputs=inputs, id=run)
    )
    return {"RUN": str(run), "RUN_NUMBER": str(number)}
