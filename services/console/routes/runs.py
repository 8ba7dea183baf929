"""Runs: look, wait, cancel, retry; their events and jobs. (A run is started at trigger.)"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import Any

import msgpack
from aiohttp import web

from services.console import core, pages
from services.console.context import Context
from services.console.followers import Follower
from services.console.live import FALLBACK_SECONDS
from services.console.models import (
    CancelledRun,
    CancelRun,
    EventQuery,
    Events,
    JobView,
    Nothing,
    RunList,
    RunQuery,
    RunSummary,
    RunView,
)
from services.console.store import audit
from services.console.store import runs as store
from services.console.store.runs import RunRef
from shared import http
from shared.api import PUBLIC, Call, Endpoint, Listing, listing
from shared.db.database import Transaction
from shared.errors import UserError
from shared.events import RunCancelRequested
from shared.ingress import StartedRun
from shared.masking import masked
from shared.runs import NewRun, create_run
from shared.states import FINAL_RUN_STATES, RunState

HEARTBEAT_SECONDS = 15.0
"""After so long without an event a follower gets a comment, so that proxies keep the connection."""
_SEQ = re.compile(r"[0-9]{1,18}")
_WAKING = {"finished": ("run.finished",), "paused": ("run.finished", "run.paused"), "change": ()}


async def list_runs(call: Call, context: Context) -> web.Response:
    query = call.query(RunList)
    states = [word for word in query.state.split(",") if word]
    if unknown := set(states) - {state.value for state in RunState} - {"active"}:
        raise UserError(
            f"{', '.join(sorted(unknown))[:100]!r} is no state of a run", code="invalid-query",
            hint=f"use active, {', '.join(RunState)}",
        )  # fmt: skip
    if "active" in states:
        states += core.ACTIVE_STATES
    (before,) = query.after(int) or (None,)
    rows = await store.page(context.database, call.tenant, query.workflow, states, query.limit, before)
    return http.reply(listing(rows, query.limit, core.run_summary, lambda row: (row["number"],)))


async def get_run(call: Call, context: Context) -> web.Response:
    query, run = call.query(RunQuery), RunRef.parse(call.path("run"))
    row = await (_wait(call, context, run, query) if query.wait else store.tree(context.database, call.tenant, run))
    if row is None:
        raise store.not_found(call.path("run"))
    return http.reply(core.run_view(row))


async def _wait(call: Call, context: Context, run: RunRef, query: RunQuery) -> Any:
    """The run's tree when it has come to `query.until`, or the time is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + query.wait
    id, since = run.id, query.since
    if id is None:
        id = (await store.brief(context.database, call.tenant, run, call.path("run")))["id"]
    run = RunRef.of(id)
    async with context.changes.watching(id, *_WAKING[query.until]) as watch:
        # Looked at inside the watch, so that nothing can be missed between the look and the waiting. Most looks without a
        # cause find nothing new: those are cheap ones.
        now, whole = await store.glance(context.database, call.tenant, run), False
        while True:
            if now is not None and since is None:
                since = now["seq"]
            left = deadline - loop.time()
            done = now is None or core.is_reached(query.until, now["state"], now["seq"], since or 0)
            if done or left <= 0 or context.changes.closed or _gone(call.request):
                break
            whole = await watch.wait(min(left, FALLBACK_SECONDS))
            now = await (
                store.tree(context.database, call.tenant, run) if whole else context.glances.at(call.tenant, id)
            )
    return now if now is None or whole else await store.tree(context.database, call.tenant, run)


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


async def cancel_run(call: Call, context: Context) -> web.Response:
    body = await http.read_body(call.request, CancelRun)
    reference = RunRef.parse(call.path("run"))

    async def cancel(tx: Transaction) -> tuple[int, Any]:
        run = await store.locked(tx, call.tenant, reference, call.path("run"))
        if run["state"] in FINAL_RUN_STATES:
            raise await _is_over(tx, run)
        if run["state"] != RunState.CANCELLING:
            tx.tell(RunCancelRequested(tenant=call.tenant, run=run["id"], by=call.identity.actor, why=body.reason))
            await audit.record(tx, call.tenant, call.identity.actor, "run.cancel", str(run["id"]), reason=body.reason)
        return 202, {"id": run["id"], "number": run["number"], "state": run["state"]}

    return await http.once(call.request, context.database, call.tenant, cancel)


async def _is_over(tx: Transaction, run: Any) -> UserError:
    message, details = f"run {run['number']} is over: {run['state']}", {"state": run["state"]}
    if (cancel := await store.cancelled_by(tx, run["id"])) is not None:
        message += f" ({cancel['actor']} asked for it at {cancel['at']:%Y-%m-%d %H:%M:%S} UTC)"
        details |= {
            "by": cancel["actor"],
            "at": cancel["at"].isoformat(),
            "comment": cancel["details"].get("reason", ""),
        }
    return UserError(message, code="run-over", status=409, details=details)


async def retry_run(call: Call, context: Context) -> web.Response:
    """A new run of the same version with the same inputs; what has succeeded is carried over by the scheduler."""
    await http.read_body(call.request, Nothing)
    reference = RunRef.parse(call.path("run"))

    async def retry(tx: Transaction) -> tuple[int, Any]:
        old = await store.locked(tx, call.tenant, reference, call.path("run"))
        if old["state"] not in FINAL_RUN_STATES:
            raise UserError(
                f"run {old['number']} is not over yet ({old['state']})", code="run-not-over", status=409,
                hint="cancel it first, or wait", details={"state": old["state"]},
            )  # fmt: skip
        if old["state"] == RunState.SUCCEEDED:
            raise UserError(
                f"run {old['number']} has succeeded, there is nothing to retry", code="run-succeeded", status=409,
                hint="start a new run with the same inputs", details={"state": old["state"]},
            )  # fmt: skip
        trigger = {**old["trigger"], "type": "retry", "by": call.identity.actor}
        new = NewRun(
            call.tenant, old["workflow"], old["version"], trigger, old["inputs"], old["concurrency_group"], old["id"]
        )
        run, number = await create_run(tx, new)
        await audit.record(tx, call.tenant, call.identity.actor, "run.retry", str(run), of=str(old["id"]))
        view = {"id": run, "number": number, "workflow": old["workflow"], "state": RunState.PENDING}
        return 201, {**view, "url": f"{API}/{run}"}

    return await http.once(call.request, context.database, call.tenant, retry)


# ---------------------------------------------------------------- events


async def list_events(call: Call, context: Context) -> web.StreamResponse:
    query = call.query(EventQuery)
    run = await store.brief(context.database, call.tenant, RunRef.parse(call.path("run")), call.path("run"))
    if query.follow:
        last = call.request.headers.get("Last-Event-ID", "")
        with context.followers.following(call) as follower:
            return await _follow(call, context, follower, run["id"], int(last) if _SEQ.fullmatch(last) else query.since)
    rows = await store.events(context.database, run["id"], query.since, query.limit)
    items = [_event(row) for row in rows]
    return http.reply({"items": items, "next_since": rows[-1]["seq"] if rows else query.since})


async def _follow(call: Call, context: Context, follower: Follower, run: Any, since: int) -> web.StreamResponse:
    """Server-Sent Events until the run is over. A slow reader holds up only itself: the next page is read when it has
    taken the one before."""
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(call.request)
    quiet, woken = 0.0, True
    async with context.changes.watching(run) as watch:
        while not context.changes.closed and not _gone(call.request):
            await follower.check()
            # As in `_wait`: most looks without a cause find nothing new, and are made together with those of others.
            now = await (
                store.glance(context.database, call.tenant, RunRef.of(run))
                if woken
                else context.glances.at(call.tenant, run)
            )
            if now is None:
                break
            rows = await store.events(context.database, run, since, 500) if now["seq"] > since else []
            for row in rows:
                event = _event(row)
                text = f"id: {row['seq']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
                await http.write(call.request, response, text.encode())
                since = row["seq"]
            if now["state"] in FINAL_RUN_STATES and not rows:
                break
            if not rows:
                woken = await watch.wait()
                quiet += 1.0
            if quiet >= HEARTBEAT_SECONDS:
                await http.write(call.request, response, b": still here\n\n")
            if rows or quiet >= HEARTBEAT_SECONDS:
                quiet = 0.0
    await response.write_eof()
    return response


def _event(row: Any) -> dict[str, Any]:
    return {**msgpack.unpackb(row["body"]), "seq": row["seq"]}


# ---------------------------------------------------------------- jobs


async def get_job(call: Call, context: Context) -> web.Response:
    run = await store.brief(context.database, call.tenant, RunRef.parse(call.path("run")), call.path("run"))
    name = call.path("job")
    described = await store.job_document(context.database, run["id"], name)
    if described is None or described["job"] is None:
        raise UserError(f"run {run['number']} has no job {name!r}", code="job-not-found", status=404)
    row = await store.job(context.database, run["id"], name)
    hidden = await context.masks.patterns(call.tenant, run["id"])
    document, brief = described["job"], core.job_brief(row, described["stage"], described["job"])
    origin = brief["carried_from"] or run["id"]  # what was carried over has its attempts where it ran
    attempts = [_attempt(each, hidden) for each in await store.attempts(context.database, origin, name)]
    return http.reply(
        {
            **brief,
            "message": masked(brief["message"], hidden),
            "inputs": document.get("inputs") or {},
            "component": document.get("component") or "",
            "outputs": next((each["outputs"] for each in reversed(attempts) if each["state"]), {}),
            "attempts": attempts,
        }
    )


def _attempt(row: Any, hidden: tuple[bytes, ...]) -> dict[str, Any]:
    result = row["result"] or {}
    names = (
        "attempt", "container", "created_at", "state", "reason", "message", "exit_code", "started_at", "ended_at",
    )  # fmt: skip
    return {
        **{name: row[name] for name in names},
        "message": masked(row["message"], hidden),
        "outputs": masked(row["outputs"] or {}, hidden),
        "timings": result.get("timings") or {},
        "warnings": masked(result.get("warnings") or [], hidden),
    }


async def open_run(call: Call, context: Context) -> web.Response:
    """Where `run.url` leads people: there are no pages about runs yet."""
    try:
        run = uuid.UUID(call.path("id"))
    except ValueError:
        raise UserError("the address of a run ends with its id", code="run-not-found", status=404) from None
    return web.Response(text=pages.pointer(run), content_type="text/html", headers=pages.HEADERS)


API = "/api/v1/runs"
ENDPOINTS = (
    Endpoint("GET", API, list_runs, "List runs, newest first", query=RunList, answer=Listing[RunSummary]),
    Endpoint("GET", f"{API}/{{run}}", get_run, "Show a run, or wait for it", query=RunQuery, answer=RunView),
    Endpoint("POST", f"{API}/{{run}}/cancel", cancel_run, "Cancel a run", "run", CancelRun, answer=CancelledRun, status=202),
    Endpoint("POST", f"{API}/{{run}}/retry", retry_run, "Retry what failed, as a new run", "run", Nothing,
             answer=StartedRun, status=201),
    Endpoint("GET", f"{API}/{{run}}/events", list_events, "Events of a run", query=EventQuery, answer=Events),
    Endpoint("GET", f"{API}/{{run}}/jobs/{{job}}", get_job, "Show a job with its attempts", answer=JobView),
    Endpoint("GET", "/runs/{id}", open_run, "Where links to a run lead", PUBLIC, answer=str, media="text/html"),
)  # fmt: skip
