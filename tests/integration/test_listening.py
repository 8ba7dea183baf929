"""Where a process listens."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import aiohttp
import pytest

from services.trigger.main import SERVICE as TRIGGER
from shared.errors import ConfigurationError
from tests.integration.serving import serving


async def healthy(address: str, port: int | None) -> bool:
    """Whether a process answers there."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}:{port}/healthz") as answer:
        return answer.status == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_with_no_address_it_answers_on_ipv4_and_ipv6(database: str, address: str) -> None:
    if address != "127.0.0.1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    async with serving(database, [TRIGGER], {"HUBFLOW_HTTP_HOST": ""}) as served:
        port = urlsplit(served.url).port
        assert await healthy(address, port)
        assert served.host.public_url == f"http://localhost:{port}"


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
async def test_a_port_that_is_taken_is_told(database: str, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {"HUBFLOW_HTTP_HOST": address, "HUBFLOW_HTTP_PORT": str(port)}
        with pytest.raises(ConfigurationError, match=f"cannot listen on .*:{port} .*HUBFLOW_HTTP_PORT"):
            async with serving(database, [TRIGGER], environment):
                pass
