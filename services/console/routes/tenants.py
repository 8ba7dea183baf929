"""Tenants (operators), tokens and secrets."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from aiohttp import web

from services.console.context import Context
from services.console.models import (
    CreatedToken,
    Deleted,
    NewTenant,
    NewToken,
    Quota,
    Secret,
    SecretValue,
    Tenant,
    Token,
)
from services.console.store import audit
from services.console.store import tenants as store
from shared import http
from shared.api import OPERATOR, Call, Endpoint, Listing, Page, listing
from shared.db.database import Transaction
from shared.errors import UserError
from shared.events import TenantQuotaChanged
from shared.vault import new_token
from shared.workflow.quantities import check_variable


async def create_tenant(call: Call, context: Context) -> web.Response:
    body = await http.read_body(call.request, NewTenant)
    quota = body.quota.model_dump(exclude_none=True)

    async def create(tx: Transaction) -> tuple[int, Any]:
        row = await store.create(tx, body.name, quota)
        if row is None:
            raise UserError(f"there is a tenant {body.name!r} already", code="tenant-exists", status=409)
        await audit.record(tx, body.name, call.identity.actor, "tenant.create", body.name, quota=quota)
        return 201, _view(row)

    return await http.once(call.request, context.database, "", create)


async def list_tenants(call: Call, context: Context) -> web.Response:
    page = call.query(Page)
    (after,) = page.after(str) or (None,)
    rows = await store.page(context.database, page.limit, after)
    return http.reply(listing(rows, page.limit, _view, lambda row: (row["name"],)))


async def get_tenant(call: Call, context: Context) -> web.Response:
    row = await store.get(context.database, call.path("tenant"))
    if row is None:
        raise _no_tenant(call.path("tenant"))
    return http.reply(_view(row))


async def get_own_tenant(call: Call, context: Context) -> web.Response:
    row = await store.get(context.database, call.tenant)
    if row is None:
        raise _no_tenant(call.tenant)
    return http.reply(_view(row))


async def set_quota(call: Call, context: Context) -> web.Response:
    name = call.path("tenant")
    quota = (await http.read_body(call.request, Quota)).model_dump(exclude_none=True)
    async with context.database.transaction() as tx:
        row = await store.set_quota(tx, name, quota)
        if row is None:
            raise _no_tenant(name)
        await audit.record(tx, name, call.identity.actor, "tenant.quota", name, quota=quota)
        tx.tell(TenantQuotaChanged(tenant=name, by=call.identity.actor))
    return http.reply(_view(row))


def _view(row: Any) -> dict[str, Any]:
    return {**row, "quota": {name: row["quota"].get(name) for name in Quota.model_fields}}


def _no_tenant(name: str) -> UserError:
    return UserError(f"there is no tenant {name!r}", code="tenant-not-found", status=404)


# ---------------------------------------------------------------- tokens; a tenant's, or operators' ("")


async def create_token(call: Call, context: Context) -> web.Response:
    body = await http.read_body(call.request, NewToken)
    expires = context.clock.now() + timedelta(seconds=body.expires_in) if body.expires_in else None
    token, tenant = new_token(), call.tenant or None

    async def create(tx: Transaction) -> tuple[int, Any]:
        row = await store.create_token(tx, tenant, body.name, token, sorted(set(body.scopes)), expires)
        await audit.record(
            tx, tenant, call.identity.actor, "token.create", str(row["id"]), name=body.name, scopes=body.scopes
        )
        return 201, {**row, "token": token}

    return await http.once(call.request, context.database, call.tenant, create, vault=context.vault)


async def list_tokens(call: Call, context: Context) -> web.Response:
    page = call.query(Page)
    (before,) = page.after(uuid.UUID) or (None,)
    rows = await store.tokens_page(context.database, call.tenant or None, page.limit, before)
    return http.reply(listing(rows, page.limit, dict, lambda row: (row["id"],)))


async def revoke_token(call: Call, context: Context) -> web.Response:
    try:
        id = uuid.UUID(call.path("token"))
    except ValueError:
        raise _no_token(call.path("token")) from None
    async with context.database.transaction() as tx:
        row = await store.revoke_token(tx, call.tenant or None, id)
        if row is None:
            raise _no_token(str(id))
        await audit.record(tx, call.tenant or None, call.identity.actor, "token.revoke", str(id), name=row["name"])
    return http.reply(dict(row))


def _no_token(text: str) -> UserError:
    return UserError(
        f"there is no token {text[:80]!r}", code="token-not-found", status=404,
        hint="tokens are revoked by their id; `hubflow token list` shows it",
    )  # fmt: skip


# ---------------------------------------------------------------- secrets


async def put_secret(call: Call, context: Context) -> web.Response:
    name = call.path("name")
    try:
        check_variable(name)
    except ValueError as error:
        raise UserError(str(error), code="invalid-name", status=422, hint="use letters, digits and `_`") from None
    body = await http.read_body(call.request, SecretValue)
    async with context.database.transaction() as tx:
        row = await store.put_secret(tx, call.tenant, name, context.vault.encrypt(body.value))
        await audit.record(tx, call.tenant, call.identity.actor, "secret.put", name)
    return http.reply(dict(row))


async def list_secrets(call: Call, context: Context) -> web.Response:
    page = call.query(Page)
    (after,) = page.after(str) or (None,)
    rows = await store.secrets_page(context.database, call.tenant, page.limit, after)
    return http.reply(listing(rows, page.limit, dict, lambda row: (row["name"],)))


async def delete_secret(call: Call, context: Context) -> web.Response:
    name = call.path("name")
    async with context.database.transaction() as tx:
        if not await store.delete_secret(tx, call.tenant, name):
            raise UserError(f"there is no secret {name!r}", code="secret-not-found", status=404)
        await audit.record(tx, call.tenant, call.identity.actor, "secret.delete", name)
    return http.reply({"deleted": name})


API = "/api/v1"
ENDPOINTS = (
    Endpoint("POST", f"{API}/tenants", create_tenant, "Create a tenant", OPERATOR, NewTenant, answer=Tenant, status=201),
    Endpoint("GET", f"{API}/tenants", list_tenants, "List tenants", OPERATOR, query=Page, answer=Listing[Tenant]),
    Endpoint("GET", f"{API}/tenants/{{tenant}}", get_tenant, "Show a tenant", OPERATOR, answer=Tenant),
    Endpoint("PUT", f"{API}/tenants/{{tenant}}/quota", set_quota, "Set a tenant's quota", OPERATOR, Quota, answer=Tenant),
    Endpoint("GET", f"{API}/tenant", get_own_tenant, "Show the token's tenant", answer=Tenant),
    Endpoint("POST", f"{API}/operator-tokens", create_token, "Create an operator's token", OPERATOR, NewToken,
             answer=CreatedToken, status=201),
    Endpoint("GET", f"{API}/operator-tokens", list_tokens, "List operators' tokens", OPERATOR, query=Page,
             answer=Listing[Token]),
    Endpoint("DELETE", f"{API}/operator-tokens/{{token}}", revoke_token, "Revoke an operator's token", OPERATOR,
             answer=Token),
    Endpoint("POST", f"{API}/tokens", create_token, "Create a token", "admin", NewToken, answer=CreatedToken, status=201),
    Endpoint("GET", f"{API}/tokens", list_tokens, "List tokens", "admin", query=Page, answer=Listing[Token]),
    Endpoint("DELETE", f"{API}/tokens/{{token}}", revoke_token, "Revoke a token", "admin", answer=Token),
    Endpoint("PUT", f"{API}/secrets/{{name}}", put_secret, "Set a secret", "write", SecretValue, answer=Secret),
    Endpoint("GET", f"{API}/secrets", list_secrets, "List names of secrets", query=Page, answer=Listing[Secret]),
    Endpoint("DELETE", f"{API}/secrets/{{name}}", delete_secret, "Delete a secret", "write", answer=Deleted),
)  # fmt: skip
