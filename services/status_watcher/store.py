"""The table `watcher_shares`, and what else the status watcher asks the database (outcomes are in `shared/outcomes.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.status_watcher.core import Expected, Standing
from shared.db.database import Database

LEASE = "status_watcher:"
"""Prefix of the leases of the watchers; the holder's name follows."""

_MISSING = """
SELECT a.container, coalesce(o.uid, '') AS uid, a.submitted_at, o.started_at
FROM jobs j
JOIN attempts a ON a.run = j.run AND a.job = j.name AND a.attempt = j.attempt
LEFT JOIN attempt_outcomes o ON o.container = a.container
WHERE j.state IN ('ready', 'submitted', 'running') AND o.finished_at IS NULL
    AND a.submitted_at < now() - make_interval(secs => $1) AND right(a.container, 1) = ANY ($2::text[])
"""

_STANDINGS = """
SELECT a.container, coalesce(o.uid, '') AS uid, o.removed_at IS NOT NULL AS removed,
    o.finished_at IS NOT NULL AS told, o.finished_at IS NULL AND r.finished_at IS NULL AS live
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
    AND right(o.container, 1) = ANY ($3::text[])
ORDER BY o.finished_at LIMIT $2
"""

_SHARE = f"""
WITH renewed AS (
    INSERT INTO leases (name, holder, expires_at) VALUES ('{LEASE}' || $1, $1, now() + make_interval(secs => $2))
    ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at
), live AS (
    SELECT holder FROM leases WHERE name LIKE '{LEASE}%' AND expires_at > now() UNION SELECT $1
), part AS (  -- shares / replicas; the first few replicas, by name, have one more each, so that none is without
    SELECT n.shares / n.replicas + CASE WHEN n.before < n.shares % n.replicas THEN 1 ELSE 0 END AS size
    FROM (SELECT (SELECT count(*) FROM watcher_shares) AS shares, count(*) AS replicas,
                 count(*) FILTER (WHERE holder < $1) AS before FROM live) n
), held AS (
    SELECT share, row_number() OVER (ORDER BY share) <= (SELECT size FROM part) AS kept
    FROM watcher_shares WHERE holder = $1
), free AS (
    SELECT share FROM watcher_shares WHERE holder NOT IN (SELECT holder FROM live) ORDER BY share
    LIMIT (SELECT greatest(size - (SELECT count(*) FROM held), 0) FROM part) FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE watcher_shares w SET holder = $1 FROM free WHERE w.share = free.share
), given_back AS (
    UPDATE watcher_shares w SET holder = '' FROM held WHERE w.share = held.share AND NOT held.kept AND w.holder = $1
)
SELECT share FROM held WHERE kept UNION ALL SELECT share FROM free
"""  # noqa: S608 - a constant


async def share(database: Database, holder: str, seconds: float) -> list[str]:
    """Show that `holder` lives, for so many seconds; let it take free shares (also of those who live no more) up to its part,
    and give back what it has beyond. Returns what it holds."""
    return [row["share"] for row in await database.fetch(_SHARE, holder, seconds)]


async def give_back(database: Database, holder: str) -> None:
    """This process ends: others may take its shares at once. Removes leases of processes long gone, too."""
    async with database.transaction() as tx:
        await tx.connection.execute("UPDATE watcher_shares SET holder = '' WHERE holder = $1", holder)
        await tx.connection.execute(
            "DELETE FROM leases WHERE name = $1 OR (name LIKE $2 AND expires_at < now() - interval '1 hour')",
            LEASE + holder, LEASE + "%",
        )  # fmt: skip


async def unfinished(database: Database, seconds: float, shares: Iterable[str]) -> dict[str, Expected]:
    """Containers of these shares accepted more than `seconds` ago whose outcome nobody has told."""
    rows = await database.fetch(_MISSING, seconds, list(shares))
    return {row["container"]: Expected(row["uid"], row["submitted_at"], row["started_at"]) for row in rows}


async def standings(database: Database, containers: Sequence[str]) -> dict[str, Standing]:
    """What is known about the containers; those of no attempt are left out."""
    rows = await database.fetch(_STANDINGS, list(containers))
    return {row["container"]: Standing(row["uid"], row["live"], row["removed"], row["told"]) for row in rows}


async def removable(database: Database, seconds: float, limit: int, shares: Iterable[str]) -> list[str]:
    """Containers of these shares whose outcome was told more than `seconds` ago and whose log is stored (or never was one)."""
    return [row["container"] for row in await database.fetch(_REMOVABLE, seconds, limit, list(shares))]


async def note_removed(database: Database, containers: Sequence[str]) -> None:
    """They are gone from the runtime."""
    await database.execute_relaxed(
        "UPDATE attempt_outcomes SET removed_at = now() WHERE container = ANY ($1::text[])", list(containers)
    )
