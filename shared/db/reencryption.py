"""Everything in the database that is encrypted with HUBFLOW_SECRET_KEY, encrypted anew with its first key.

Answers to requests with an Idempotency-Key, which are forgotten after a day, are left as they are.
"""

# ruff: noqa: S608 - statements are put together of constants; values are always arguments

from __future__ import annotations

from dataclasses import dataclass, field

from shared.db.database import Database
from shared.errors import PermanentError
from shared.vault import Vault

PAGE = 100
"""Rows that one transaction reads and changes."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A column of Fernet tokens. `key`: columns of text that a row is known by."""

    table: str
    key: tuple[str, ...]
    column: str
    word: str
    """What it is for people."""

    @property
    def page(self) -> str:
        keys = ", ".join(self.key)
        after = ", ".join(f"${number}" for number in range(2, len(self.key) + 2))
        # Whoever sets a secret at this moment waits for us, or we for them: nothing that is newer is overwritten.
        return (
            f"SELECT {keys}, {self.column} AS sealed FROM {self.table} WHERE ({keys}) > ({after}) "
            f"ORDER BY {keys} LIMIT $1 FOR NO KEY UPDATE"
        )

    @property
    def change(self) -> str:
        clauses = " AND ".join(f"{name} = ${number}" for number, name in enumerate(self.key, 2))
        return f"UPDATE {self.table} SET {self.column} = $1 WHERE {clauses}"


_EVERYTHING = (
    _Sealed("secrets", ("tenant", "name"), "value", "the secret"),
    _Sealed("workflows", ("tenant", "name"), "hook_secret", "the hook secret of the workflow"),
    _Sealed("subscriptions", ("tenant",), "secret", "the secret of the subscription"),
)


@dataclass(slots=True)
class Reencrypted:
    """What has come of it."""

    rows: int = 0
    changed: int = 0
    unreadable: list[str] = field(default_factory=list)
    """What none of the keys can read, in words."""


async def reencrypt(database: Database, vault: Vault) -> Reencrypted:
    """Go through all rows. Killed at any moment, it can be begun again: what is done is committed page by page."""
    done = Reencrypted()
    for sealed in _EVERYTHING:
        after: tuple[str, ...] = ("",) * len(sealed.key)
        while after:
            after = await _page(database, vault, sealed, after, done)
    return done


async def _page(
    database: Database, vault: Vault, sealed: _Sealed, after: tuple[str, ...], done: Reencrypted
) -> tuple[str, ...]:
    """Returns the key of its last row; () if there was none."""
    last: tuple[str, ...] = ()
    async with database.transaction() as tx:
        for row in await tx.connection.fetch(sealed.page, PAGE, *after):
            last = tuple(row[name] for name in sealed.key)
            done.rows += 1
            try:
                renewed = vault.renewed(row["sealed"])
            except PermanentError:
                done.unreadable.append(f"{sealed.word} {'/'.join(last)}")
                continue
            if renewed is not None:
                await tx.connection.execute(sealed.change, renewed, *last)
                done.changed += 1
    return last
