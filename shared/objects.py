"""Logs, caches, artifacts and large result documents: any S3, by aiobotocore.

Jobs never hold credentials: they get presigned URLs. These are signed here and not by the client library, because the parts
of a large upload need hundreds of signatures that differ in one number, and because jobs may reach the same S3 by another
address (`job_endpoint`), which is part of what is signed.

botocore is slow to import and slower to make a client (0.5 s together); both happen in the background after opening, and
only in processes that open a store. Errors: KeyError for a key that is not there, TemporaryError for a store that does not
answer, PermanentError (reason ObjectStorage) for one that refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from shared.errors import PermanentError, TemporaryError, UnavailableError
from shared.log import get_logger
from shared.settings import ObjectsSettings

PART_BYTES = 8 * 1024 * 1024
"""Part size of our own uploads; S3 wants at least 5 MiB for all parts but the last."""
LONGEST_LINK = 7 * 24 * 3600
"""Seconds; S3 refuses presigned URLs that live longer."""
_DELETE_AT_ONCE = 1000
_CHUNK_BYTES = 256 * 1024
_TRY_AGAIN = {
    "InternalError", "InternalServerError", "OperationAborted", "RequestTimeout", "RequestTimeTooSkewed", "ServiceUnavailable",
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "500", "502", "503", "504",
}  # fmt: skip
_MISSING = {"NoSuchKey", "404", "NotFound"}

_log = get_logger("objects")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a listing or `head` tells: size in bytes, time of the last write (UTC)."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Multipart:
    """A prepared upload in parts. Part n (from 1): `part_url_template` with `{n}` and `{signature}` (signatures[n - 1])."""

    upload_id: str
    part_url_template: str
    signatures: list[str]
    complete_url: str
    abort_url: str


@dataclass(frozen=True, slots=True)
class PreparedUpload:
    """All that a job needs to upload one object without knowing how large it will be."""

    key: str
    put_url: str
    part_bytes: int
    multipart: Multipart | None

    def document(self) -> dict[str, Any]:
        """The `upload` of a job document (see wrapper/README.md)."""
        parts = self.multipart
        return {
            "put_url": self.put_url,
            "part_bytes": self.part_bytes,
            "multipart": None
            if parts is None
            else {
                "part_url_template": parts.part_url_template,
                "signatures": parts.signatures,
                "complete_url": parts.complete_url,
                "abort_url": parts.abort_url,
            },
        }


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys at one moment; `token` for temporary ones."""

    access_key: str
    secret_key: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Signer:
    """Makes presigned URLs (AWS Signature Version 4, query string, unsigned payload) for one bucket, path style."""

    endpoint: str
    region: str
    bucket: str
    credentials: Credentials = field(repr=False)

    def url(self, method: str, key: str, expires: int, now: datetime, **query: str) -> str:
        """A URL that lets anybody do `method` on `key` for `expires` seconds (at most a week)."""
        path, canonical_query = self._canonical(key, expires, now, query)
        signature = self._signature_of(method, path, now)(canonical_query)
        return f"{self._base()}{path}?{canonical_query}&X-Amz-Signature={signature}"

    def parts(self, key: str, upload_id: str, parts: int, expires: int, now: datetime) -> tuple[str, list[str]]:
        """(template, signatures) of `parts` part uploads: 10 microseconds a part, as only the number differs."""
        path, canonical_query = self._canonical(key, expires, now, {"partNumber": "\0", "uploadId": upload_id})
        before, after = canonical_query.split(quote("\0"))
        sign = self._signature_of("PUT", path, now)
        signatures = [sign(f"{before}{number}{after}") for number in range(1, parts + 1)]
        return f"{self._base()}{path}?{before}{{n}}{after}&X-Amz-Signature={{signature}}", signatures

    def _base(self) -> str:
        address = urlsplit(self.endpoint)
        return f"{address.scheme}://{address.netloc}"

    def _canonical(self, key: str, expires: int, now: datetime, query: dict[str, str]) -> tuple[str, str]:
        prefix = urlsplit(self.endpoint).path.rstrip("/")
        path = f"{prefix}/{quote(self.bucket, safe='')}/{quote(key, safe='/~')}"
        fields = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{self.credentials.access_key}/{self._scope(now)}",
            "X-Amz-Date": now.strftime("%Y%m%dT%H%M%SZ"),
            "X-Amz-Expires": str(max(1, min(int(expires), LONGEST_LINK))),
            "X-Amz-SignedHeaders": "host",
            **({"X-Amz-Security-Token": self.credentials.token} if self.credentials.token else {}),
            **query,
        }
        return path, "&".join(f"{quote(name, safe='~')}={quote(fields[name], safe='~')}" for name in sorted(fields))

    def _scope(self, now: datetime) -> str:
        return f"{now:%Y%m%d}/{self.region}/s3/aws4_request"

    def _signing_key(self, now: datetime) -> bytes:
        key = f"AWS4{self.credentials.secret_key}".encode()
        for word in self._scope(now).split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        return key

    def _signature_of(self, method: str, path: str, now: datetime) -> Callable[[str], str]:
        """A function from a canonical query to its signature, with all that does not depend on the query done before."""
        before = f"{method}\n{path}\n"
        after = f"\nhost:{urlsplit(self.endpoint).netloc}\n\nhost\nUNSIGNED-PAYLOAD"
        head = f"AWS4-HMAC-SHA256\n{now:%Y%m%dT%H%M%SZ}\n{self._scope(now)}\n"
        signing_key = self._signing_key(now)

        def signature(canonical_query: str) -> str:
            digest = hashlib.sha256(f"{before}{canonical_query}{after}".encode()).hexdigest()
            return hmac.digest(signing_key, (head + digest).encode(), "sha256").hex()

        return signature


class ObjectStore:
    """One bucket of one S3. Open with `open_object_store`; all methods may be called concurrently."""

    def __init__(self, settings: ObjectsSettings) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._opening: asyncio.Task[Any] | None = None
        self._session: Any = None

    # ------------------------------------------------------------ whole objects

    async def ping(self) -> None:
        """Raise TemporaryError or PermanentError if the bucket cannot be reached."""
        client = await self._client()
        try:
            with _translated("the bucket"):
                await client.head_bucket(Bucket=self._settings.bucket)
        except KeyError:
            bucket = self._settings.bucket
            raise PermanentError(f"there is no bucket {bucket!r} any more", reason="ObjectStorage") from None

    async def put(self, key: str, body: bytes, content_type: str = "application/octet-stream") -> None:
        """Write an object, replacing the one of before; whole or not at all."""
        client = await self._client()
        with _translated(key):
            await client.put_object(Bucket=self._settings.bucket, Key=key, Body=body, ContentType=content_type)

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """Write an object of unknown size with memory for one part; returns its size in bytes.

        Nothing is stored if `chunks` raises.
        """
        client = await self._client()
        buffer = bytearray()
        upload: _Upload | None = None
        size = 0
        try:
            async for chunk in chunks:
                buffer += chunk
                size += len(chunk)
                while len(buffer) > PART_BYTES:
                    upload = upload or await _Upload.begin(client, self._settings.bucket, key)
                    await upload.part(bytes(buffer[:PART_BYTES]))
                    del buffer[:PART_BYTES]
            if upload is None:
                await self.put(key, bytes(buffer))
            else:
                await upload.part(bytes(buffer))
                await upload.complete()
        except BaseException:
            if upload is not None:
                await asyncio.shield(self.abort_upload(key, upload.upload_id))
            raise
        return size

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object, or at most `length` bytes of it from byte `offset`. KeyError if it is not there.

        An offset at or behind its end gives b"".
        """
        if length == 0:
            return b""
        return b"".join([chunk async for chunk in self.stream(key, offset, length)])

    async def stream(self, key: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The same in chunks, as they come."""
        client = await self._client()
        wanted = {} if offset == 0 and length is None else {"Range": _range(offset, length)}
        with _translated(key) as problem:
            answer = await client.get_object(Bucket=self._settings.bucket, Key=key, **wanted)
        if problem.past_end:
            return
        async with answer["Body"] as body:
            with _translated(key):
                async for chunk in body.iter_chunks(_CHUNK_BYTES):
                    yield chunk

    async def head(self, key: str) -> StoredObject | None:
        """Size and time of an object, None if it is not there."""
        client = await self._client()
        try:
            with _translated(key):
                answer = await client.head_object(Bucket=self._settings.bucket, Key=key)
        except KeyError:
            return None
        return StoredObject(key, answer["ContentLength"], answer["LastModified"])

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """All objects whose key begins with `prefix`, in the order of their keys."""
        client = await self._client()
        with _translated(prefix):
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._settings.bucket, Prefix=prefix)
            async for page in pages:
                for entry in page.get("Contents", ()):
                    yield StoredObject(entry["Key"], entry["Size"], entry["LastModified"])

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects. Those that are not there are no error."""
        client = await self._client()
        waiting = list(keys)
        for start in range(0, len(waiting), _DELETE_AT_ONCE):
            batch = [{"Key": key} for key in waiting[start : start + _DELETE_AT_ONCE]]
            with _translated(waiting[start]):
                answer = await client.delete_objects(
                    Bucket=self._settings.bucket, Delete={"Objects": batch, "Quiet": True}
                )
            failed = [error for error in answer.get("Errors", ()) if error.get("Code") not in _MISSING]
            if failed:
                first = failed[0]
                raise TemporaryError(
                    f"object storage did not remove {len(failed)} objects, {first.get('Key')} among them: "
                    f"{first.get('Code')} {first.get('Message', '')}"
                )

    async def delete_prefix(self, prefix: str) -> int:
        """Remove all objects below `prefix`, which must end with `/`; returns how many there were."""
        if not prefix.strip("/") or not prefix.endswith("/"):
            raise ValueError(f"{prefix!r} would remove more than one folder: it must name one and end with /")
        removed = 0
        batch: list[str] = []
        async for found in self.list(prefix):
            batch.append(found.key)
            if len(batch) == _DELETE_AT_ONCE:
                await self.delete(batch)
                removed += len(batch)
                batch = []
        await self.delete(batch)
        return removed + len(batch)

    # ------------------------------------------------------------ for jobs

    async def presign_get(self, key: str, expires: float, filename: str = "") -> str:
        """A URL to read `key` for `expires` seconds (at most a week). `filename`: what a browser saves it as."""
        query = {"response-content-disposition": _attachment(filename)} if filename else {}
        return (await self._signer()).url("GET", key, int(expires), _now(), **query)

    async def presign_put(self, key: str, expires: float) -> str:
        """A URL to write `key` in one piece (at most 5 GiB)."""
        return (await self._signer()).url("PUT", key, int(expires), _now())

    async def create_upload(self, key: str, part_bytes: int, parts: int, expires: float) -> PreparedUpload:
        """Prepare an upload of up to `parts` * `part_bytes` bytes. `parts` 0: only in one piece, without asking the store."""
        signer = await self._signer()
        put_url = signer.url("PUT", key, int(expires), _now())
        if parts == 0:
            return PreparedUpload(key, put_url, part_bytes, None)
        client = await self._client()
        with _translated(key):
            answer = await client.create_multipart_upload(Bucket=self._settings.bucket, Key=key)
        upload_id = str(answer["UploadId"])
        now = _now()
        template, signatures = signer.parts(key, upload_id, parts, int(expires), now)
        complete_url = signer.url("POST", key, int(expires), now, uploadId=upload_id)
        abort_url = signer.url("DELETE", key, int(expires), now, uploadId=upload_id)
        multipart = Multipart(upload_id, template, signatures, complete_url, abort_url)
        return PreparedUpload(key, put_url, part_bytes, multipart)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Give up an upload in parts and free what it holds. One that is over or unknown is no error."""
        client = await self._client()
        with contextlib.suppress(KeyError), _translated(key):
            await client.abort_multipart_upload(Bucket=self._settings.bucket, Key=key, UploadId=upload_id)

    # ------------------------------------------------------------ inside

    def begin_opening(self) -> asyncio.Task[Any]:
        """Make the client in the background."""
        self._opening = asyncio.ensure_future(self._open())
        self._opening.add_done_callback(_note_failure)
        return self._opening

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self._stack.aclose()

    async def _client(self) -> Any:
        opening = self._opening
        if opening is None or (opening.done() and opening.exception() is not None):
            opening = self.begin_opening()
        return await asyncio.shield(opening)

    async def _open(self) -> Any:
        settings = self._settings
        # The import and the reading of botocore's large service files would stop everything else for half a second.
        self._session, config = await asyncio.to_thread(_load_botocore)
        client = await self._stack.enter_async_context(
            self._session.create_client(
                "s3",
                region_name=settings.region,
                endpoint_url=settings.endpoint or None,
                aws_access_key_id=settings.access_key or None,
                aws_secret_access_key=settings.secret_key or None,
                config=config,
            )
        )
        await _ensure_bucket(client, settings)
        return client

    async def _signer(self) -> Signer:
        settings = self._settings
        endpoint = settings.job_endpoint or settings.endpoint or f"https://s3.{settings.region}.amazonaws.com"
        credentials = Credentials(settings.access_key, settings.secret_key)
        if not settings.access_key:
            credentials = await self._ambient_credentials()
        return Signer(endpoint, settings.region, settings.bucket, credentials)

    async def _ambient_credentials(self) -> Credentials:
        """Keys that the cloud gives to this process (environment, instance role), renewed by botocore."""
        await self._client()
        found = await self._session.get_credentials()
        if found is None:
            raise PermanentError(
                "no S3 credentials: set HUBFLOW_S3_ACCESS_KEY and HUBFLOW_S3_SECRET_KEY, or run with a role",
                reason="ObjectStorage",
            )
        keys = await found.get_frozen_credentials()
        return Credentials(keys.access_key, keys.secret_key, keys.token or "")


@contextlib.asynccontextmanager
async def open_object_store(settings: ObjectsSettings) -> AsyncIterator[ObjectStore]:
    """The store of these settings. Returns at once: connecting, and making the bucket, go on in the background.

    A store that does not answer is told by the first method called, and tried again by the next.
    """
    store = ObjectStore(settings)
    store.begin_opening()
    try:
        yield store
    finally:
        await store.close()


class _Upload:
    """Our own upload in parts."""

    def __init__(self, client: Any, bucket: str, key: str, upload_id: str) -> None:
        self._client = client
        self._place = {"Bucket": bucket, "Key": key, "UploadId": upload_id}
        self.upload_id = upload_id
        self._key = key
        self._tags: list[str] = []

    @classmethod
    async def begin(cls, client: Any, bucket: str, key: str) -> _Upload:
        with _translated(key):
            answer = await client.create_multipart_upload(Bucket=bucket, Key=key)
        return cls(client, bucket, key, answer["UploadId"])

    async def part(self, body: bytes) -> None:
        with _translated(self._key):
            answer = await self._client.upload_part(**self._place, PartNumber=len(self._tags) + 1, Body=body)
        self._tags.append(answer["ETag"])

    async def complete(self) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self._tags, 1)]
        with _translated(self._key):
            await self._client.complete_multipart_upload(**self._place, MultipartUpload={"Parts": parts})


def _load_botocore() -> tuple[Any, Any]:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    session = get_session()
    loader = session.get_component("data_loader")
    for kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
        loader.load_service_model("s3", kind)
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        # A short hiccup is bridged here; for more, whoever called has delays of its own.
        retries={"mode": "standard", "max_attempts": 2},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=64,
        # Newer checksums are not known to every S3; TLS and the digests of artifacts cover the way.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session, config


async def _ensure_bucket(client: Any, settings: ObjectsSettings) -> None:
    from botocore.exceptions import ClientError

    try:
        with _translated(settings.bucket):
            await client.head_bucket(Bucket=settings.bucket)
        return
    except KeyError:
        _log.info("bucket made", bucket=settings.bucket)
    place = {}
    if not settings.endpoint and settings.region != "us-east-1":
        place = {"CreateBucketConfiguration": {"LocationConstraint": settings.region}}
    with _translated(settings.bucket):
        try:
            await client.create_bucket(Bucket=settings.bucket, **place)
        except ClientError as error:
            # Another process was faster.
            if error.response["Error"].get("Code") not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                raise


@dataclass(slots=True)
class _Problem:
    past_end: bool = False


@contextlib.contextmanager
def _translated(key: str) -> Iterator[_Problem]:
    """Turn the driver's errors into ours; see the module's docstring."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    problem = _Problem()
    try:
        yield problem
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in {"InvalidRange", "416"} or status == 416:
            problem.past_end = True
            return
        raise _our_error(error, code, status, key) from error
    except (BotoCoreError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise UnavailableError(f"object storage does not answer: {error or type(error).__name__}") from error


def _our_error(error: Exception, code: str, status: int, key: str) -> Exception:
    if code in _MISSING or code == "NoSuchUpload":
        return KeyError(key)
    if code in _TRY_AGAIN or status >= 500 or status == 429:
        return UnavailableError(f"object storage cannot serve {key} now: {code} {error}")
    return PermanentError(
        f"object storage refused {key}: {error}; check bucket, keys and region (HUBFLOW_S3_*)", reason="ObjectStorage"
    )


def _note_failure(opening: asyncio.Task[Any]) -> None:
    if not opening.cancelled() and (error := opening.exception()) is not None:
        _log.warning("object storage not opened, the next use tries again", error=str(error))


def _now() -> datetime:
    return datetime.now(UTC)


def _range(offset: int, length: int | None) -> str:
    return f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + length - 1}"


def _attachment(filename: str) -> str:
    return f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
