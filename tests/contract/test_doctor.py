"""What `hubflow doctor` asks a real API server, and a pod of its own that the cluster has added something to."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import yaml

from cli.doctor import permissions, probe
from cli.doctor.finding import State
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import Api
from shared.runtime.kubernetes_place import Tenancy

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("kubernetes")]
TENANTS = Path(__file__).parents[2] / "k8s/components/tenant-namespaces/permissions.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture
async def api(kubernetes_place):
    opened = Api(Access(kubernetes_place.where))
    yield opened
    await opened.close()


async def until(look, state):
    """The finding once it is in this state: an API server hears of new rights a moment after they are given."""
    async with asyncio.timeout(20):
        while (found := await look()).state is not state:
            await asyncio.sleep(0.1)
    return found


async def test_rights_that_the_executor_has_for_namespaces_of_tenants_and_each_that_it_lacks(kubernetes_place, api):
    name = f"executor-{kubernetes_place.installation}"
    role = next(
        each
        for each in yaml.safe_load_all(TENANTS.read_text())
        if each["kind"] == "ClusterRole" and each["metadata"]["name"] == "hubflow-executor"
    )
    role["metadata"]["name"] = name
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "executor", "namespace": name}],
    }

    async def finding():
        return (await permissions.check(api, name, Tenancy(namespace="jobs", per_tenant=True)))[0]

    await api.call("POST", f"{RBAC}/clusterroles", body=role)
    await api.call("POST", f"{RBAC}/clusterrolebindings", body=binding)
    try:
        assert await until(finding, State.OK)
        role["rules"] = [
            {**rule, "verbs": verbs}
            for rule in role["rules"]
            if (verbs := [*{*rule["verbs"]} - {"create", "list", "delete"}])
        ]
        await api.call("PUT", f"{RBAC}/clusterroles/{name}", body=role)
        refused = await until(finding, State.FAILED)
        for right in (
            "create namespaces",
            "create limitranges",
            "delete limitranges",
            "list pods",
            "list persistentvolumeclaims",
        ):
            assert right in refused.message
    finally:
        await api.call("DELETE", f"{RBAC}/clusterrolebindings/{name}")
        await api.call("DELETE", f"{RBAC}/clusterroles/{name}")


async def test_a_pod_that_looks_is_heard_beside_what_the_cluster_puts_into_it(kubernetes_place, api):
    image = kubernetes_place.wrapper + "/job:1"
    script = """echo '{"names": {}}' > /dev/termination-log"""
    mesh = {"name": "a-mesh", "image": image, "command": ["sleep", "1000"]}
    look = {"name": probe.CONTAINER, "image": image, "command": ["sh", "-c", script]}
    pod = {
        "metadata": {"name": f"looks-{os.urandom(4).hex()}"},
        "spec": {"containers": [mesh, look], "restartPolicy": "Never"},
    }
    async with asyncio.timeout(30):  # of a cluster that has just begun
        while not (await api.call("GET", "/api/v1/namespaces/default/serviceaccounts"))["items"]:
            await asyncio.sleep(0.1)
    assert await probe.facts_of(api, "default", pod) == {"names": {}}
