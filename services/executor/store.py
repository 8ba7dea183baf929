"""What the executor asks of the database. It owns `claimed_at` and `submitted_at` of `attempts`."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.executor.core import Claim, Facts, KeptArtifact, Wanted
from shared.db import outbox
from shared.db.database import Database
from shared.events import JobSubmitted
from shared.vault import Vault
from shared.workflow.model import Workflow

MODELS = 64
"""How many parsed workflows a process remembers."""

_CLAIM = """
WITH free AS (
    SELECT container, claimed_at IS NOT NULL AS again FROM attempts
    WHERE container = ANY ($1::text[]) AND stop_requested_at IS NULL AND submitted_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM attempt_outcomes o WHERE o.container = attempts.container AND o.finished_at IS NOT NULL)
    ORDER BY container FOR UPDATE
), claimed AS (
    -- Each claim counts anew: a start may take that long from the last of them, which comes before any stop.
    UPDATE attempts a SET claimed_at = now() FROM free f WHERE a.container = f.container
    RETURNING a.container, a.run, a.job, a.attempt, f.again
)
SELECT c.container, c.run, c.job, c.attempt, c.again, j.stage, r.tenant, r.number, r.workflow, r.version, r.trigger, r.inputs,
    concat_ws('/', v.tenant, v.workflow, v.version, v.digest) AS key,
    CASE WHEN concat_ws('/', v.tenant, v.workflow, v.version, v.digest) = ANY ($2::text[])
        THEN NULL ELSE v.document END AS document,
    EXISTS (SELECT 1 FROM attempt_outcomes o WHERE o.container = c.container) AS running
FROM claimed c
JOIN runs r ON r.id = c.run
JOIN jobs j ON j.run = c.run AND j.name = c.job
JOIN workflow_versions v ON v.tenant = r.tenant AND v.workflow = r.workflow AND v.version = r.version
"""

_STANDING = """
SELECT a.claimed_at IS NOT NULL AS claimed, a.submitted_at IS NOT NULL AS submitted,
    a.claimed_at < now() - make_interval(secs => $2) AS overdue,
    o.finished_at IS NOT NULL AS finished, coalesce(o.uid, '') <> '' AS seen
FROM attempts a LEFT JOIN attempt_outcomes o ON o.container = a.container WHERE a.container = $1
"""

_FACTS = """
SELECT
    (SELECT jsonb_object_agg(j.name, jsonb_build_object('state', j.state, 'outputs', coalesce(o.outputs, '{}')))
     FROM jobs j LEFT JOIN attempt_outcomes o ON o.run = coalesce(j.carried_from, j.run) AND o.job = j.name
        AND o.state = 'succeeded'
     WHERE j.run = $1 AND j.name = ANY ($2::text[])) AS jobs,
    (SELECT jsonb_object_agg(name, convert_from(value, 'UTF8'))
     FROM secrets WHERE tenant = $3 AND name = ANY ($4::text[])) AS secrets,
    (SELECT jsonb_agg(jsonb_build_array(f.job, f.name, f.object_key, f.sha256)) FROM (
        SELECT DISTINCT ON (a.job, a.name) a.job, a.name, a.object_key, a.sha256
        FROM unnest($5::text[], $6::text[]) AS w (job, name)
        JOIN jobs j ON j.run = $1 AND j.name = w.job
        JOIN artifacts a ON a.run = coalesce(j.carried_from, j.run) AND a.job = w.job AND a.name = w.name
        ORDER BY a.job, a.name, a.attempt DESC) f) AS artifacts
"""

_DETAIL_JOBS = """
SELECT j.name, j.state, j.started_at, j.finished_at, o.outputs
FROM jobs j LEFT JOIN attempt_outcomes o
    ON o.run = coalesce(j.carried_from, j.run) AND o.job = j.name AND o.attempt = j.attempt
WHERE j.run = $1
"""

_DETAIL_STAGES = "SELECT name, state, started_at, finished_at FROM stages WHERE run = $1"

_SUBMITTED = f"""
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::uuid[]) AS g (container, event)
), fresh AS (
    UPDATE attempts a SET submitted_at = now() FROM given g
    WHERE a.container = g.container AND a.submitted_at IS NULL RETURNING g.event
), {outbox.recording(3, "g.id IN (SELECT event FROM fresh)")}
SELECT r.ids, r.seqs, u.unwanted FROM (SELECT array_agg(id) AS ids, array_agg(seq) AS seqs FROM recorded) r, (
    SELECT array_agg(a.container) AS unwanted FROM attempts a JOIN given g ON g.container = a.container
    WHERE a.stop_requested_at IS NOT NULL
        OR (SELECT o.finished_at FROM attempt_outcomes o WHERE o.container = a.container) IS NOT NULL
) u
"""  # noqa: S608 - constants


class Models:
    """Parsed workflows by tenant, name, version and digest, which never change."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, Workflow] = OrderedDict()

    def known(self) -> dict[str, Workflow]:
        """All that are remembered, to be held while a question is on its way."""
        return dict(self._models)

    def model(self, key: str, document: Any, known: dict[str, Workflow]) -> Workflow:
        """The workflow of a row: from its document, or from what was known when it was asked for."""
        # Many jobs may have asked before the first answer came: the document is parsed for one of them only.
        model = known.get(key) or self._models.get(key) or Workflow.from_json(document)
        self._models[key] = model
        self._models.move_to_end(key)
        if len(self._models) > MODELS:
            self._models.popitem(last=False)
        return model


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an attempt has come."""

    claimed: bool
    submitted: bool
    overdue: bool
    """Claimed, the last time, longer ago than any start can take."""
    finished: bool
    seen: bool
    """The status watcher has seen its container."""


@dataclass(slots=True)
class Claiming:
    """A request to take an attempt, and what came of it."""

    container: str
    found: tuple[Claim, bool] | None = None
    """The attempt, and whether its container has been seen running already. None: it must not be started (any more)."""


async def claim(requests: Sequence[Claiming], database: Database, models: Models) -> None:
    """Take several attempts at once. May be repeated, by anybody: the runtime refuses a second container of the same name."""
    known = models.known()
    by_container = {row["container"]: row for row in await database.fetch(
        _CLAIM, [request.container for request in requests], list(known)
    )}  # fmt: skip
    for request in requests:
        if (row := by_container.get(request.container)) is not None:
            request.found = _claim(row, models.model(row["key"], row["document"], known)), row["running"]


def _claim(row: Any, model: Workflow) -> Claim:
    return Claim(
        container=row["container"], tenant=row["tenant"], run=row["run"], number=row["number"], stage=row["stage"],
        job=row["job"], attempt=row["attempt"], workflow=row["workflow"], version=row["version"], trigger=row["trigger"],
        inputs=row["inputs"], model=model, again=row["again"],
    )  # fmt: skip


async def standing(database: Database, container: str, overdue: float) -> Standing | None:
    """How far the attempt has come; None if there is none of that name. `overdue` in seconds."""
    row = await database.fetchrow(_STANDING, container, overdue)
    return None if row is None else Standing(**{name: bool(value) for name, value in row.items()})


async def facts(database: Database, vault: Vault, claimed: Claim, wanted: Wanted) -> Facts:
    """What the job refers to, read now (T36). What does not exist is left out. Raises PermanentError(WrongKey)."""
    pairs = sorted(wanted.artifacts)
    row = await database.fetchrow(
        _FACTS, claimed.run, list(wanted.jobs), claimed.tenant, list(wanted.secrets),
        [job for job, _ in pairs], [name for _, name in pairs],
    )  # fmt: skip
    if row is None:
        return Facts()
    return Facts(
        jobs=row["jobs"] or {},
        secrets={name: vault.decrypt(value.encode()) for name, value in (row["secrets"] or {}).items()},
        artifacts={(job, name): KeptArtifact(key, sha256) for job, name, key, sha256 in row["artifacts"] or ()},
    )


async def run_so_far(database: Database, run: uuid.UUID) -> tuple[list[Any], list[Any]]:
    """Rows of its jobs (name, state, started_at, finished_at, outputs) and stages."""
    return await database.fetch(_DETAIL_JOBS, run), await database.fetch(_DETAIL_STAGES, run)


async def note_submitted(database: Database, submitted: Mapping[str, JobSubmitted]) -> list[str]:
    """The runtime has accepted these containers: told once. Returns those that are not wanted any more: stop them."""
    # Attempts are locked in the order of their names, and before the counters of runs: the scheduler may be stopping the same.
    containers = sorted(submitted)
    events = [submitted[container] for container in containers]
    [row] = await database.change(
        _SUBMITTED, containers, [event.id for event in events], told=events,
        seqs=lambda rows: dict(zip(rows[0]["ids"] or (), rows[0]["seqs"] or (), strict=True)),
    )  # fmt: skip
    return row["unwanted"] or []


async def workflow_of(database: Database, run: uuid.UUID, models: Models) -> Workflow | None:
    """The workflow of a run, or None if the run is not there."""
    known = models.known()
    row = await database.fetchrow(
        "SELECT concat_ws('/', v.tenant, v.workflow, v.version, v.digest) AS key, "
        "CASE WHEN concat_ws('/', v.tenant, v.workflow, v.version, v.digest) = ANY ($2::text[]) "
        "THEN NULL ELSE v.document END AS document "
        "FROM runs r JOIN workflow_versions v ON v.tenant = r.tenant AND v.workflow = r.workflow AND v.version = r.version "
        "WHERE r.id = $1",
        run, list(known),
    )  # fmt: skip
    return None if row is None else models.model(row["key"], row["document"], known)
