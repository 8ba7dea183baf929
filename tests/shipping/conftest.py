"""Fixtures: `shipped` (images, on an engine and in an archive), `kubectl`, `installation` (the demo on the tests' cluster)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.servers.dockerd import Dockerd
from tests.servers.kubernetes import Kubernetes
from tests.shipping import building, installing
from tests.shipping.kubectl import Kubectl


@pytest.fixture(scope="session")
async def shipped(dockerd: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> building.Shipped:
    if reason := building.missing():
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    # Below it each worker of xdist has a folder of its own.
    folder = base.parent if base.name.startswith("popen-") else base
    return await asyncio.to_thread(building.shipped, dockerd, folder)


@pytest.fixture(scope="session")
def kubectl(kubernetes: Kubernetes) -> Kubectl:
    return Kubectl(kubernetes.kubeconfig)


@pytest.fixture(scope="session")
def namespaces(kubectl: Kubectl) -> Iterator[None]:
    """`hubflow` and `hubflow-jobs`, as the manifests have them. They go at the end, with all that is in them."""
    for part in ("services", "jobs"):
        kubectl("apply", "-f", str(building.ROOT / "k8s/base" / part / "namespace.yaml"))
    yield
    # Who would release what ran until a moment ago is deleted together with it.
    for pod in kubectl("get", "pods", "-n", "hubflow-jobs", "-o", "name").split():
        kubectl.run("patch", pod, "-n", "hubflow-jobs", "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    kubectl("delete", "namespace", "hubflow", "hubflow-jobs", "--timeout=180s")


@pytest.fixture(scope="session")
def permissions(kubectl: Kubectl, namespaces: None) -> None:
    """The accounts and what they may do."""
    kubectl("apply", "-k", str(building.ROOT / "k8s/base/jobs"))
    kubectl("apply", "-f", str(building.ROOT / "k8s/components/image-volumes/permissions.yaml"))
    kubectl("apply", "-n", "hubflow", "-f", str(building.ROOT / "k8s/base/services/accounts.yaml"))


@pytest.fixture(scope="session")
async def installation(
    shipped: building.Shipped, kubernetes: Kubernetes, kubectl: Kubectl, namespaces: None
) -> AsyncIterator[installing.Installation]:
    if kubernetes.own is None:
        pytest.skip("the images cannot be put on a cluster that is not of this machine")
    await kubernetes.own.load(shipped.archive)
    with installing.volumes(kubernetes.own, kubectl):
        yield await asyncio.to_thread(installing.install, kubectl)
