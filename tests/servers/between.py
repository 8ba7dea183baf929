"""What stands between the runtime and a real API server and makes the faults that one cannot be made to show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.cluster import NODE_ADDRESS

_SESSION = web.AppKey("session", aiohttp.ClientSession)


class Between:
    """Hands everything on, but for the faults that are switched on."""

    def __init__(self, pki: Path) -> None:
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self.url = ""
        self.refuse: list[int] = []
        """Statuses of the next answers, in order."""
        self.refuse_watches = 0
        """Status of all watches while it is not 0."""
        self.refuse_logs: list[int] = []
        """The same of reads of a log."""
        self.refuse_writes = 0
        """Status of all writes while it is not 0."""
        self.frozen = False
        """Watches stay open and say nothing."""
        self.twice = False
        """Each event of a watch comes twice, and the one before it once more."""
        self.asked: list[str] = []
        self._watches: set[web.StreamResponse] = set()
        self._logs: set[web.StreamResponse] = set()
        self._gone = asyncio.Event()

    def cut(self) -> None:
        """Break all watches off."""
        _abort(self._watches)

    def cut_logs(self) -> None:
        """Break all reads of logs off."""
        _abort(self._logs)

    def forget(self) -> None:
        """All watches are told that their version is too old (410)."""
        self._gone.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path_qs}")
        if self.refuse:
            return _refusal(self.refuse.pop(0))
        if self.refuse_watches and request.query.get("watch"):
            return _refusal(self.refuse_watches)
        if self.refuse_logs and request.path.endswith("/log"):
            return _refusal(self.refuse_logs.pop(0))
        if self.refuse_writes and request.method != "GET":
            return _refusal(self.refuse_writes)
        headers = {key: value for key, value in request.headers.items() if key in {"Content-Type", "Accept"}}
        async with request.app[_SESSION].request(
            request.method,
            f"https://{NODE_ADDRESS}:6443{request.path_qs}",
            data=await request.read() or None,
            headers=headers,
            ssl=self._tls,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:
            if request.query.get("watch"):
                return await self._watch(request, answer)
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            if request.path.endswith("/log"):
                self._logs.add(response)
            try:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            finally:
                self._logs.discard(response)
            return response

    async def _watch(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self._watches.add(response)
        last = b""
        try:
            async for line in self._lines(answer):
                if not line:
                    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                    return response
                if not self.frozen:
                    await response.write(line + line + last if self.twice else line)
                last = line
        finally:
            self._watches.discard(response)
        return response

    async def _lines(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Lines of the server's watch; an empty one when it must be told that it is over."""
        gone = asyncio.create_task(self._gone.wait())
        try:
            while True:
                line = asyncio.create_task(answer.content.readline())
                await asyncio.wait([line, gone], return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    line.cancel()
                    self._gone.clear()
                    yield b""
                    return
                if not await line:
                    return
                yield line.result()
        finally:
            gone.cancel()


def _abort(responses: Iterable[web.StreamResponse]) -> None:
    for response in responses:
        request = response._req
        if request is not None and request.transport is not None:
            request.transport.abort()


def _refusal(status: int) -> web.Response:
    body = {"kind": "Status", "code": status, "reason": "TooManyRequests" if status == 429 else "InternalError"}
    return web.json_response({**body, "message": "said on purpose"}, status=status)


@contextlib.asynccontextmanager
async def opened_between(pki: Path) -> AsyncIterator[Between]:
    """Listens on a free port, without TLS, with the rights of the cluster's administrator."""
    between = Between(pki)
    app = web.Application(client_max_size=1 << 22)
    app.router.add_route("*", "/{path:.*}", between.handle)
    async with aiohttp.ClientSession(read_bufsize=1 << 21) as session:
        app[_SESSION] = session
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        between.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield between
        finally:
            await runner.cleanup()
