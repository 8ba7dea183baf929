"""What comes in: a start by API, or a signed hook. Each becomes a run in one transaction, and the answer comes after commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from aiohttp import web

from services.trigger import core, store
from services.trigger.config import TriggerSettings
from services.trigger.core import Incoming
from services.trigger.providers import PROVIDERS
from services.trigger.providers.protocol import Provider, Request
from services.trigger.store import Hook, Workflows
from shared import http
from shared.api import Call
from shared.db.database import Database, Transaction
from shared.errors import UserError
from shared.ingress import HOOK, START_RUN, StartRun
from shared.log import get_logger
from shared.runs import NewRun, create_run, create_run_at_once
from shared.states import RunState
from shared.vault import Vault
from shared.workflow.model import Workflow

SMALL_BODY = 1024 * 1024
"""Bytes up to which a body is kept in memory as it comes, without waiting for others."""

_log = get_logger("trigger")


@dataclass(frozen=True, slots=True)
class Context:
    """All that the handlers may touch."""

    database: Database
    vault: Vault
    settings: TriggerSettings
    workflows: Workflows
    large_bodies: asyncio.Semaphore


async def on_start_requested(call: Call, context: Context) -> web.Response:
    """Start a run by API."""
    body = await http.read_body(call.request, StartRun)
    name = call.path("workflow")

    async def new_run(connection: Any) -> tuple[NewRun, int]:
        version, model, number = await context.workflows.newest(connection, call.tenant, name)
        if not model.on.api:
            raise UserError(
                f"the workflow {name!r} is not started by API", code="trigger-off", status=409,
                hint="set `api: true` under `on` in its file, or start it by its other triggers",
            )  # fmt: skip
        trigger: dict[str, Any] = {"type": "api", "by": call.identity.actor}
        if git := core.git_of_request(body.ref, body.commit, body.clone_url):
            trigger["git"] = git
        return _new(call.tenant, name, version, core.start(model, version, trigger, body.inputs)), number

    async def create(tx: Transaction) -> tuple[int, Any]:
        return 201, _view(*await create_run(tx, *await new_run(tx.connection)), name, RunState.PENDING)

    if http.is_repeatable(call.request):
        return await http.once(call.request, context.database, call.tenant, create)
    made = await create_run_at_once(context.database, *await new_run(context.database))
    return http.reply(_view(*made, name, RunState.PENDING), 201)


async def on_hook_received(call: Call, context: Context) -> web.Response:
    """Take a signed message of another system: prove it, read it, start what it starts."""
    hook = Hook(call.path("tenant"), call.path("workflow"), call.path("source"))
    provider = PROVIDERS.get(hook.source)
    if provider is None:
        raise UserError(
            f"no sender {hook.source!r} is known", code="hook-not-found", status=404,
            hint=f"the address ends with one of: {', '.join(PROVIDERS)}",
        )  # fmt: skip
    sealed, version = await store.hook(context.database, hook.tenant, hook.workflow)
    secret = context.vault.decrypt(sealed)
    async with _body(call.request, provider, context) as body:
        request = Request(call.request.headers, call.request.content_type.lower(), body)
        provider.verify(request, secret)
        incoming = provider.read(request)
    if incoming.kind == "ping":
        return http.reply({"outcome": "pong"})
    async with context.database.transaction() as tx:
        model = await context.workflows.version(tx.connection, hook.tenant, hook.workflow, version)
        status, answer = await _take(tx, hook, incoming, model, version, context)
    _log.info("hook received", tenant=hook.tenant, workflow=hook.workflow, source=hook.source,
              delivery=incoming.delivery, outcome=answer["outcome"])  # fmt: skip
    return http.reply(answer, status)


async def _take(
    tx: Transaction, hook: Hook, incoming: Incoming, model: Workflow, version: int, context: Context
) -> tuple[int, dict[str, Any]]:
    await store.receive(tx, hook, incoming)
    first = await store.earlier(tx, hook, incoming, context.settings.same_push_seconds)
    if first is not None and not (first.same_id and core.may_start_again(first.state)):
        if not first.same_id:
            await store.conclude(tx, hook, incoming.delivery, "duplicate", first.run)
        run = _view(first.run, first.number, hook.workflow, first.state)
        return 200, {"outcome": "duplicate", "detail": f"run {first.number} was started by it already", "run": run}
    if why := core.reason_to_ignore(model, incoming):
        await store.conclude(tx, hook, incoming.delivery, f"ignored: {why}", None)
        return 200, {"outcome": "ignored", "detail": why}
    start = core.start(model, version, core.trigger_of(incoming, hook.source), core.inputs_of(model, incoming))
    run = await _create(tx, hook.tenant, hook.workflow, version, start)
    await store.conclude(tx, hook, incoming.delivery, "started", run["id"])
    return 201, {"outcome": "started", "run": run}


async def _create(tx: Transaction, tenant: str, workflow: str, version: int, start: core.Start) -> dict[str, Any]:
    run, number = await create_run(tx, _new(tenant, workflow, version, start))
    return _view(run, number, workflow, RunState.PENDING)


def _new(tenant: str, workflow: str, version: int, start: core.Start) -> NewRun:
    return NewRun(tenant, workflow, version, start.trigger, start.inputs, start.concurrency_group)


def _view(run: Any, number: int, workflow: str, state: str) -> dict[str, Any]:
    return {"id": run, "number": number, "workflow": workflow, "state": state, "url": f"/api/v1/runs/{run}"}


@asynccontextmanager
async def _body(request: web.Request, provider: Provider, context: Context) -> AsyncIterator[bytes]:
    """The body, bounded in size and time. Large ones wait on disk until they are whole, and only a few are then in memory at
    the same time, here and while they are used: a sender who takes its time holds up nobody else."""
    limit = context.settings.push_bytes if provider.large else context.settings.webhook_bytes
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    with SpooledTemporaryFile(max_size=SMALL_BODY) as spool:
        size = await _receive(request, spool, limit, context)
        spool.seek(0)
        if size <= SMALL_BODY:
            yield spool.read()
            return
        async with context.large_bodies:
            yield spool.read()


async def _receive(request: web.Request, spool: IO[bytes], limit: int, context: Context) -> int:
    size = 0
    try:
        async with asyncio.timeout(context.settings.body_seconds):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                spool.write(chunk)
    except TimeoutError:
        raise UserError("the body did not come in time", code="body-too-slow", status=408) from None
    return size


def _too_large(limit: int) -> UserError:
    return UserError(f"the body is larger than {limit} bytes", code="body-too-large", status=413)


ENDPOINTS = (
    replace(START_RUN, handle=on_start_requested),
    replace(HOOK, handle=on_hook_received),
)
"""Who hears what: trigger hears no events, only requests."""
