"""What must not be seen of a run, in logs and outputs: its tenant's secrets, its own secret inputs and clone address."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from shared.db.database import Database
from shared.errors import PermanentError
from shared.log import get_logger
from shared.masking import patterns_of, url_password
from shared.vault import Vault

TENANTS_KEPT = 256
SECRETS_OF_RUN = """
    (SELECT coalesce(string_agg(s.name || ' ' || s.xmin::text, ',' ORDER BY s.name), '') FROM secrets s
     WHERE s.tenant = r.tenant) AS fingerprint,
    (SELECT coalesce(jsonb_agg(r.inputs ->> e.key), '[]') FROM jsonb_each(v.document -> 'inputs') e
     WHERE e.value -> 'secret' = 'true') AS inputs,
    r.trigger -> 'git' ->> 'clone_url' AS clone_url
"""
"""Columns for `run_secrets_of`, of rows of RUN_AND_VERSION."""
RUN_AND_VERSION = """
runs r JOIN workflow_versions v ON v.tenant = r.tenant AND v.workflow = r.workflow AND v.version = r.version
"""
_RUN_SECRETS = f"SELECT {SECRETS_OF_RUN} FROM {RUN_AND_VERSION} WHERE r.id = $1"  # noqa: S608 - constants
_log = get_logger("secret_masks")


@dataclass(frozen=True, slots=True)
class RunSecrets:
    """What must not be seen of one run, but for the tenant's own secrets."""

    fingerprint: str
    """Changes whenever the tenant's secrets do: their names, and who has written them last (PostgreSQL's `xmin`; of two that
    write at once the later one may have the earlier time)."""
    inputs: list[str]
    clone_url: str


def run_secrets_of(row: Any) -> RunSecrets:
    """From a row with the columns SECRETS_OF_RUN."""
    return RunSecrets(row["fingerprint"], [value for value in row["inputs"] if value], row["clone_url"] or "")


class SecretMasks:
    """Patterns to mask, by tenant, kept for as long as its secrets stay as they are."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._known: OrderedDict[str, tuple[str, tuple[str, ...], tuple[bytes, ...]]] = OrderedDict()

    async def patterns(self, tenant: str, run: uuid.UUID, of_run: RunSecrets | None = None) -> tuple[bytes, ...]:
        """For `shared.masking`. `of_run`: the run's secrets, where they have just been read."""
        of_run = of_run or await self._of_run(run)
        values, patterns = await self._of_tenant(tenant, of_run.fingerprint)
        own = [*of_run.inputs, url_password(of_run.clone_url)]
        return patterns_of([*values, *own]) if any(own) else patterns

    async def _of_run(self, run: uuid.UUID) -> RunSecrets:
        row = await self._database.fetchrow(_RUN_SECRETS, run)
        return RunSecrets("", [], "") if row is None else run_secrets_of(row)

    async def _of_tenant(self, tenant: str, fingerprint: str) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
        known = self._known.get(tenant)
        if known is None or known[0] != fingerprint:
            values = await self._values(tenant)
            known = (fingerprint, tuple(values), patterns_of(values))
            self._known[tenant] = known
            if len(self._known) > TENANTS_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(tenant)
        return known[1], known[2]

    async def _values(self, tenant: str) -> list[str]:
        """All secrets of a tenant. One that cannot be read with our key was never given to a job of ours."""
        values = []
        for row in await self._database.fetch("SELECT name, value FROM secrets WHERE tenant = $1", tenant):
            try:
                values.append(self._vault.decrypt(row["value"]))
            except PermanentError as error:
                _log.error("secret not masked", tenant=tenant, secret=row["name"], error=str(error))
        return values
