"""Passes requests for trigger on to it, where it is another process: users know one address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
from aiohttp import web

from services.console.context import Context
from shared.api import Call, Endpoint
from shared.errors import TemporaryError
from shared.ingress import HOOK, START_RUN

TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)
_OWN_HEADERS = frozenset(
    {"host", "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
     "upgrade"}
)  # fmt: skip
"""Headers of one connection (RFC 9110, 7.6.1), and those that aiohttp sets itself."""


@asynccontextmanager
async def proxy_endpoints(trigger_url: str) -> AsyncIterator[tuple[Endpoint, ...]]:
    """Endpoints that have trigger's descriptions and hand everything on. Trigger checks tokens and signatures itself."""
    async with aiohttp.ClientSession(
        timeout=TIMEOUT, auto_decompress=False, connector=aiohttp.TCPConnector(limit=200)
    ) as session:

        async def pass_on(call: Call, _: Context) -> web.Response:
            """Handled by trigger."""
            return await _pass_on(session, trigger_url.rstrip("/"), call.request)

        yield tuple(replace(each, handle=pass_on) for each in (START_RUN, HOOK))


async def _pass_on(session: aiohttp.ClientSession, base: str, request: web.Request) -> web.Response:
    # aiohttp has decoded the body: its length is another, too.
    own = _OWN_HEADERS | ({"content-encoding", "content-length"} if "Content-Encoding" in request.headers else set())
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in own]
    try:
        async with session.request(
            request.method,
            base + request.raw_path,
            data=request.content if request.can_read_body else None,
            headers=headers,
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
            own = _OWN_HEADERS | {"content-length"}
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in own}
            return web.Response(status=answer.status, body=body, headers=kept)
    except (aiohttp.ClientError, TimeoutError) as error:
        if isinstance(unreadable := request.content.exception(), web.RequestPayloadError):
            raise unreadable from unreadable.__cause__
        raise TemporaryError(f"trigger does not answer at {base} ({error})") from error
