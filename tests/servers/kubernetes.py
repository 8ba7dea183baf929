"""The cluster that tests run against: one that somebody names, one that is up on this machine, or one that is started for them.

HUBFLOW_TEST_KUBECONFIG   a kubeconfig with all rights; tests that kill a node or the API server are then skipped
HUBFLOW_TEST_IMAGES       with it: where that cluster can pull job:1, bare:1 and wrapper:1 (tests/cluster/images.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.embedded.process import holds
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import Api, ApiError
from tests.cluster import FOLDER, settings
from tests.cluster.cluster import NODE_BRIDGE, READY, Cluster, not_built, unavailable
from tests.cluster.machine import alone, folder_of_running
from tests.servers.images import Image, write_archive

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_ROOT = Path(__file__).parents[2]
WRAPPER = _ROOT / "wrapper" / "bin" / "hubflow-wrapper-linux-amd64"
SHARED_CLASS = "hubflow-test-shared"
VOLUMES = 40


@dataclass(frozen=True)
class Kubernetes:
    """A cluster to test on. `own`: its programs, where they are ours to kill; else None."""

    kubeconfig: Path
    images: str
    own: Cluster | None

    def image(self, name: str) -> str:
        """Reference of an image of tests/cluster/images.py by its last part."""
        return f"{self.images}/{name}"

    async def load(self, images: Sequence[Image], folder: Path) -> None:
        """Put images on the node; on somebody else's cluster they are there already."""
        if self.own is not None:
            await self.own.load(write_archive(folder / "cluster-images.tar", images))


def missing() -> str:
    """Why there is no cluster to test on ("" if there is)."""
    if os.environ.get("HUBFLOW_TEST_KUBECONFIG"):
        return ""
    if reason := unavailable() or ("" if folder_of_running() else not_built()):
        return f"{reason}; or name a cluster: HUBFLOW_TEST_KUBECONFIG=FILE"
    return ""


@contextlib.asynccontextmanager
async def found_kubernetes() -> AsyncIterator[Kubernetes]:
    """The cluster of this session; nobody else's tests use it meanwhile."""
    given = os.environ.get("HUBFLOW_TEST_KUBECONFIG")
    if given and not (Path(given).parent / READY).exists():
        yield Kubernetes(Path(given), os.environ.get("HUBFLOW_TEST_IMAGES", "hubflow.test"), None)
        return
    with alone():
        running = Path(given).parent if given else folder_of_running()
        if running is not None and Cluster(running).is_up():
            yield await _ours(Cluster(running))
            return
        supervisor = _start()
        try:
            cluster = Cluster(FOLDER)
            ready = await holds((FOLDER / READY).exists, 180)
            if not ready:
                raise RuntimeError(f"the cluster did not start; see {FOLDER}/logs")
            yield await _ours(cluster)
            await cluster.down()
        finally:
            supervisor.communicate(timeout=60)


async def _ours(cluster: Cluster) -> Kubernetes:
    await _make_volumes(cluster)
    return Kubernetes(cluster.kubeconfig, "hubflow.test", cluster)


def _start() -> subprocess.Popen[bytes]:
    """Under a supervisor, which ends all of it when this test run is gone, however it went."""
    (FOLDER / READY).unlink(missing_ok=True)
    logs = FOLDER / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.cluster", "up-unlocked"]
    arguments = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(FOLDER), NODE_BRIDGE, settings.POD_BRIDGE, "--"]
    with (logs / "up.log").open("wb") as log:
        return subprocess.Popen(
            [*arguments, *command], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=_ROOT, start_new_session=True
        )


async def _make_volumes(cluster: Cluster) -> None:
    """What WORKFLOW_CACHE is made of: folders of the node, as nobody here makes volumes on demand. Used ones go."""
    api = Api(Access(str(cluster.kubeconfig)))
    volumes = "/api/v1/persistentvolumes"
    try:
        content = {"metadata": {"name": SHARED_CLASS}, "provisioner": "kubernetes.io/no-provisioner"}
        with contextlib.suppress(ApiError):
            await api.call("POST", "/apis/storage.k8s.io/v1/storageclasses", body=content)
        for found in (await api.call("GET", volumes))["items"]:
            if found["spec"].get("storageClassName") == SHARED_CLASS:
                await api.call("DELETE", f"{volumes}/{found['metadata']['name']}")
        folder = cluster.folder / "shared"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await asyncio.gather(*(_make_volume(api, folder, number) for number in range(VOLUMES)))
    finally:
        await api.close()


async def _make_volume(api: Api, folder: Path, number: int) -> None:
    place = folder / str(number)
    place.mkdir(parents=True, mode=0o777)
    place.chmod(0o777)
    spec = {
        "storageClassName": SHARED_CLASS,
        "capacity": {"storage": "10Gi"},
        "accessModes": ["ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(place)},
    }
    name = f"hubflow-test-{number}-{os.urandom(3).hex()}"
    await api.call("POST", "/api/v1/persistentvolumes", body={"metadata": {"name": name}, "spec": spec})
