"""Services in this process with their real HTTP server, and a client that speaks as some tenant."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web

from shared.embedded import S3Address
from shared.service import Host, Parts, Running, Service, serve
from shared.vault import new_key
from tests.chaos.proxy import Proxy


def by_wire(s3: S3Address, wire: Proxy) -> dict[str, str]:
    """Settings of an object storage that is reached by way of `wire`, with a bucket of its own."""
    return {
        "HUBFLOW_S3_ENDPOINT": f"http://127.0.0.1:{wire.port}", "HUBFLOW_S3_BUCKET": f"wire-{uuid.uuid4().hex[:12]}",
        "HUBFLOW_S3_ACCESS_KEY": s3.access_key, "HUBFLOW_S3_SECRET_KEY": s3.secret_key, "HUBFLOW_S3_REGION": s3.region,
    }  # fmt: skip


OPERATOR_TOKEN = "hf_operator_for_tests_0123456789"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any
    """JSON as data, anything else as text."""


@dataclass
class Client:
    """One token at one server."""

    session: aiohttp.ClientSession
    url: str
    token: str
    seen: list[tuple[str, str, Answer]] = field(default_factory=list)
    """(method, path, answer) of every call, for the test of the OpenAPI document."""

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """`body` a map: sent as JSON; bytes or text: as it is."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= more.pop("headers", {})
        sent = {"json": body} if isinstance(body, dict | list) else {"data": body}
        async with self.session.request(method, self.url + path, headers=headers, **sent, **more) as response:
            json = "json" in response.content_type
            answer = Answer(response.status, response.headers, await (response.json() if json else response.text()))
        self.seen.append((method, path, answer))
        return answer

    async def get(self, path: str, **more: Any) -> Any:
        """The JSON of a call that must succeed."""
        return await self.ok("GET", path, **more)

    async def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = await self.call(method, path, body, **more)
        assert answer.status < 400, answer.body
        return answer.body

    def as_token(self, token: str) -> Client:
        return Client(self.session, self.url, token, self.seen)


@dataclass
class Served:
    host: Host
    url: str
    operator: Client
    routes: list[web.RouteDef]
    """Of all services, without the host's own."""

    async def tenant(self, name: str, *scopes: str) -> Client:
        """A client with a token of a tenant, which is made if need be."""
        answer = await self.operator.call("POST", "/api/v1/tenants", {"name": name})
        assert answer.status in {201, 409}, answer.body
        token = await self.operator.ok(
            "POST", "/api/v1/tokens", {"name": f"{name}-tests", "scopes": list(scopes or ("admin",))},
            headers={"Hubflow-Tenant": name},
        )  # fmt: skip
        return self.operator.as_token(token["token"])


@contextlib.asynccontextmanager
async def serving(
    database: str, services: Sequence[Service], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Served]:
    """Run `services` on the database until the block ends."""
    settings = {
        "HUBFLOW_DATABASE_URL": database, "HUBFLOW_SECRET_KEY": new_key(), "HUBFLOW_HTTP_PORT": "0",
        "HUBFLOW_CONSOLE_OPERATOR_TOKEN": OPERATOR_TOKEN, "HUBFLOW_LOG_LEVEL": "warning", **(environment or {}),
    }  # fmt: skip
    routes: list[web.RouteDef] = []
    services = [_recording(service, routes) for service in services]
    ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(services, settings, ready=ready.set_result, signals=False))
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    running = ready.result()
    url = f"http://127.0.0.1:{running.port}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            yield Served(running.host, url, Client(session, url, OPERATOR_TOKEN), routes)
        finally:
            running.stop()
            await task


def _recording(service: Service, routes: list[web.RouteDef]) -> Service:
    """The service, noting its routes."""

    @contextlib.asynccontextmanager
    async def open_recording(host: Host, settings: Any) -> AsyncIterator[Parts]:
        async with service.open(host, settings) as parts:
            routes.extend(route for route in parts.routes if isinstance(route, web.RouteDef))
            yield parts

    return replace(service, open=open_recording)
