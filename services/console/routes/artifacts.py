"""Artifacts of runs. Their bytes come through here: object storage need not be reachable for people."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from services.console.context import Context
from services.console.models import ArtifactList, AttemptQuery
from services.console.ranges import parse_range
from services.console.store import runs as store
from services.console.store.runs import RunRef
from shared import http
from shared.api import Call, Endpoint
from shared.errors import UserError


async def list_artifacts(call: Call, context: Context) -> web.Response:
    run, rows = await _artifacts(call, context)
    return http.reply({"items": [_view(run, row) for row in rows]})


async def get_artifact(call: Call, context: Context) -> web.StreamResponse:
    """The archive, or the part of it that the header Range names."""
    job, name = call.path("job"), call.path("name")
    attempt = call.query(AttemptQuery).attempt
    _, rows = await _artifacts(call, context)
    for row in rows:
        if row["job"] == job and row["name"] == name and attempt in {None, row["attempt"]}:
            return await _send(call.request, context, row)
    kept = sorted({f"{row['job']}/{row['name']}" for row in rows})
    raise UserError(
        f"the job {job!r} has kept no artifact {name!r}", code="artifact-not-found", status=404,
        hint=f"the run has: {', '.join(kept[:20])}" if kept else "the run has kept none",
    )  # fmt: skip


async def _send(request: web.Request, context: Context, row: Any) -> web.StreamResponse:
    wanted = parse_range(request.headers.get("Range"), row["bytes"])
    start, end = wanted or (0, row["bytes"])
    name = f"{row['job']}-{row['name']}.tar"
    response = web.StreamResponse(
        status=200 if wanted is None else 206,
        headers={
            "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff",
            "Content-Disposition": f"attachment; filename*=UTF-8''{http.quoted(name)}",
        },
    )  # fmt: skip
    response.content_length = end - start
    if row["sha256"]:
        response.headers["ETag"] = f'"{row["sha256"]}"'
    if wanted is not None:
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{row['bytes']}"
    try:
        return await http.send_pieces(
            request, response, context.host.objects.stream(row["object_key"], start, end - start)
        )
    except KeyError:
        raise UserError("this artifact is no longer kept", code="artifact-gone", status=410) from None


async def _artifacts(call: Call, context: Context) -> tuple[uuid.UUID, list[Any]]:
    run = await store.brief(context.database, call.tenant, RunRef.parse(call.path("run")), call.path("run"))
    return run["id"], await store.artifacts(context.database, run["id"])


def _view(run: uuid.UUID, row: Any) -> dict[str, Any]:
    names = ("job", "name", "attempt", "bytes", "sha256", "files", "created_at")
    path = f"/api/v1/runs/{run}/artifacts/{http.quoted(row['job'])}/{http.quoted(row['name'])}"
    return {**{name: row[name] for name in names}, "url": f"{path}?attempt={row['attempt']}"}


API = "/api/v1/runs/{run}/artifacts"
ENDPOINTS = (
    Endpoint("GET", API, list_artifacts, "List a run's artifacts", answer=ArtifactList),
    Endpoint("GET", f"{API}/{{job}}/{{name}}", get_artifact, "Get an artifact", query=AttemptQuery, answer=str,
             media="application/octet-stream"),
)  # fmt: skip
