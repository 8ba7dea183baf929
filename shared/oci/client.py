"""Reads images from any OCI registry.

    async with open_registry_client() as client:
        config = await client.image_config(parse_reference("registry.example.com/team/app:1"), auth)

Errors: PermanentError (reason ImagePull) for an image that is malformed, RefusedError (the same reason) for one that is unknown
or refused, TemporaryError for a registry that does not answer.
"""

from __future__ import annotations

import hashlib
import platform
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from shared.errors import PermanentError, RefusedError
from shared.oci.credentials import Auth
from shared.oci.reference import Reference
from shared.oci.transport import Request, Transport, read_bounded, read_json
from shared.states import Reason

MANIFEST_BYTES = 4 * 1024 * 1024
CONFIG_BYTES = 8 * 1024 * 1024
BLOB_BYTES = 32 * 1024 * 1024 * 1024
_TAGS = 10_000
_INDEX_DEPTH = 2
_CONFIGS_KEPT = 256

_DOCKER = "application/vnd.docker.distribution.manifest"
_OCI = "application/vnd.oci.image"
_INDEXES = {f"{_DOCKER}.list.v2+json", f"{_OCI}.index.v1+json"}
_IMAGES = {f"{_DOCKER}.v2+json", f"{_OCI}.manifest.v1+json"}
_ACCEPT = ", ".join(sorted(_IMAGES) + sorted(_INDEXES))


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest or index, its digest verified. `document` is JSON that nobody has checked beyond being an object."""

    reference: Reference
    media_type: str
    digest: str
    body: bytes
    document: Mapping[str, Any]

    @property
    def is_index(self) -> bool:
        return self.media_type in _INDEXES


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about how it is run."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    """Of the manifest: `repository@digest` names this very image for ever."""
    architecture: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        """ENTRYPOINT and CMD, as the engine would run them; empty if the image names neither."""
        return self.entrypoint + self.cmd


class RegistryClient:
    """See the module's docstring. Methods may be called concurrently."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._configs: OrderedDict[str, Mapping[str, Any]] = OrderedDict()

    async def image_config(
        self, reference: Reference, auth: Auth | None = None, *, architecture: str = ""
    ) -> ImageConfig:
        """Configuration of the image for linux and `architecture` (amd64, arm64, ...; empty: this machine's)."""
        manifest = await self.image_manifest(reference, auth, architecture=architecture)
        descriptor = manifest.document.get("config")
        digest = descriptor.get("digest") if isinstance(descriptor, Mapping) else None
        if not isinstance(digest, str):
            raise _malformed(reference, "its manifest names no configuration")
        document = self._configs.get(digest)
        if document is None:
            body = await self.blob_bytes(reference, digest, auth, limit=CONFIG_BYTES)
            document = read_json(body, "image configuration")
            self._configs[digest] = document
            while len(self._configs) > _CONFIGS_KEPT:
                self._configs.popitem(last=False)
        return _image_config(document, manifest.digest, reference)

    async def image_manifest(
        self, reference: Reference, auth: Auth | None = None, *, architecture: str = ""
    ) -> Manifest:
        """Manifest of one image; of an index, the one for linux and `architecture`."""
        wanted = architecture or _machine()
        manifest = await self.manifest(reference, auth)
        for _ in range(_INDEX_DEPTH):
            if not manifest.is_index:
                break
            manifest = await self.manifest(reference.at(_chosen(manifest, wanted)), auth)
        if manifest.media_type not in _IMAGES:
            raise _malformed(reference, f"its manifest is of the kind {manifest.media_type[:80]!r}, not an image")
        return manifest

    async def manifest(self, reference: Reference, auth: Auth | None = None) -> Manifest:
        """The manifest or index that the reference names, as it is."""
        request = Request("GET", f"manifests/{quote(reference.wanted, safe=':')}", headers={"Accept": _ACCEPT})
        try:
            async with self._transport.call(reference, request, auth) as response:
                media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
                told = response.headers.get("Docker-Content-Digest", "")
                body = await read_bounded(response, MANIFEST_BYTES, "manifest")
        except KeyError:
            raise _unknown(reference) from None
        digest = reference.digest or f"sha256:{hashlib.sha256(body).hexdigest()}"
        for claimed in filter(None, (reference.digest, told)):
            if _digest_like(claimed, body) != claimed:
                raise _malformed(reference, f"what the registry sent does not have the digest {claimed[:80]}")
        document = read_json(body, "manifest")
        if media_type not in _IMAGES | _INDEXES and isinstance(document.get("mediaType"), str):
            media_type = document["mediaType"]
        return Manifest(reference, media_type, digest, body, document)

    async def blob(
        self, reference: Reference, digest: str, auth: Auth | None = None, *, limit: int = BLOB_BYTES
    ) -> AsyncIterator[bytes]:
        """A blob in chunks. Raises PermanentError once it is over `limit` bytes, or at its end if the digest is wrong:
        only what was read to the end may be trusted."""
        hasher = _hasher(digest, reference)
        size = 0
        try:
            async with self._transport.call(reference, Request("GET", f"blobs/{digest}"), auth) as response:
                async for chunk in response.content.iter_chunked(256 * 1024):
                    size += len(chunk)
                    if size > limit:
                        raise _malformed(reference, f"its blob {digest} is larger than {limit} bytes")
                    hasher.update(chunk)
                    yield chunk
        except KeyError:
            raise _malformed(reference, f"the registry lacks its blob {digest}") from None
        if f"{digest.partition(':')[0]}:{hasher.hexdigest()}" != digest:
            raise _malformed(reference, f"what the registry sent does not have the digest {digest}")

    async def blob_bytes(self, reference: Reference, digest: str, auth: Auth | None = None, *, limit: int) -> bytes:
        """A whole blob of at most `limit` bytes, its digest verified."""
        return b"".join([chunk async for chunk in self.blob(reference, digest, auth, limit=limit)])

    async def tags(self, reference: Reference, auth: Auth | None = None) -> list[str]:
        """Names of all tags of the repository, the first 10 000 at most."""
        found: list[str] = []
        path: str | URL = "tags/list?n=1000"
        while path and len(found) < _TAGS:
            try:
                async with self._transport.call(reference, Request("GET", path), auth) as response:
                    page = read_json(await read_bounded(response, MANIFEST_BYTES, "list of tags"), "list of tags")
                    following = response.links["next"].get("url", "") if "next" in response.links else ""
            except KeyError:
                raise _unknown(reference) from None
            names = [tag for tag in page.get("tags") or () if isinstance(tag, str)]
            found += names
            path = self._on_registry(reference, str(following)) if following and names else ""
        return found[:_TAGS]

    def _on_registry(self, reference: Reference, address: str) -> URL:
        """An address that the registry gave, which must be on the registry: our credentials go there."""
        base = self._transport.base(reference)
        try:
            url = base.join(URL(address, encoded=True))
            elsewhere = url.origin() != base.origin()
        except ValueError:
            raise _malformed(reference, "the registry gave an unusable address") from None
        if elsewhere:
            raise _malformed(reference, "the registry sends us to another server")
        return url


@asynccontextmanager
async def open_registry_client(insecure: Iterable[str] = ()) -> AsyncIterator[RegistryClient]:
    """A client for any registry. `insecure`: hosts (with port) to speak plain HTTP to; this machine itself always is."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    connector = aiohttp.TCPConnector(limit=32, limit_per_host=8)
    # Nothing is decompressed: a small body could become a large one behind our bounds. No cookies: hosts are many.
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True
    ) as session:
        yield RegistryClient(Transport(session, frozenset(insecure)))


def _chosen(index: Manifest, architecture: str) -> str:
    """Digest of the index's manifest for linux and `architecture`, baseline variants first."""
    entries = index.document.get("manifests")
    images = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    offered: list[str] = []
    matching: list[tuple[str, str]] = []
    for entry in images:
        place = entry.get("platform")
        place = place if isinstance(place, Mapping) else {}
        name = f"{place.get('os', 'linux')}/{place.get('architecture', architecture)}"
        if isinstance(entry.get("digest"), str):
            offered.append(name)
            if name == f"linux/{architecture}":
                matching.append((str(place.get("variant", "")), entry["digest"]))
    if not matching:
        there = ", ".join(sorted({name for name in offered if "unknown" not in name})[:10]) or "nothing"
        raise PermanentError(
            f"{index.reference} has no image for linux/{architecture}, only for {there}", reason=Reason.IMAGE_PULL
        )
    digest = min(matching, key=lambda found: found[0])[1]
    _hasher(digest, index.reference)  # refuses what is none
    return digest


def _image_config(document: Mapping[str, Any], digest: str, reference: Reference) -> ImageConfig:
    settings = document.get("config") or {}
    if not isinstance(settings, Mapping):
        raise _malformed(reference, "its configuration is not an object")
    labels = settings.get("Labels") or {}
    if not isinstance(labels, Mapping):
        raise _malformed(reference, "its labels are not an object")
    env = dict(entry.partition("=")[::2] for entry in _words(settings, "Env", reference))
    return ImageConfig(
        entrypoint=_words(settings, "Entrypoint", reference),
        cmd=_words(settings, "Cmd", reference),
        env={name: value for name, value in env.items() if name},
        workdir=_word(settings.get("WorkingDir"), reference),
        user=_word(settings.get("User"), reference),
        labels={str(name): str(value) for name, value in labels.items()},
        digest=digest,
        architecture=_word(document.get("architecture"), reference),
    )


def _words(settings: Mapping[str, Any], name: str, reference: Reference) -> tuple[str, ...]:
    value = settings.get(name)
    if value is None:
        return ()
    if isinstance(value, str):  # very old images
        return (value,)
    if not isinstance(value, list) or not all(isinstance(word, str) and "\0" not in word for word in value):
        raise _malformed(reference, f"{name} in its configuration is not a list of words")
    return tuple(value)


def _word(value: Any, reference: Reference) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise _malformed(reference, "its configuration holds something that is not text")
    return value


def _hasher(digest: str, reference: Reference) -> Any:
    algorithm, _, value = digest.partition(":")
    if algorithm not in {"sha256", "sha512"} or not value.isalnum():
        raise _malformed(reference, f"{digest[:80]!r} is not a digest")
    return hashlib.new(algorithm)


def _digest_like(claimed: str, body: bytes) -> str:
    """The digest of `body` by the algorithm that `claimed` names."""
    algorithm = "sha512" if claimed.startswith("sha512:") else "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def _machine() -> str:
    names = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
    return names.get(platform.machine(), platform.machine())


def _unknown(reference: Reference) -> RefusedError:
    return RefusedError(
        f"the image {reference} is not known to its registry: check name and tag", reason=Reason.IMAGE_PULL
    )


def _malformed(reference: Reference, why: str) -> PermanentError:
    return PermanentError(f"the image {reference} cannot be used: {why}", reason=Reason.IMAGE_PULL)
