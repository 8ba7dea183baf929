"""Writes images to registries, which Hubflow itself never does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import quote

from yarl import URL

from shared.oci import RegistryClient
from shared.oci.credentials import Auth
from shared.oci.reference import Reference
from shared.oci.transport import Request, read_json

_PUSH = "pull,push"


async def push_image(
    client: RegistryClient, reference: Reference, manifest: bytes, blobs: Mapping[str, bytes], auth: Auth | None = None
) -> str:
    """Write blobs (by digest), then the manifest under the reference's tag; returns the manifest's digest."""
    for digest, blob in blobs.items():
        await push_blob(client, reference, digest, blob, auth)
    media_type = str(read_json(manifest, "manifest").get("mediaType", ""))
    return await push_manifest(client, reference, manifest, media_type, auth)


async def push_blob(
    client: RegistryClient, reference: Reference, digest: str, content: bytes, auth: Auth | None = None
) -> None:
    """Write a blob, also if it is there."""
    location = await _step(client, reference, Request("POST", "blobs/uploads/", _PUSH), auth)
    headers = {"Content-Type": "application/octet-stream"}
    finish = location.update_query(digest=digest)
    await _step(client, reference, Request("PUT", finish, _PUSH, headers, content), auth)


async def push_manifest(
    client: RegistryClient, reference: Reference, body: bytes, media_type: str, auth: Auth | None = None
) -> str:
    """Write a manifest under the reference's tag (or digest); returns its digest."""
    path = f"manifests/{quote(reference.wanted, safe=':')}"
    await _step(client, reference, Request("PUT", path, _PUSH, {"Content-Type": media_type}, body), auth)
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


async def _step(client: RegistryClient, reference: Reference, request: Request, auth: Auth | None) -> URL:
    """Where the next one goes."""
    transport = client._transport
    async with transport.call(reference, request, auth) as response:
        return transport.base(reference).join(URL(response.headers.get("Location", ""), encoded=True))
