"""Workflows: apply a file, look at versions, delete, and where hooks go."""

from __future__ import annotations

import base64
import secrets
from typing import Any
from urllib.parse import quote

from aiohttp import web

from services.console.context import Context
from services.console.models import (
    AppliedWorkflow,
    ApplyQuery,
    Deleted,
    HookInfo,
    WorkflowDetail,
    WorkflowSource,
    WorkflowSummary,
    WorkflowVersion,
)
from services.console.store import audit
from services.console.store import workflows as store
from shared import http
from shared.api import Call, Endpoint, Listing, Page, listing
from shared.errors import PermanentError, UserError
from shared.events import WorkflowApplied
from shared.ingress import SOURCES
from shared.workflow.parser import ParsedWorkflow, parse_workflow
from shared.workflow.plan import plan


async def apply_workflow(call: Call, context: Context) -> web.Response:
    query, name = call.query(ApplyQuery), call.path("workflow")
    source = await _source(call.request)
    parsed = parse_workflow(source, query.file)
    if parsed.model.name != name:
        raise UserError(
            f"the file is of the workflow {parsed.model.name!r}, the address names {name!r}", code="wrong-name", status=422,
            hint="a workflow is applied under the name that its file has",
        )  # fmt: skip
    _check_options(parsed, context)
    answer = await (_dry_run if query.dry_run else _apply)(call, context, source, parsed)
    warnings = [{**fault.as_dict(), "rendered": fault.render()} for fault in parsed.warnings]
    return http.reply({"name": name, **answer, "dry_run": query.dry_run, "warnings": warnings})


def _check_options(parsed: ParsedWorkflow, context: Context) -> None:
    """What the operator does not allow is said now and not when the job starts (T89)."""
    if context.host.options is None:
        return
    problems = []
    for _, job in parsed.model.jobs():
        try:
            context.host.options.check(job.options)
        except PermanentError as error:
            problems.append(f"job {job.name}: {error}")
    if problems:
        raise UserError(
            "The workflow asks for what it may not have here.\n" + "\n".join(problems), code="options-not-allowed",
            status=422, hint="leave it out of `options`, or ask the operator of this installation for it",
        )  # fmt: skip


async def _apply(call: Call, context: Context, source: str, parsed: ParsedWorkflow) -> dict[str, Any]:
    name, actor = parsed.model.name, call.identity.actor
    new = store.NewVersion(source, parsed.model.to_json(), plan(parsed.model).to_json(), actor)
    async with context.database.transaction() as tx:
        version, changed = await store.apply(tx, call.tenant, name, new, context.vault.encrypt(new_hook_secret()))
        if changed:
            await audit.record(tx, call.tenant, actor, "workflow.apply", name, version=version, digest=new.digest)
            tx.tell(WorkflowApplied(tenant=call.tenant, workflow=name, version=version, by=actor))
    return {"version": version, "changed": changed}


async def _dry_run(call: Call, context: Context, source: str, parsed: ParsedWorkflow) -> dict[str, Any]:
    version, digest = await store.newest_digest(context.database, call.tenant, parsed.model.name)
    changed = digest != store.digest_of(source)
    return {"version": version + changed, "changed": changed}


async def _source(request: web.Request) -> str:
    """The file: the body itself, or the `source` of a JSON body."""
    if request.content_type == http.JSON:
        return (await http.read_body(request, WorkflowSource)).source
    try:
        return (await request.read()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the file is not UTF-8 (byte {error.start})", code="invalid-body", hint="save it as UTF-8"
        ) from None


async def list_workflows(call: Call, context: Context) -> web.Response:
    page = call.query(Page)
    (after,) = page.after(str) or (None,)
    rows = await store.page(context.database, call.tenant, page.limit, after)
    return http.reply(listing(rows, page.limit, dict, lambda row: (row["name"],)))


async def get_workflow(call: Call, context: Context) -> web.Response:
    return http.reply(dict(await store.get(context.database, call.tenant, call.path("workflow"))))


async def list_versions(call: Call, context: Context) -> web.Response:
    page, name = call.query(Page), call.path("workflow")
    await store.get(context.database, call.tenant, name)
    (before,) = page.after(int) or (None,)
    rows = await store.versions_page(context.database, call.tenant, name, page.limit, before)
    return http.reply(listing(rows, page.limit, dict, lambda row: (row["version"],)))


async def get_version(call: Call, context: Context) -> web.Response:
    return http.reply(dict(await store.get(context.database, call.tenant, call.path("workflow"), _version(call))))


async def get_version_source(call: Call, context: Context) -> web.Response:
    row = await store.get(context.database, call.tenant, call.path("workflow"), _version(call))
    return web.Response(text=row["source"], content_type="application/yaml", charset="utf-8")


def _version(call: Call) -> int:
    text = call.path("version")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(f"{text[:40]!r} is no version", code="workflow-not-found", status=404)
    return int(text)


async def delete_workflow(call: Call, context: Context) -> web.Response:
    name = call.path("workflow")
    async with context.database.transaction() as tx:
        if not await store.delete(tx, call.tenant, name):
            raise UserError(f"there is no workflow {name!r}", code="workflow-not-found", status=404)
        await audit.record(tx, call.tenant, call.identity.actor, "workflow.delete", name)
    return http.reply({"deleted": name})


async def get_hook(call: Call, context: Context) -> web.Response:
    name = call.path("workflow")
    secret = await store.hook_secret(context.database, call.tenant, name)
    if secret is None:
        raise UserError(f"there is no workflow {name!r}", code="workflow-not-found", status=404)
    return http.reply(_hook_info(call, context, context.vault.decrypt(secret)))


async def rotate_hook_secret(call: Call, context: Context) -> web.Response:
    name, secret = call.path("workflow"), new_hook_secret()
    async with context.database.transaction() as tx:
        if not await store.set_hook_secret(tx, call.tenant, name, context.vault.encrypt(secret)):
            raise UserError(f"there is no workflow {name!r}", code="workflow-not-found", status=404)
        await audit.record(tx, call.tenant, call.identity.actor, "workflow.hook_secret", name)
    return http.reply(_hook_info(call, context, secret))


def _hook_info(call: Call, context: Context, secret: str) -> dict[str, Any]:
    base = f"{context.host.public_url}/hooks/{quote(call.tenant)}/{quote(call.path('workflow'))}"
    return {"secret": secret, "urls": {source: f"{base}/{source}" for source in SOURCES}}


def new_hook_secret() -> str:
    """256 random bits in the form of Standard Webhooks; other senders use the whole text as their key."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


API = "/api/v1/workflows"
ENDPOINTS = (
    Endpoint("PUT", f"{API}/{{workflow}}", apply_workflow, "Apply a workflow file", "write", WorkflowSource, ApplyQuery,
             AppliedWorkflow, takes=f"{http.JSON}, application/yaml"),
    Endpoint("GET", API, list_workflows, "List workflows", query=Page, answer=Listing[WorkflowSummary]),
    Endpoint("GET", f"{API}/{{workflow}}", get_workflow, "Show a workflow's newest version", answer=WorkflowDetail),
    Endpoint("DELETE", f"{API}/{{workflow}}", delete_workflow, "Delete a workflow", "write", answer=Deleted),
    Endpoint("GET", f"{API}/{{workflow}}/versions", list_versions, "List versions", query=Page,
             answer=Listing[WorkflowVersion]),
    Endpoint("GET", f"{API}/{{workflow}}/versions/{{version}}", get_version, "Show a version", answer=WorkflowDetail),
    Endpoint("GET", f"{API}/{{workflow}}/versions/{{version}}/source", get_version_source, "The file of a version",
             answer=str, media="application/yaml"),
    Endpoint("GET", f"{API}/{{workflow}}/hook", get_hook, "Show the addresses and the secret of hooks", "write",
             answer=HookInfo),
    Endpoint("POST", f"{API}/{{workflow}}/hook/secret", rotate_hook_secret, "Replace the secret of hooks", "write",
             answer=HookInfo),
)  # fmt: skip
