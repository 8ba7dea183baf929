"""Migrations: numbered SQL files, applied in order, once, also when many processes start at the same time."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass

from shared.db.database import Database
from shared.errors import PermanentError

MIGRATION_SECONDS = 3600.0
"""How long one migration may take, or wait for those of another process."""
_LOCK = 0x48756266  # any number that nobody else locks in this database


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `digest` tells whether it was changed after it had been applied."""

    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All migrations of this version, in order."""
    folder = importlib.resources.files("shared.db") / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [Migration(file.name.removesuffix(".sql"), file.read_text("utf-8")) for file in files]


async def migrate(database: Database, wanted: Iterable[Migration] | None = None) -> list[str]:
    """Bring the database to this version. Returns the names of what was applied.

    All of them are one transaction, so that a crash leaves the old schema whole. Processes that start together wait for
    one another.
    Raises PermanentError when an applied migration differs from its file.
    """
    applied = []
    async with database.transaction() as tx:
        await tx.connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=MIGRATION_SECONDS)
        await tx.connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, digest text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row["name"]: row["digest"] for row in await tx.connection.fetch("SELECT name, digest FROM migrations")}
        for migration in migrations() if wanted is None else wanted:
            if migration.name not in done:
                await tx.connection.execute(migration.sql, timeout=MIGRATION_SECONDS)
                await tx.connection.execute(
                    "INSERT INTO migrations (name, digest) VALUES ($1, $2)", migration.name, migration.digest
                )
                applied.append(migration.name)
            elif done[migration.name] != migration.digest:
                raise PermanentError(
                    f"migration {migration.name} was changed after it had been applied to this database; "
                    "put the old text back and write the change as a new migration",
                    reason="MigrationChanged",
                )
    return applied


async def pending(database: Database) -> list[str]:
    """Names of the migrations of this version that the database lacks. It may have more: a newer version came first."""
    if not await database.fetchval("SELECT to_regclass('migrations') IS NOT NULL"):
        return [migration.name for migration in migrations()]
    done = {row["name"] for row in await database.fetch("SELECT name FROM migrations")}
    return [migration.name for migration in migrations() if migration.name not in done]
