"""For those who operate: the audit log, and messages that could not be handled."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from services.console.context import Context
from services.console.models import AuditEntry, DeadEvents, DeadQuery, Replay, Replayed
from services.console.store import audit
from shared import http
from shared.api import OPERATOR, Call, Endpoint, Listing, Page, listing
from shared.bus.protocol import DeadMessage
from shared.errors import PermanentError
from shared.events import decode


async def list_audit(call: Call, context: Context) -> web.Response:
    page = call.query(Page)
    (before,) = page.after(uuid.UUID) or (None,)
    rows = await audit.page(context.database, call.tenant, page.limit, before)
    return http.reply(listing(rows, page.limit, dict, lambda row: (row["id"],)))


async def list_dead_events(call: Call, context: Context) -> web.Response:
    messages = await context.bus.dead(call.query(DeadQuery).limit)
    return http.reply({"items": [_dead(message) for message in messages]})


def _dead(message: DeadMessage) -> dict[str, Any]:
    try:
        event = decode(message.body).to_map()
    except PermanentError:
        event = None
    return {
        "id": message.id, "queue": message.queue, "topic": message.topic, "reason": message.reason,
        "tries": message.tries, "event": event,
    }  # fmt: skip


async def replay_dead_events(call: Call, context: Context) -> web.Response:
    body = await http.read_body(call.request, Replay)
    # Noted before it is done: it goes to the broker, and an act without a trace is worse than a trace without an act.
    async with context.database.transaction() as tx:
        await audit.record(tx, None, call.identity.actor, "dead_events.replay", "", ids=[str(id) for id in body.ids])
    return http.reply({"replayed": await context.bus.replay(body.ids)})


API = "/api/v1"
ENDPOINTS = (
    Endpoint("GET", f"{API}/audit", list_audit, "Who did what, newest first", "admin", query=Page,
             answer=Listing[AuditEntry]),
    Endpoint("GET", f"{API}/dead-events", list_dead_events, "Messages that could not be handled", OPERATOR, query=DeadQuery,
             answer=DeadEvents),
    Endpoint("POST", f"{API}/dead-events/replay", replay_dead_events, "Hand them to their services again", OPERATOR, Replay,
             answer=Replayed),
)  # fmt: skip
