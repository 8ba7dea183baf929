"""The Kubernetes API as the runtime uses it: plain JSON over one aiohttp session, paced, counted, and tried again.

The generated models of kubernetes-asyncio are not used: they take longer to build than the API server needs to answer, and a
watch over ten thousand pods would be all models. Where the server is, and who we are, is in `kubernetes_access`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from prometheus_client import Counter as Metric

from shared.errors import TemporaryError, UnavailableError
from shared.runtime.kubernetes_access import Access, Server, find_server

CLOCK_EVERY = 10.0
"""Seconds after which the API server's clock is looked at again, at the next answer."""
PATIENCE = 10.0
"""Seconds that one call is tried again for, before its caller hears of it (T90)."""
LONGEST_PAUSE = 3.0
TIMEOUT = 30.0
UNUSED = 60.0
"""Seconds for which a connection stays open that nobody uses: a new one costs both sides a handshake."""
PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""After how many seconds without a byte the system asks whether the other end is there, how often again, and how many times."""
BUFFER = 1 << 21
"""Bytes of an answer that are taken in before they are asked for, twice as many at most: lists of pods are large."""
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
JSON = "application/json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
"""Of an object in the answer only the metadata."""
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
"""Of a list what `kubectl get -o wide` shows."""
_AGAIN = frozenset({429, 500, 502, 503, 504})
_CALLS = Metric(
    "hubflow_kubernetes_calls", "Calls of the Kubernetes API, tried again or not", ["verb", "kind", "status"]
)


class ApiError(Exception):
    """The API server has refused. `status` is the HTTP status, `reason` the server's word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """One API server. All calls raise ApiError for refusals and TemporaryError while it does not answer."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._pace = _Pace(access.calls_per_second)
        self._server: Server | None = None
        self._session: aiohttp.ClientSession | None = None
        self._finding = asyncio.Lock()
        self.counted: Counter[tuple[str, str]] = Counter()
        """(verb, kind) -> calls that were answered; for those who count what a job costs."""
        self._told: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        """The time by the API server's clock, to a second: what it writes into objects is compared with this, not with ours."""
        if self._told is None:
            return datetime.now(UTC)
        then, at = self._told
        return then + timedelta(seconds=time.monotonic() - at)

    def _hear_time(self, told: str | None) -> None:
        now = time.monotonic()
        if told and (self._told is None or now - self._told[1] > CLOCK_EVERY):
            with contextlib.suppress(ValueError):
                self._told = parsedate_to_datetime(told), now

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Any:
        """One request with a JSON answer; tried again while the server is busy or away. All our writes may be repeated.

        `accept`: JSON, METADATA or TABLE.
        """
        began, pause = time.monotonic(), 0.1
        while True:
            try:
                async with self.request(
                    method, path, query=query, body=body, content_type=content_type, accept=accept
                ) as response:
                    return json.loads(await response.read())
            except _BusyError as error:
                if time.monotonic() - began > PATIENCE:
                    raise UnavailableError(str(error), delay=error.delay) from error
                await asyncio.sleep(min(LONGEST_PAUSE, max(error.delay or 0.0, pause * (0.5 + random.random()))))  # noqa: S311
                pause *= 2

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
        idle: float | None = None,
        buffer: int = BUFFER,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One try. `idle`: an endless answer, which is broken off after so many seconds without a byte. `buffer`: as BUFFER."""
        await self._pace.wait()
        server = await self._known()
        limits = aiohttp.ClientTimeout(total=None if idle else TIMEOUT, sock_connect=10, sock_read=idle or TIMEOUT)
        headers, data = {"Accept": accept}, None
        if token := await server.token():
            headers["Authorization"] = token
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), content_type
        kind = _kind_of(path)
        try:
            async with self._opened().request(
                method, server.address.rstrip("/") + path, params=query, data=data, headers=headers, timeout=limits,
                read_bufsize=buffer, ssl=server.tls, proxy=server.proxy, server_hostname=server.name,
            ) as response:  # fmt: skip
                self.counted[method, kind] += 1
                self._hear_time(response.headers.get("Date"))
                _CALLS.labels(method, kind, response.status).inc()
                if response.status >= 400:
                    await self._refuse(response, server)
                yield response
        except RuntimeError as error:
            if "used by transport" not in str(error):
                raise
            # uvloop, of a connection that was given up half-way and whose number the system has given to the next one.
            raise _BusyError(f"no connection to the API server at {server.address}: {error}") from error
        except aiohttp.ClientConnectorCertificateError as error:
            # Its authority may have been renewed, and our file of it with it.
            self._doubt(server)
            raise _BusyError(f"the API server at {server.address} is not who we know: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise _BusyError(f"the API server at {server.address} does not answer: {why}") from error

    async def _refuse(self, response: aiohttp.ClientResponse, server: Server) -> None:
        text = await response.text(errors="replace")
        try:
            status = json.loads(text)
            reason, message = str(status.get("reason", "")), str(status.get("message", ""))
        except (ValueError, AttributeError):
            reason, message = "", text.strip()[:500]
        if response.status == 401:
            # A token or certificate may have changed since it was read.
            self._doubt(server)
            raise _BusyError(f"the API server at {server.address} does not know us (401): {message}")
        if response.status in _AGAIN and reason != "Timeout":
            after = response.headers.get("Retry-After", "0")
            raise _BusyError(
                f"the API server at {server.address} is busy ({response.status} {reason}): {message}",
                delay=float(after) if after.isdigit() else None,
            )
        raise ApiError(response.status, reason, message)

    async def _known(self) -> Server:
        """Where the server is and who we are, by the configuration of now if that of before is in doubt."""
        async with self._finding:
            if self._server is None:
                self._server = await find_server(self._access)
            return self._server

    def _doubt(self, server: Server) -> None:
        """Whoever has found this server reads the configuration again; what is being read from it goes on."""
        if self._server is server:
            self._server = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No limit of connections: each log that is followed and each watch occupies one.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=UNUSED, socket_factory=_probed_socket)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def close(self) -> None:
        """Close all connections; a later call opens them anew, with the configuration of then."""
        session, self._session, self._server = self._session, None, None
        if session is not None:
            await session.close()


def _probed_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """One that notices within a minute that nobody is at its other end any more: a job may be silent for hours."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):  # not all systems have all of them
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class _BusyError(TemporaryError):
    """Worth another try soon. `delay`: what the server asked for."""


class _Pace:
    """Lets so many calls a second through, twice as many at once after a rest."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = 0.0

    async def wait(self) -> None:
        if self._rate <= 0:
            return
        now = time.monotonic()
        # `_next` is when the bucket is full again; each call moves it by one.
        self._next = max(self._next, now) + 1 / self._rate
        if (late := self._next - now - 2.0) > 0:
            await asyncio.sleep(late)


def _kind_of(path: str) -> str:
    """`pods`, `secrets`, `pods/log`, ... of a path, for counting."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    return "/".join(parts[::2]) or "other"
