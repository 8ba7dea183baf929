"""Where a tenant's events are sent as signed webhooks, and what came of it. (Sending is notifier's.)"""

from __future__ import annotations

import base64
import secrets
import uuid
from typing import Any

from aiohttp import web

from services.console.context import Context
from services.console.models import (
    Deleted,
    Delivery,
    NewSubscription,
    Nothing,
    ShownSubscription,
    Subscription,
    TestedSubscription,
)
from services.console.store import audit
from services.console.store import subscriptions as store
from shared import http
from shared.api import Call, Endpoint, Listing, Page, listing
from shared.clock import parse_timestamp
from shared.errors import UserError
from shared.events import EVENTS, SubscriptionChanged, SubscriptionTested
from shared.outgoing import check_url


async def put_subscription(call: Call, context: Context) -> web.Response:
    body = await http.read_body(call.request, NewSubscription)
    check_url(body.url, allow_private=context.host.settings.allow_private_targets)
    if unknown := sorted(set(body.types) - EVENTS.keys()):
        raise UserError(
            f"there are no events of type {', '.join(unknown)[:200]}", code="unknown-event-type", status=422,
            hint=f"there are: {', '.join(EVENTS)}",
        )  # fmt: skip
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    async with context.database.transaction() as tx:
        row, new = await store.put(tx, call.tenant, body.url, body.types, body.enabled, context.vault.encrypt(secret))
        tx.tell(SubscriptionChanged(tenant=call.tenant, by=call.identity.actor))
        await audit.record(
            tx, call.tenant, call.identity.actor, "subscription.put", str(row["id"]), url=body.url, enabled=body.enabled
        )
    return http.reply({**_view(row), "secret": secret if new else None})


async def get_subscription(call: Call, context: Context) -> web.Response:
    row = await store.get(context.database, call.tenant)
    if row is None:
        raise _none(call.tenant)
    return http.reply(_view(row))


async def delete_subscription(call: Call, context: Context) -> web.Response:
    async with context.database.transaction() as tx:
        id = await store.delete(tx, call.tenant)
        if id is None:
            raise _none(call.tenant)
        tx.tell(SubscriptionChanged(tenant=call.tenant, by=call.identity.actor))
        await audit.record(tx, call.tenant, call.identity.actor, "subscription.delete", str(id))
    return http.reply({"deleted": str(id)})


async def rotate_secret(call: Call, context: Context) -> web.Response:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    async with context.database.transaction() as tx:
        row = await store.set_secret(tx, call.tenant, context.vault.encrypt(secret))
        if row is None:
            raise _none(call.tenant)
        tx.tell(SubscriptionChanged(tenant=call.tenant, by=call.identity.actor))
        await audit.record(tx, call.tenant, call.identity.actor, "subscription.secret", str(row["id"]))
    return http.reply({**_view(row), "secret": secret})


async def test_subscription(call: Call, context: Context) -> web.Response:
    """Tell an event that is delivered whatever types are wanted."""
    await http.read_body(call.request, Nothing)
    if await store.get(context.database, call.tenant) is None:
        raise _none(call.tenant)
    event = SubscriptionTested(tenant=call.tenant, by=call.identity.actor)
    async with context.database.transaction() as tx:
        tx.tell(event)
    return http.reply({"event": event.id}, 202)


async def list_deliveries(call: Call, context: Context) -> web.Response:
    page = call.query(Page)
    rows = await store.deliveries(context.database, call.tenant, page.limit, page.after(parse_timestamp, uuid.UUID))
    return http.reply(listing(rows, page.limit, dict, lambda row: (row["created_at"].isoformat(), row["id"])))


def _view(row: Any) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "url", "types", "enabled", "created_at")}


def _none(tenant: str) -> UserError:
    return UserError(
        f"the tenant {tenant!r} has no subscription", code="subscription-not-found", status=404,
        hint="`hubflow subscription set URL` makes one",
    )  # fmt: skip


API = "/api/v1/subscription"
ENDPOINTS = (
    Endpoint("PUT", API, put_subscription, "Send events to an address", "admin", NewSubscription,
             answer=ShownSubscription),
    Endpoint("GET", API, get_subscription, "Show where events are sent", answer=Subscription),
    Endpoint("DELETE", API, delete_subscription, "Send no events", "admin", answer=Deleted),
    Endpoint("POST", f"{API}/secret", rotate_secret, "Replace the secret of deliveries", "admin", answer=ShownSubscription),
    Endpoint("POST", f"{API}/test", test_subscription, "Send a test event", "admin", Nothing, answer=TestedSubscription,
             status=202),
    Endpoint("GET", "/api/v1/deliveries", list_deliveries, "Deliveries, newest first", query=Page,
             answer=Listing[Delivery]),
)  # fmt: skip
