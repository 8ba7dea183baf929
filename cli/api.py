"""Talking to the server: plain `http.client`, because it is there in milliseconds and one request is all most commands make.

Every answer that is not a success becomes a `Refused` with what the problem document (RFC 9457) says: what happened, and a
hint. Creates carry an Idempotency-Key, so that a request whose answer was lost may be sent again.
"""

from __future__ import annotations

import json
import ssl
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import click

from cli.context import Context, resolve
from cli.failure import UNREACHABLE, USAGE, Failure

TIMEOUT = 30.0
"""Seconds for an answer to begin; long polls add what they ask the server to wait."""
API = "/api/v1"
_CHUNK = 1 << 16


class Unreachable(Failure):
    """The server does not answer."""


class Refused(Failure):
    """The server answered with a problem. `status`: HTTP status; `code`: stable; `document`: the whole problem."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status = status
        self.document = document
        self.code = str(document.get("code") or "")
        message = str(document.get("detail") or document.get("title") or f"the server answered with status {status}")
        super().__init__(message, hint=str(document.get("hint") or ""), exit_code=UNREACHABLE)


class Api:
    """One connection to one server. Not for several threads: each takes an Api of its own (`again`)."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._connection: HTTPConnection | None = None

    def again(self) -> Api:
        """Another connection to the same server."""
        return Api(self.context)

    def get(self, *path: str, **query: Any) -> Any:
        """A JSON document. Parts of `path` are quoted; those of `query` that are None or "" are left out."""
        return self.call("GET", *path, query=query)

    def wait(self, seconds: float, *path: str, **query: Any) -> Any:
        """A GET that the server may hold for up to `seconds`."""
        return self.call("GET", *path, query={**query, "wait": f"{seconds:.0f}"}, timeout=TIMEOUT + seconds)

    def create(self, *path: str, body: Any = None) -> Any:
        """A POST with an Idempotency-Key of its own."""
        return self.call(
            "POST", *path, body={} if body is None else body, headers={"Idempotency-Key": uuid.uuid4().hex}
        )

    def pages(self, *path: str, limit: int, **query: Any) -> list[dict[str, Any]]:
        """Up to `limit` items of a list, over as many pages as that takes."""
        found: list[dict[str, Any]] = []
        cursor = None
        while len(found) < limit:
            page = self.get(*path, **query, limit=min(limit - len(found), 500), cursor=cursor)
            items = page["items"] if isinstance(page, dict) else page
            found += items
            cursor = page.get("next_cursor") if isinstance(page, dict) else None
            if not cursor or not items:
                break
        return found[:limit]

    def call(
        self, method: str, *path: str, query: Mapping[str, Any] | None = None, body: Any = None,
        headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT,
    ) -> Any:  # fmt: skip
        """One request. Returns the JSON document, the text of another kind of answer, or None for an empty one.

        `body`: bytes or text are sent as they are, anything else as JSON. Raises Unreachable or Refused.
        """
        response = self._send(method, path, query, body, headers, timeout)
        try:
            data = response.read()
        except (OSError, HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None
        if not data:
            return None
        if "json" in response.headers.get("Content-Type", ""):
            return _json(data)
        return data.decode("utf-8", "replace")

    @contextmanager
    def stream(self, *path: str, query: Mapping[str, Any] | None = None, timeout: float = TIMEOUT) -> Iterator[Stream]:
        """An answer that is read as it comes. `timeout`: seconds of silence that are borne."""
        response = self._send("GET", path, query, None, None, timeout)
        try:
            yield Stream(self, response)
        finally:
            self.close()

    @contextmanager
    def download(self, *path: str, query: Mapping[str, Any] | None = None) -> Iterator[Stream]:
        """A file, wherever the server sends us for it; our token goes to the server only."""
        response = self._send("GET", path, query, None, None, TIMEOUT)
        elsewhere: HTTPConnection | None = None
        try:
            location = response.headers.get("Location")
            if response.status in {301, 302, 303, 307, 308} and location:
                response.read()
                elsewhere, response = self._fetch(location)
            yield Stream(self, response)
        finally:
            self.close()
            if elsewhere is not None:
                elsewhere.close()

    def _fetch(self, url: str) -> tuple[HTTPConnection, HTTPResponse]:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        connection = _connection(origin)
        connection.timeout = TIMEOUT
        try:
            connection.request("GET", url.removeprefix(origin) or "/")
            response = connection.getresponse()
        except (OSError, HTTPException, UnicodeError) as error:
            connection.close()
            raise Unreachable(
                f"the object storage at {origin} does not answer: {error}",
                hint="is it reachable from here? (HUBFLOW_S3_ENDPOINT of the server)", exit_code=UNREACHABLE,
            ) from None  # fmt: skip
        if response.status >= 300:
            connection.close()
            raise Failure(
                f"the object storage at {origin} answers {response.status} {response.reason}", exit_code=UNREACHABLE
            )
        return connection, response

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(
        self, method: str, path: tuple[str, ...], query: Mapping[str, Any] | None, body: Any,
        headers: Mapping[str, str] | None, timeout: float,
    ) -> HTTPResponse:  # fmt: skip
        target = _target(path, query)
        payload, sent = self._prepare(body, headers)
        safe = method != "POST" or "Idempotency-Key" in sent
        for last in (False, True):
            kept_open = self._connection is not None
            try:
                response = self._request(method, target, payload, sent, timeout)
                break
            except (
                OSError,
                HTTPException,
                UnicodeError,
            ) as error:  # UnicodeError: a host that no name server can be asked for
                self.close()
                # A connection that was kept may have been closed by the other side in the meantime; a fresh one was not.
                stale = kept_open and isinstance(error, (RemoteDisconnected, BrokenPipeError, ConnectionResetError))
                if last or not (stale and safe):
                    raise self._unreachable(error) from None
        if response.status >= 400:
            raise self._refusal(response)
        return response

    def _refusal(self, response: HTTPResponse) -> Refused:
        refused = _refusal(response)
        if refused.status == 401 and self.context.token_from_file:
            refused.hint = (
                f"address and token come from {self.context.file}; is the `hubflow dev` of that folder running, "
                "or another server at its address?"
            )
        return refused

    def _request(
        self, method: str, target: str, payload: bytes | None, headers: Mapping[str, str], timeout: float
    ) -> HTTPResponse:
        if self._connection is None:
            self._connection = _connection(self.context.url)
        self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        self._connection.request(method, target, payload, dict(headers))
        return self._connection.getresponse()

    def _prepare(self, body: Any, more: Mapping[str, str] | None) -> tuple[bytes | None, dict[str, str]]:
        headers = {"Accept": "application/json, */*;q=0.5", "User-Agent": "hubflow-cli", **(more or {})}
        if self.context.token:
            headers["Authorization"] = f"Bearer {self.context.token}"
        if self.context.tenant:
            headers["Hubflow-Tenant"] = self.context.tenant
        if body is None:
            return None, headers
        if isinstance(body, (bytes, str)):
            return body.encode() if isinstance(body, str) else body, headers
        headers.setdefault("Content-Type", "application/json")
        return json.dumps(body).encode(), headers

    def _unreachable(self, error: Exception) -> Unreachable:
        url = self.context.url
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            text = "no answer in time"
        if isinstance(error, ssl.SSLError):
            return Unreachable(
                f"no safe connection to {url}: {text}", hint="check the address; a company's own CA goes in SSL_CERT_FILE",
                exit_code=UNREACHABLE,
            )  # fmt: skip
        hint = (
            f"is `hubflow dev` running? (the address comes from {self.context.file}); `hubflow dev` starts it"
            if self.context.file
            else "check HUBFLOW_URL, and whether the server runs"
        )
        return Unreachable(f"the server at {url} does not answer: {text}", hint=hint, exit_code=UNREACHABLE)


class Stream:
    """The body of an answer, as it comes."""

    def __init__(self, api: Api, response: HTTPResponse) -> None:
        self._api = api
        self._response = response
        self.headers = response.headers

    def chunks(self) -> Iterator[bytes]:
        """Raises Unreachable when the connection breaks, or ends before all that was announced has come."""
        try:
            while chunk := self._response.read1(_CHUNK):
                yield chunk
            if self._response.length:  # http.client takes the end of the connection for that of the answer
                raise ConnectionError(f"its answer broke off, {self._response.length} bytes before the end")
        except (OSError, HTTPException) as error:
            raise self._api._unreachable(error) from None


def _target(path: tuple[str, ...], query: Mapping[str, Any] | None) -> str:
    """Raises Failure for arguments of the command line that are not UTF-8."""
    try:
        return _quoted(path, query)
    except UnicodeEncodeError as error:
        raise Failure(f"{error.object!r} is not UTF-8", exit_code=USAGE) from None


def _quoted(path: tuple[str, ...], query: Mapping[str, Any] | None) -> str:
    target = "/".join([API, *(quote(part, safe="@") for part in path)])
    wanted = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in (query or {}).items()
        if value not in (None, "")
    }
    return f"{target}?{urlencode(wanted, doseq=True)}" if wanted else target


def _connection(url: str) -> HTTPConnection:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.path.strip("/"):
        raise Failure(f"the server's address {url!r} is not of the form http://host:port", exit_code=2)
    return HTTPSConnection(host, port) if parts.scheme == "https" else HTTPConnection(host, port)


def _refusal(response: HTTPResponse) -> Refused:
    try:
        data = response.read(1 << 20)
    except (OSError, HTTPException):
        data = b""
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {
            "detail": f"the server answered with status {response.status} {response.reason}",
            "hint": "is this the address of a Hubflow server?",
        }
    return Refused(response.status, document)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise Failure(
            "the server's answer is not JSON", hint="is this the address of a Hubflow server?", exit_code=UNREACHABLE
        ) from None


def connect() -> Api:
    """The server of the current command."""
    import os
    from pathlib import Path

    options = click.get_current_context().find_root().obj or {}
    return Api(resolve(options, os.environ, Path.cwd()))
