"""The few calls of the Docker Engine API that the docker runtime needs, over a Unix socket or TCP (with TLS).

Straight on aiohttp: logs must come byte for byte, archives as they are, and errors with the engine's own words.
Works with any engine that speaks this API (Docker, Podman, ...); nothing newer than API 1.40 is used.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from shared.errors import ConfigurationError, UnavailableError


class EngineError(Exception):
    """The engine answered with an error. `status` is the HTTP status, the text is the engine's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """One engine. `host`: unix:///path, tcp://host:port or https://host:port.

    `certificates`: folder with ca.pem, cert.pem and key.pem for TLS, as Docker's own client uses it.
    All calls raise EngineError for the engine's refusals and TemporaryError when it does not answer.
    """

    def __init__(self, host: str, certificates: Path | None = None) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._path, self._base = "", "http://engine"
        scheme, _, rest = host.partition("://")
        if scheme == "unix":
            self._path = rest
        elif scheme in {"tcp", "http", "https"} and rest:
            self._base = f"{'https' if certificates or scheme == 'https' else 'http'}://{rest.rstrip('/')}"
        else:
            raise ConfigurationError(
                f"docker host {host!r}: expected unix:///path, tcp://host:port or https://host:port"
            )
        self._certificates = certificates
        self.host = host

    def _connector(self) -> aiohttp.BaseConnector:
        # No limit of connections: each log that is followed and each watch occupies one.
        if self._path:
            return aiohttp.UnixConnector(self._path, limit=0)
        if self._certificates is None:
            return aiohttp.TCPConnector(limit=0)
        context = ssl.create_default_context(cafile=str(self._certificates / "ca.pem"))
        context.load_cert_chain(self._certificates / "cert.pem", self._certificates / "key.pem")
        return aiohttp.TCPConnector(limit=0, ssl=context)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
        sent: asyncio.Event | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; the response is open inside. `timeout`: seconds for all of it, None for endless streams.

        `sent` is set once the request has left this process.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=self._connector(), trace_configs=[_tell_sent()])
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=10)
        send = {"json": body} if body is not None else {"data": data} if data is not None else {}
        try:
            async with self._session.request(
                method,
                f"{self._base}{path}",
                params=query,
                headers=headers,
                timeout=limits,
                trace_request_ctx=sent,
                **send,
            ) as response:
                if response.status >= 400:
                    raise EngineError(response.status, _message(await response.read()))
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UnavailableError(f"the container engine at {self.host} does not answer: {why}") from error

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """One request with a JSON answer, or None if the answer is empty."""
        async with self.request(method, path, **options) as response:
            text = await response.read()
        return json.loads(text) if text.strip() else None

    async def read(self, path: str, limit: int, **options: Any) -> bytes | None:
        """GET a whole body; None if it has more than `limit` bytes."""
        async with self.request("GET", path, **options) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    return None
            return bytes(body)

    async def has_file(self, container: str, path: str) -> bool:
        """Is there such a file in the container, started or not?"""
        try:
            async with self.request("HEAD", f"/containers/{container}/archive", query={"path": path}):
                return True
        except EngineError:
            return False

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def demultiplexed(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The payload of a raw log stream (8 bytes of header per frame: stream number, 0, 0, 0, length), as it comes."""
    rest = b""
    missing = 0
    async for chunk in response.content.iter_any():
        data = rest + chunk
        pieces = []
        # The first piece goes on with the frame that the last chunk has cut; an engine makes a frame of each line.
        position = min(missing, len(data))
        pieces.append(data[:position])
        missing -= position
        while not missing and position + 8 <= len(data):
            start = position + 8
            end = start + int.from_bytes(data[position + 4 : start], "big")
            pieces.append(data[start:end])
            position = min(end, len(data))
            missing = end - position
        rest = data[position:]
        if payload := b"".join(pieces):
            yield payload


async def json_lines(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The documents of a stream of JSON documents (events, progress of a pull), as they come."""
    decoder = json.JSONDecoder()
    buffer = ""
    async for chunk in response.content.iter_any():
        buffer += chunk.decode("utf-8", "surrogateescape")
        while buffer := buffer.lstrip():
            try:
                document, end = decoder.raw_decode(buffer)
            except json.JSONDecodeError:
                break
            buffer = buffer[end:]
            yield document


def _tell_sent() -> aiohttp.TraceConfig:
    async def sent(_session: Any, context: Any, _parameters: Any) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.set()

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(sent)
    return trace


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()[:500]
