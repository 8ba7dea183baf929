"""What the status watcher asks of the database beside recording outcomes (`shared/outcomes.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from services.status_watcher.core import Standing
from shared.db.database import Database

_MISSING = """
SELECT a.container, coalesce(o.uid, '') AS uid
FROM jobs j
JOIN attempts a ON a.run = j.run AND a.job = j.name AND a.attempt = j.attempt
LEFT JOIN attempt_outcomes o ON o.container = a.container
WHERE j.state IN ('ready', 'submitted', 'running') AND o.finished_at IS NULL
    AND a.submitted_at < now() - make_interval(secs => $1)
"""

_STANDINGS = """
SELECT a.container, coalesce(o.uid, '') AS uid, o.removed_at IS NOT NULL AS removed,
    o.finished_at IS NULL AND r.finished_at IS NULL AS live
FROM attempts a
JOIN runs r ON r.id = a.run
LEFT JOIN attempt_outcomes o ON o.container = a.container
WHERE a.container = ANY ($1::text[])
"""

_REMOVABLE = """
SELECT o.container
FROM attempt_outcomes o
JOIN attempts a ON a.container = o.container
LEFT JOIN logs l ON l.container = o.container
WHERE o.removed_at IS NULL AND o.finished_at < now() - make_interval(secs => $1)
    AND (l.completed_at IS NOT NULL OR (a.submitted_at IS NULL AND o.uid = ''))
ORDER BY o.finished_at LIMIT $2
"""


async def unfinished(database: Database, seconds: float) -> dict[str, str]:
    """Containers (with the uid seen, or "") accepted more than `seconds` ago whose outcome nobody has told."""
    return {row["container"]: row["uid"] for row in await database.fetch(_MISSING, seconds)}


async def standings(database: Database, containers: Sequence[str]) -> dict[str, Standing]:
    """What is known about the containers; those of no attempt are left out."""
    rows = await database.fetch(_STANDINGS, list(containers))
    return {row["container"]: Standing(row["uid"], row["live"], row["removed"]) for row in rows}


async def removable(database: Database, seconds: float, limit: int) -> list[str]:
    """Containers whose outcome was told more than `seconds` ago and whose log is stored (or that never had one)."""
    return [row["container"] for row in await database.fetch(_REMOVABLE, seconds, limit)]


async def note_removed(database: Database, containers: Sequence[str]) -> None:
    """They are gone from the runtime."""
    await database.execute_relaxed(
        "UPDATE attempt_outcomes SET removed_at = now() WHERE container = ANY ($1::text[])", list(containers)
    )
