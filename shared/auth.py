"""Who is asking: bearer tokens, stored as SHA-256, with scopes."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from aiohttp import web

from shared.db.database import Database
from shared.errors import UserError

TENANT_HEADER = "Hubflow-Tenant"
SCOPES = ("read", "run", "write", "approve", "admin")
"""read: look, which each of the others implies; run: start, cancel and retry runs; write: workflows and secrets;
approve: decide; admin: all of a tenant. An operator's token (no tenant) with admin may do everything everywhere."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The bearer of a token."""

    name: str
    tenant: str | None
    """None: an operator, of every tenant."""
    scopes: frozenset[str]
    named_tenant: str = ""
    """An operator's: the tenant that the request names, if there is such a one."""

    @property
    def actor(self) -> str:
        """For audit and events."""
        return f"token:{self.name}"

    def require(self, scope: str) -> None:
        implied = scope == "read" and bool(self.scopes)  # who starts, decides or writes must see what comes of it
        if not implied and scope not in self.scopes and "admin" not in self.scopes:
            raise UserError(
                f"the token {self.name!r} lacks the scope {scope!r} (it has: {', '.join(sorted(self.scopes)) or 'none'})",
                code="forbidden", status=403, hint=f"make one with `hubflow token create NAME --scope {scope}`",
            )  # fmt: skip

    def require_operator(self) -> None:
        self.require("admin")
        if self.tenant is not None:
            raise UserError("only an operator's token may do this", code="forbidden", status=403)


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def authenticate(request: web.Request, database: Database) -> Identity:
    """The identity behind the Authorization header (Bearer, or Basic with the token as password). Raises UserError 401."""
    token = _token(request.headers.get("Authorization", ""))
    row = token and await database.fetchrow(
        "SELECT name, tenant, scopes, (SELECT name FROM tenants WHERE name = $2) AS named FROM tokens "
        "WHERE hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
        token_hash(token),
        request.headers.get(TENANT_HEADER, ""),
    )
    if not row:
        raise UserError(
            "a valid token is needed" if token else "no token was sent",
            code="unauthenticated", status=401,
            hint="send `Authorization: Bearer hf_...`; for the CLI set HUBFLOW_TOKEN",
        )  # fmt: skip
    return Identity(row["name"], row["tenant"], frozenset(row["scopes"]), row["named"] or "")


def tenant_of(request: web.Request, identity: Identity) -> str:
    """The tenant a request is about: the token's own; operators name one in the header `Hubflow-Tenant`."""
    named = request.headers.get(TENANT_HEADER)
    if identity.tenant is not None:
        if named not in {None, identity.tenant}:
            raise UserError(f"this token is for the tenant {identity.tenant!r} only", code="forbidden", status=403)
        return identity.tenant
    if not named:
        raise UserError(
            "an operator's token must say which tenant is meant",
            code="tenant-missing", hint="send the header Hubflow-Tenant, or give the CLI --tenant NAME",
        )  # fmt: skip
    if named != identity.named_tenant:
        raise UserError(f"there is no tenant {named!r}", code="tenant-not-found", status=404)
    return named


def _token(header: str) -> str:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            _, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            return password
        except ValueError:  # no base64, no UTF-8
            return ""
    return ""
