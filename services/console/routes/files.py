"""Files of components: what `thub push` stores and `thub pull` fetches. Kept in object storage by repository, path and tag."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator

from aiohttp import web

from services.console.context import Context
from services.console.models import FileQuery, StoredFile
from services.console.store import audit
from shared import http, object_keys
from shared.api import Call, Endpoint
from shared.errors import UserError

LONGEST_URL = 2048
"""Bytes of a file's repository, path and tag; an index of the audit log takes little more."""


async def put_file(call: Call, context: Context) -> web.Response:
    """Store a file, replacing the one of the same path and tag. Streamed; whole or not at all."""
    key, url = _place(call)
    limit, digest = context.settings.file_bytes, hashlib.sha256()
    if (call.request.content_length or 0) > limit:
        raise _too_large(limit)

    async def chunks() -> AsyncIterator[bytes]:
        size = 0
        async for chunk in call.request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            digest.update(chunk)
            yield chunk
        _check_digest(call.request, digest.digest())

    size = await context.host.objects.put_stream(key, chunks())
    async with context.database.transaction() as tx:
        await audit.record(tx, call.tenant, call.identity.actor, "file.put", url, size=size, sha256=digest.hexdigest())
    return http.reply({"url": url, "size": size, "sha256": digest.hexdigest()}, 201)


def _check_digest(request: web.Request, found: bytes) -> None:
    """What came is what was sent, if the sender has said (RFC 9530)."""
    match = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", request.headers.get("Content-Digest", ""))
    if match is not None and match[1] != base64.b64encode(found).decode():
        raise UserError("the file was damaged on its way", code="digest-mismatch", status=422, hint="send it again")


async def get_file(call: Call, context: Context) -> web.StreamResponse:
    """A stored file."""
    key, url = _place(call)
    found = await context.host.objects.head(key)
    if found is None:
        raise UserError(f"there is no file {url}", code="file-not-found", status=404)
    response = web.StreamResponse(
        headers={"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff"}
    )
    response.content_length = found.size
    return await http.send_pieces(call.request, response, context.host.objects.stream(key))


def _place(call: Call) -> tuple[str, str]:
    """(key in object storage, how people name it)."""
    namespace, repo, path = (call.path(name) for name in ("namespace", "repo", "path"))
    tag = call.query(FileQuery).tag
    if any(part in {"", ".", ".."} for part in path.split("/")) or len(path) > 500 or not path.isprintable():
        raise UserError(f"{path[:100]!r} cannot be the path of a file", code="invalid-path", status=422)
    url = f"{namespace}/{repo}/{path}:{tag}"
    if len(url.encode()) > LONGEST_URL:
        raise UserError(f"a file is named by at most {LONGEST_URL} bytes", code="invalid-path", status=422)
    return object_keys.file(call.tenant, namespace, repo, path, tag), url


def _too_large(limit: int) -> UserError:
    return UserError(f"the file is larger than {limit} bytes", code="body-too-large", status=413)


API = "/api/v1/files/{namespace}/{repo}/{path:.+}"
ENDPOINTS = (
    Endpoint("PUT", API, put_file, "Store a file", "run", bytes, FileQuery, StoredFile, 201,
             takes="application/octet-stream"),
    Endpoint("GET", API, get_file, "Fetch a file", query=FileQuery, answer=str, media="application/octet-stream"),
)  # fmt: skip
