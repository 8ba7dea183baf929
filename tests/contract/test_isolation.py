"""Jobs kept apart by the cluster: network policies that are enforced, and the sandbox of gVisor. `make test-isolation`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest

from shared.runtime.protocol import Phase
from tests.cluster import NODE_ADDRESS
from tests.cluster.programs import WITH
from tests.contract.runtime_places import new_name, read, spec
from tests.contract.test_kubernetes import watched

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("kubernetes")]
needs_policies = pytest.mark.skipif("policies" not in WITH, reason="nobody enforces policies: `make test-isolation`")
needs_gvisor = pytest.mark.skipif("gvisor" not in WITH, reason="no gVisor: `make test-isolation`")
SERVE = "while true; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nserved' | nc -l -p 8080 >/dev/null; done"


def ask(address: str) -> str:
    """A script that prints what a server answers, or `refused`."""
    return f"wget -q -T 3 -O - http://{address}/ || echo refused"


@contextlib.asynccontextmanager
async def served():
    """Port of a server on this machine that answers `outside`."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\noutside")
        writer.close()

    server = await asyncio.start_server(answer, NODE_ADDRESS, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def said(runtime, watcher, script: str) -> str:
    """What a job with this script prints."""
    name = new_name()
    await runtime.start(spec(name, script))
    await watcher.until(name, Phase.FINISHED)
    printed = (await read(runtime, name)).decode().strip()
    await runtime.remove(name)
    return printed


@needs_policies
async def test_nobody_connects_to_a_job_unless_its_policy_is_gone(kubernetes_place):
    place = dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-p")
    async with watched(place) as (runtime, watcher):
        serving = new_name()
        await runtime.start(spec(serving, SERVE))
        async with asyncio.timeout(60):
            while not (address := (await place.cluster("GET", place.pod_path(serving)))["status"].get("podIP")):
                await asyncio.sleep(0.1)
        assert await said(runtime, watcher, ask(f"{address}:8080")) == "refused"
        policy = f"/apis/networking.k8s.io/v1/namespaces/{place.installation}/networkpolicies/hubflow-jobs"
        await place.cluster("DELETE", policy)
        async with asyncio.timeout(60):
            while await said(runtime, watcher, ask(f"{address}:8080")) != "served":
                pass
        await runtime.stop(serving)
        await watcher.until(serving, Phase.FINISHED)
        await runtime.remove(serving)
        await place.cluster("DELETE", f"/api/v1/namespaces/{place.installation}")


@needs_policies
async def test_a_job_connects_to_what_it_may_and_to_nothing_else(kubernetes_place):
    """The first job waits until the policy is in force, which Kubernetes does not promise for a namespace just made."""
    many = {"open": {}, "closed": {"egress_except": (f"{NODE_ADDRESS}/32",)}}
    async with served() as port:
        for name, tenancy in many.items():
            place = dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-{name}")
            async with watched(place, tenancy=tenancy) as (runtime, watcher):
                wanted = "outside" if name == "open" else "refused"
                async with asyncio.timeout(60):
                    while await said(runtime, watcher, ask(f"{NODE_ADDRESS}:{port}")) != wanted:
                        pass
                # Names are resolved even where nothing else may be reached.
                found = await said(runtime, watcher, "nslookup kubernetes.default.svc.cluster.local")
                assert "10.250.0.1" in found
                await place.cluster("DELETE", f"/api/v1/namespaces/{place.installation}")


@needs_gvisor
async def test_a_job_that_asks_for_gvisor_has_a_kernel_of_its_own(kubernetes_place):
    async with watched(kubernetes_place, allow="runtime_class=gvisor") as (runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "dmesg; echo A=1 >> $HUBFLOW_OUTPUT", options={"runtime_class": "gvisor"}))
        end = await watcher.until(name, Phase.FINISHED)
        assert (end.reason, end.exit_code) == ("", 0)
        assert end.result["outputs"] == {"A": "1"}
        assert b"gVisor" in await read(runtime, name)
        await runtime.remove(name)
