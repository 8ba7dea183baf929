"""What needs no cluster of speaking to the API server."""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager

from aiohttp import web

from shared.runtime.kubernetes_access import Access
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
