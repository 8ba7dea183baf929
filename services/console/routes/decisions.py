"""Decisions about paused stages: by token, and by the links that jobs of a pause stage hand out.

A link shows a page with buttons, because mail scanners and chat previews open links; a POST decides. Where the workflow says
`links: direct`, opening it decides. What was decided first stays: later ones are told by whom and when.
"""

from __future__ import annotations

import shlex
import uuid
from datetime import datetime
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from services.console import core, pages
from services.console.context import Context
from services.console.models import DecidedStage, DecisionBody
from services.console.store import audit, runs
from services.console.store import decisions as store
from services.console.store.runs import RunRef
from shared import http
from shared.api import PUBLIC, Call, Endpoint
from shared.clock import parse_timestamp
from shared.db.database import Transaction
from shared.errors import UserError
from shared.events import StageDecided
from shared.masking import masked
from shared.states import FINAL_RUN_STATES, FINAL_STAGE_STATES, RunState
from shared.text import is_fit

LONGEST_COMMENT = 1000
LONGEST_NAME = 100


async def decide_stage(call: Call, context: Context) -> web.Response:
    """A decision with a token of scope `approve`."""
    body = await http.read_body(call.request, DecisionBody)
    reference, stage = RunRef.parse(call.path("run")), call.path("stage")

    async def decide(tx: Transaction) -> tuple[int, Any]:
        run = await runs.locked(tx, call.tenant, reference, call.path("run"))
        about = await store.locked_stage(tx, run["id"], stage)
        _check_approver(about, call.identity.name, stage)
        decision = await _decide(tx, about, stage, body.action, call.identity.actor, body.comment)
        return 201, {"run": run["id"], "number": run["number"], "stage": stage, "decision": dict(decision)}

    return await http.once(call.request, context.database, call.tenant, decide)


def _check_approver(about: Any, name: str, stage: str) -> None:
    approvers = _approvers(about)
    if approvers and name not in approvers:
        raise UserError(
            f"{name!r} may not decide about the stage {stage!r}; its workflow names: {', '.join(approvers)}",
            code="not-an-approver", status=403,
        )  # fmt: skip


def _approvers(about: Any) -> list[str]:
    stage = about["stage"] if about is not None else None
    approvers: list[str] = ((stage or {}).get("pause") or {}).get("approvers") or []
    return approvers


async def _decide(tx: Transaction, about: Any, stage: str, action: str, by: str, comment: str) -> Any:
    """Record a decision and tell it. Raises UserError: 404 no such pause stage, 409 too late."""
    if about is None or about["stage"] is None or about["stage"]["type"] != "pause":
        number = about["number"] if about is not None else "?"
        raise UserError(f"run {number} has no pause stage {stage!r}", code="stage-not-found", status=404)
    if about["decision"] is not None:
        raise _decided(about, stage, about["decision"])
    if about["run_state"] in FINAL_RUN_STATES or about["run_state"] == RunState.CANCELLING:
        raise UserError(
            f"run {about['number']} is {about['run_state']}, there is nothing to decide any more",
            code="run-over", status=409, details={"state": about["run_state"]},
        )  # fmt: skip
    if about["state"] in FINAL_STAGE_STATES:
        raise UserError(
            f"the stage {stage!r} is over: {about['state']}", code="stage-over", status=409,
            details={"state": about["state"]},
        )  # fmt: skip
    decision = await store.decide(tx, about["id"], stage, action, by, comment)
    if decision is None:
        raise _decided(about, stage, await store.existing(tx, about["id"], stage))
    tx.tell(StageDecided(tenant=about["tenant"], run=about["id"], stage=stage, action=action, by=by, comment=comment))
    await audit.record(tx, about["tenant"], by, f"stage.{action}", f"{about['id']}:{stage}", comment=comment)
    return decision


def _decided(about: Any, stage: str, decision: Any) -> UserError:
    at = decision["at"]
    moment = at if isinstance(at, datetime) else parse_timestamp(at)
    done = "approved" if decision["action"] == "approve" else "rejected"
    return UserError(
        f"the stage {stage!r} of run {about['number']} was {done} by {decision['by']} "
        f"at {moment:%Y-%m-%d %H:%M:%S} UTC",
        code="already-decided", status=409, details={"decision": dict(decision)},
    )  # fmt: skip


# ---------------------------------------------------------------- links


async def open_link(call: Call, context: Context) -> web.Response:
    """The page of a link. Only `links: direct` lets this decide, and never a HEAD request."""
    try:
        run, stage, action, expires = _read_link(call, context)
        about = await _about(context, run, stage)
        direct = ((about["stage"].get("pause") or {}).get("links")) == "direct"
        if direct and call.request.method == "GET" and not _is_preview(call.request):
            return await _decide_by_link(context, run, stage, action, "link", "")
        other = "cancel" if action == "approve" else "approve"
        # Whoever holds one link of a stage is shown the other: both were given out together, and end together.
        sibling = context.vault.sign_link("decision", f"{run}:{stage}:{other}", expires)
        hidden = await context.masks.patterns(about["tenant"], about["id"])
        view = masked(core.decision_view(about, stage, context.host.public_url), hidden)
        return _page(200, pages.question(view, action, sibling))
    except UserError as error:
        return _page(error.status, pages.answer(error.code, str(error)))


async def decide_by_link(call: Call, context: Context) -> web.Response:
    """The button of that page."""
    try:
        run, stage, action, _ = _read_link(call, context)
        name, comment = await _form(call.request)
        by = f"link (says: {' '.join(name.split())[:LONGEST_NAME]})" if name else "link"
        return await _decide_by_link(context, run, stage, action, by, comment[:LONGEST_COMMENT])
    except UserError as error:
        return _page(error.status, pages.answer(error.code, str(error)))


async def _form(request: web.Request) -> tuple[str, str]:
    """(name, comment), as typed. Raises UserError for what is no form, or cannot be kept."""
    try:
        form = await request.post()
    except (ValueError, LookupError, RuntimeError, HttpProcessingError):  # the last two: parts of a multipart
        raise UserError("the form cannot be read", code="invalid-body") from None
    name, comment = str(form.get("name", "")).strip(), str(form.get("comment", "")).strip()
    if not is_fit(name + comment):
        raise UserError("the form holds a NUL character or half of a surrogate pair", code="invalid-body")
    return name, comment


async def _decide_by_link(
    context: Context, run: uuid.UUID, stage: str, action: str, by: str, comment: str
) -> web.Response:
    await _about(context, run, stage)
    async with context.database.transaction() as tx:
        about: Any = await store.locked_stage(tx, run, stage)
        await _decide(tx, about, stage, action, by, comment)
    done = "approved: the run goes on" if action == "approve" else "rejected: the run ends"
    return _page(200, pages.answer("decided", f"The stage {stage!r} of run {about['number']} is {done}."))


async def _about(context: Context, run: uuid.UUID, stage: str) -> Any:
    """The stage, if it can still be decided. Raises UserError."""
    about = await store.stage(context.database, run, stage)
    if about is None or about["stage"] is None:
        raise UserError("the run of this link is no longer there", code="run-not-found", status=404)
    if about["decision"] is not None:
        raise _decided(about, stage, about["decision"])
    if about["run_state"] in FINAL_RUN_STATES or about["run_state"] == RunState.CANCELLING:
        raise UserError(
            f"run {about['number']} is {about['run_state']}, there is nothing to decide any more",
            code="run-over",
            status=409,
        )
    if _approvers(about):
        raise _only_approvers(about, stage)
    return about


def _only_approvers(about: Any, stage: str) -> UserError:
    return UserError(
        f"the stage {stage!r} names who may decide ({', '.join(_approvers(about))}), and a link does not say who you are: "
        f"use `hubflow run approve {about['number']} {shlex.quote(stage)}`",
        code="not-an-approver", status=403,
    )  # fmt: skip


def _read_link(call: Call, context: Context) -> tuple[uuid.UUID, str, str, datetime]:
    """(run, stage, action, when it expires) of the link. The name of a stage may hold colons."""
    subject, expires = context.vault.opened_link("decision", call.path("token"), context.clock.now())
    run, _, rest = subject.partition(":")
    stage, _, action = rest.rpartition(":")
    return uuid.UUID(run), stage, action, expires


def _is_preview(request: web.Request) -> bool:
    """Browsers that fetch ahead say so."""
    purpose = request.headers.get("Sec-Purpose", "") + request.headers.get("Purpose", "")
    return "prefetch" in purpose or "preview" in purpose


def _page(status: int, html: str) -> web.Response:
    return web.Response(status=status, text=html, content_type="text/html", headers=pages.HEADERS)


LINK = "/d/{token}"
ENDPOINTS = (
    Endpoint("POST", "/api/v1/runs/{run}/stages/{stage}/decision", decide_stage, "Approve or reject a pause stage",
             "approve", DecisionBody, answer=DecidedStage, status=201),
    Endpoint("GET", LINK, open_link, "The page of a decision link", PUBLIC, answer=str, media="text/html"),
    Endpoint("HEAD", LINK, open_link, "Whether a decision link is good; decides nothing", PUBLIC, media="text/html"),
    Endpoint("POST", LINK, decide_by_link, "Decide by link", PUBLIC, answer=str, media="text/html",
             takes="application/x-www-form-urlencoded"),
)  # fmt: skip
