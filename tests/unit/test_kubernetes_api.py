"""What needs no cluster of speaking to the API server."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from contextlib import asynccontextmanager

from aiohttp import web

from shared.runtime import kubernetes_api
from shared.runtime.kubernetes_access import Access, Server
from shared.runtime.kubernetes_api import Api
from tests.cluster.certificates import issue


@asynccontextmanager
async def api_server(folder, port=0, host="127.0.0.1"):
    """With the certificates of this folder. Gives its port."""

    async def version(_):
        return web.json_response({"gitVersion": "v1.34.4"})

    app = web.Application()
    app.router.add_get("/version", version)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "pki/apiserver.crt", folder / "pki/apiserver.key")
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_an_authority_that_is_renewed_is_read_again(tmp_path):
    issue(tmp_path)
    async with api_server(tmp_path) as port:
        api = Api(Access(str(tmp_path / "admin.kubeconfig"), server=f"https://127.0.0.1:{port}"))
        assert await api.call("GET", "/version") == {"gitVersion": "v1.34.4"}
    try:
        issue(tmp_path)
        async with api_server(tmp_path, port):
            assert await api.call("GET", "/version") == {"gitVersion": "v1.34.4"}
    finally:
        await api.close()


async def test_the_certificate_may_name_another_than_the_address(tmp_path):
    """`tls-server-name`: for who reaches the API server by way of a tunnel or a load balancer."""
    issue(tmp_path)
    kubeconfig = json.loads((tmp_path / "admin.kubeconfig").read_text())
    async with api_server(tmp_path, host="127.0.0.2") as port:
        kubeconfig["clusters"][0]["cluster"] |= {"server": f"https://127.0.0.2:{port}", "tls-server-name": "localhost"}
        (tmp_path / "tunnel.kubeconfig").write_text(json.dumps(kubeconfig))
        api = Api(Access(str(tmp_path / "tunnel.kubeconfig")))
        try:
            assert await api.call("GET", "/version") == {"gitVersion": "v1.34.4"}
        finally:
            await api.close()


@asynccontextmanager
async def known_by_token(monkeypatch):
    """A server that knows the first of two tokens, and a configuration that has the second."""
    tokens = ["first", "first"]

    async def watch(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(2):
            await response.write(b"news\n")
            await news.wait()
        return response

    @web.middleware
    async def ask(request, handler):
        known = request.headers["Authorization"] == tokens[0]
        return await handler(request) if known else web.json_response({"message": "Unauthorized"}, status=401)

    async def version(_):
        news.set()
        return web.json_response({"gitVersion": "v1.34.4"})

    async def here(_):
        read = tokens[1]

        async def token():
            return read

        return Server(f"http://127.0.0.1:{runner.addresses[0][1]}", ssl.create_default_context(), token)

    news = asyncio.Event()
    app = web.Application(middlewares=[ask])
    app.router.add_get("/version", version)
    app.router.add_get("/watch", watch)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(kubernetes_api, "find_server", here)
    api = Api(Access())
    try:
        yield api, tokens
    finally:
        await api.close()
        await runner.cleanup()


async def test_a_token_that_is_renewed_is_read_again_and_ends_no_watch(monkeypatch):
    """All watches and logs of the process were cut, and whoever waited for its turn to call got a closed session."""
    async with known_by_token(monkeypatch) as (api, tokens), api.request("GET", "/watch", idle=20) as response:
        assert await response.content.readline() == b"news\n"
        tokens[:] = ["second", "second"]
        assert await api.call("GET", "/version") == {"gitVersion": "v1.34.4"}
        assert await response.content.readline() == b"news\n"


async def test_a_connection_whose_other_end_has_vanished_is_noticed(monkeypatch):
    """A job may be silent for hours; so was a log whose connection had been forgotten on its way."""
    async with known_by_token(monkeypatch) as (api, _), api.request("GET", "/watch", idle=20) as response:
        assert response.connection is not None
        wire = response.connection.transport.get_extra_info("socket")
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert [wire.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in kubernetes_api.PROBES] == [
            30,
            10,
            3,
        ]
