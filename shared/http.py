"""What the HTTP services share: problem documents (RFC 9457), JSON bodies, idempotent creates."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import pydantic
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError

from shared.db.database import Database, Transaction
from shared.errors import PermanentError, TemporaryError, UserError
from shared.log import get_logger
from shared.text import fit, is_fit, may_be_unfit
from shared.vault import Vault

Model = TypeVar("Model", bound=pydantic.BaseModel)
JSON = "application/json"
PROBLEM = "application/problem+json"
MAX_BODY = 1024 * 1024
"""Bytes of a request body. Files are not sent through the API."""

STUCK_SECONDS = 300.0
"""A reader of a long answer that takes nothing for so long is let go."""
LINGER_SECONDS = 2.0
"""How long a sender whose body cannot be read may go on sending, so that it gets to reading the answer."""

_PROBLEM_HEADERS = {401: {"WWW-Authenticate": 'Bearer realm="hubflow"'}, 429: {"Retry-After": "10"}}
"""By status, of problem documents."""
_READ_HEADERS = (
    "authorization", "hubflow-", "idempotency-key", "last-event-id", "webhook-", "x-hub", "x-gitea-", "x-github-",
)  # fmt: skip
"""Headers whose text is used, in lower case. Others may hold what they like."""

_log = get_logger("http")


_BEGUN: web.RequestKey[web.StreamResponse] = web.RequestKey("begun", web.StreamResponse)
"""The answer whose headers are out."""


@web.middleware
async def problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn every error into a problem document; bugs get an id that is in the log, and no trace goes out.

    An answer that has begun is broken off: the reader sees that it is not whole, and no word of ours gets into it.
    """
    answer = await _answer(request, handler)
    if _BEGUN not in request and isinstance(request.content.exception(), web.RequestPayloadError):
        await _send_last(request, answer)
    return answer


async def _answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        _check_text(request)
        return await handler(request)
    except (ConnectionResetError, TimeoutError):
        raise
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _problem_of(error, request)
    except Exception as error:
        answer = _problem_of(error, request)
        begun: web.StreamResponse | None = request.get(_BEGUN)
        if begun is None:
            return answer
        if request.transport is not None:
            request.transport.close()
        return begun


async def send_pieces(
    request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Send a body as it comes. The first piece is had before the answer begins, so that what cannot be had is told with a
    status: raises what the pieces raise. Where fewer bytes come than the answer's `content_length` has announced, the
    connection is closed: the reader must see a broken answer, and not wait for the rest."""
    first = await anext(pieces, b"")
    missing = (response.content_length or 0) - len(first)
    await response.prepare(request)
    await response.write(first)
    async for piece in pieces:
        await response.write(piece)
        missing -= len(piece)
    if missing > 0 and request.transport is not None:
        request.transport.close()
    await response.write_eof()
    return response


async def write(request: web.Request, response: web.StreamResponse, piece: bytes) -> None:
    """Send a part of a long answer. Raises ConnectionError for a reader that has gone, or takes nothing for STUCK_SECONDS;
    its connection is ended then, and what it has not taken forgotten."""
    try:
        async with asyncio.timeout(STUCK_SECONDS):
            await response.write(piece)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the reader takes nothing") from None


async def note_begun(request: web.Request, response: web.StreamResponse) -> None:
    """For `Application.on_response_prepare`."""
    request[_BEGUN] = response


def _problem_of(error: Exception, request: web.Request) -> web.Response:
    if isinstance(error, UserError):
        return problem(error.status, error.code, str(error), hint=error.hint, **error.details)
    if isinstance(error, TemporaryError):
        _log.warning("request not served", path=request.path, error=str(error))
        return problem(
            503, "unavailable", "a part of Hubflow does not answer at the moment", hint="try again in a few seconds"
        )
    if isinstance(error, PermanentError):
        return problem(422, error.reason, str(error))
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return problem(413, "body-too-large", f"the body is larger than {MAX_BODY} bytes")
    if isinstance(error, web.RequestPayloadError):
        return _unreadable(request, error)
    if isinstance(error, web.HTTPException):
        return problem(
            error.status, error.reason.lower().replace(" ", "-"), f"{error.reason}: {request.method} {request.path}"
        )
    incident = uuid.uuid4().hex[:12]
    _log.error("request failed", path=request.path, incident=incident, exc_info=error)
    return problem(500, "internal", "something went wrong in Hubflow", hint=f"tell the operator: incident {incident}")


def _unreadable(request: web.Request, error: web.RequestPayloadError) -> web.Response:
    if isinstance(error.__cause__, ContentEncodingError):
        encoding = request.headers.get("Content-Encoding", "")
        detail, hint = (
            f"the body is not {encoding}, as its Content-Encoding says",
            "encode it, or leave out that header",
        )
    else:
        detail, hint = "the body is not what its headers say (encoding or length)", "send it as it is"
    return problem(400, "invalid-body", detail, hint=hint)


async def _send_last(request: web.Request, response: web.StreamResponse) -> None:
    """Send the answer to a body that aiohttp could not read.

    The rest of the connection cannot be read either. Closed at once, with bytes still on their way, it would be reset, and the
    sender would never see the answer: our side of it is closed, and the sender has a moment to close its own.
    """
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    request.content.feed_eof()  # else aiohttp goes on reading, fails, and logs that as a bug
    with contextlib.suppress(TimeoutError, OSError):
        if request.transport is not None and request.transport.can_write_eof():
            request.transport.write_eof()
        async with asyncio.timeout(LINGER_SECONDS):
            while request.transport is not None:  # noqa: ASYNC110 -- aiohttp wakes nobody when the connection ends
                await asyncio.sleep(0.01)


class _Provoked(logging.Filter):
    """Takes out what any stranger can provoke, and aiohttp logs as if it were a bug, with dozens of lines of trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError):
            _log.debug("request not understood", error=str(error))
            return False
        return True


_PROVOKED = _Provoked()


def server_logger() -> logging.Logger:
    """Where an HTTP server of ours logs what happens outside of requests' handlers."""
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(_PROVOKED)  # the same twice is once
    return logger


def _check_text(request: web.Request) -> None:
    """Raise UserError for text that no database and no container takes: NUL characters, and bytes that are not UTF-8."""
    for text in (request.path, *request.query, *request.query.values()):
        if not is_fit(text):
            raise UserError("the address holds a NUL character or bytes that are not UTF-8", code="invalid-address")
    for name, value in request.headers.items():
        if name.lower().startswith(_READ_HEADERS) and not is_fit(value):
            raise UserError(f"the header {name} holds bytes that are not UTF-8", code="invalid-header")


def problem(status: int, code: str, detail: str, *, hint: str = "", **more: Any) -> web.Response:
    """A problem document: {status, code, title, detail, hint?, ...}."""
    document = {
        "type": f"about:blank#{code}",
        "status": status,
        "code": code,
        "title": code.replace("-", " "),
        "detail": detail,
    }
    if hint:
        document["hint"] = hint
    return web.json_response(
        {**document, **more}, status=status, content_type=PROBLEM, headers=_PROBLEM_HEADERS.get(status), dumps=dumps
    )


def dumps(value: Any) -> str:
    """JSON with UUIDs and times as text."""
    return json.dumps(value, default=_plain, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, frozenset | set | tuple):
        return sorted(value)
    return str(value)


def quoted(part: str) -> str:
    """A name as one part of a path."""
    return quote(part, safe="")


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response(value, status=status, headers=headers, dumps=dumps)


async def read_body(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as `model`. Raises UserError that lists every fault with its place."""
    raw = await request.read()
    if may_be_unfit(raw):
        _refuse_unfit(raw)
    try:
        return model.model_validate_json(raw or b"{}")
    except pydantic.ValidationError as error:
        faults = [{"at": ".".join(map(str, each["loc"])), "message": each["msg"]} for each in error.errors()]
        first = "; ".join(f"{fault['at'] or 'body'}: {fault['message']}" for fault in faults[:3])
        raise UserError(
            f"the body is not as expected: {first}", code="invalid-body", details={"faults": faults}
        ) from None


def _refuse_unfit(raw: bytes) -> None:
    try:
        document = json.loads(raw)
        unfit = fit(document) != document
    except (ValueError, RecursionError):
        return  # the model says what is wrong with it
    if unfit:
        raise UserError("the body holds a NUL character or half of a surrogate pair", code="invalid-body")


def is_repeatable(request: web.Request) -> bool:
    """Has the request a key by which a repetition of it is known?"""
    return "Idempotency-Key" in request.headers


async def once(
    request: web.Request, database: Database, tenant: str,
    create: Callable[[Transaction], Awaitable[tuple[int, Any]]],
    *, vault: Vault | None = None,
) -> web.Response:  # fmt: skip
    """Run `create` (status and answer) in a transaction; with an Idempotency-Key, a repeated request gets the first answer.

    The key is kept with a digest of the request: the same key for another request is refused with 422. With `vault` the
    answer is kept encrypted, for those that hold a secret.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        async with database.transaction() as tx:
            status, answer = await create(tx)
        return reply(answer, status)
    if not 0 < len(key) <= 255:
        raise UserError("Idempotency-Key must have 1 to 255 characters", code="invalid-idempotency-key")
    digest = hashlib.sha256(f"{request.method} {request.path}\n".encode() + await request.read()).digest()
    async with database.transaction() as tx:
        # The lock makes a second request with the same key wait for the first one's answer.
        await tx.connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"idempotency {tenant} {key}"
        )
        row = await tx.connection.fetchrow(
            "SELECT request_hash, status, response FROM idempotency_keys WHERE tenant = $1 AND key = $2", tenant, key
        )
        if row is None:
            status, answer = await create(tx)
            answer = json.loads(dumps(answer))
            await tx.connection.execute(
                "INSERT INTO idempotency_keys (tenant, key, request_hash, status, response) VALUES ($1, $2, $3, $4, $5)",
                tenant, key, digest, status, answer if vault is None else {"sealed": vault.encrypt(dumps(answer)).decode()},
            )  # fmt: skip
            return reply(answer, status)
    if row["request_hash"] != digest:
        raise UserError(
            "this Idempotency-Key was used for another request", code="idempotency-key-reused", status=422,
            hint="use a new key for a new request",
        )  # fmt: skip
    answer = row["response"]
    if vault is not None:
        answer = json.loads(vault.decrypt(answer["sealed"].encode()))
    return reply(answer, row["status"], {"Idempotency-Replayed": "true"})
