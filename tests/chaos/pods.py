"""Jobs as pods of a real cluster: what the storm must know of one, and the API server that it may kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from shared.errors import TemporaryError
from shared.runtime.kubernetes_access import Access, find_server
from shared.runtime.kubernetes_api import MERGE, Api, ApiError
from shared.runtime.kubernetes_read import Pod
from shared.runtime.kubernetes_watch import Pods
from tests.cluster import NODE_ADDRESS, nodes
from tests.servers.kubernetes import SHARED_CLASS, Kubernetes

SIMULATED_NODES = [f"chaos-{number}" for number in range(10)]


class PodEngine:
    """One namespace of a cluster. `simulated`: its pods go to nodes that only pretend to run them."""

    gateway = NODE_ADDRESS
    """Where pods reach this machine."""

    def __init__(self, cluster: Kubernetes, *, simulated: bool = False) -> None:
        self.cluster = cluster
        self.simulated = simulated
        self.namespace = f"chaos-{uuid.uuid4().hex[:8]}"
        self._api = Api(Access(str(cluster.kubeconfig), calls_per_second=0))
        self._path = f"/api/v1/namespaces/{self.namespace}"
        self.server = ("", 0)
        """Host and port of the API server, known once `prepare` is done."""

    def settings(self, jobs_port: int) -> dict[str, str]:
        """HUBFLOW_* of the services."""
        return {
            "HUBFLOW_RUNTIME_KIND": "kubernetes",
            "HUBFLOW_RUNTIME_DEFAULT_IMAGE": self.cluster.image("job:1"),
            "HUBFLOW_KUBERNETES_NAMESPACE": self.namespace,
            "HUBFLOW_KUBERNETES_WRAPPER_IMAGE": self.cluster.image("wrapper:1"),
            "HUBFLOW_KUBERNETES_SHARED_CLASS": SHARED_CLASS,
            "HUBFLOW_S3_JOB_ENDPOINT": f"http://{self.gateway}:{jobs_port}",
            **(_ON_SIMULATED if self.simulated else {}),
        }

    def kubeconfig_through(self, port: int, file: Path) -> Path:
        """Written to `file`: the cluster's, by way of a proxy's port."""
        document = yaml.safe_load(self.cluster.kubeconfig.read_text())
        for each in document["clusters"]:
            each["cluster"] |= {"server": f"https://127.0.0.1:{port}", "tls-server-name": self.server[0]}
        file.write_text(yaml.safe_dump(document))
        return file

    async def prepare(self) -> None:
        address = urlsplit((await find_server(Access(str(self.cluster.kubeconfig)))).address)
        self.server = address.hostname or "", address.port or 443
        if self.simulated:
            await asyncio.gather(*(self.make_node(name) for name in SIMULATED_NODES))

    async def make_node(self, name: str) -> None:
        """A simulated node, unless it is there."""
        try:
            await self._patiently("POST", "/api/v1/nodes", nodes.node(name))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    async def lose_node(self, name: str) -> None:
        """It is gone, with whatever was on it."""
        with contextlib.suppress(ApiError):
            await self._patiently("DELETE", f"/api/v1/nodes/{name}")

    async def _patiently(self, method: str, path: str, content: dict[str, Any] | None = None) -> None:
        """Also while the API server is being killed, of whose return nothing tells."""
        while True:
            try:
                await self._api.call(method, path, body=content)
                return
            except TemporaryError:
                await asyncio.sleep(0.3)

    async def watch(self, installation: str, hear: Callable[[str, dict[str, str]], None]) -> None:
        """Tell, with its labels, of each pod whose job's container begins or ends, once for each pod; until cancelled."""
        told: set[tuple[str, str]] = set()
        pods = Pods(self._api, installation, self.namespace)
        try:
            while True:
                with pods.listen() as ear, contextlib.suppress(TemporaryError):
                    while True:
                        for states in (await ear.hear()).values():
                            for pod in filter(None, states):
                                for what in _seen(pod):
                                    if (what, pod.uid) not in told:
                                        told.add((what, pod.uid))
                                        hear(what, dict(pod.notes))
                await asyncio.sleep(0.2)  # the API server is away
        finally:
            await pods.close()

    async def remove(self, name: str) -> None:
        """As a person does it: `kubectl delete pod`."""
        try:
            await self._patiently("DELETE", f"{self._path}/pods/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def left(self) -> dict[str, int]:
        """What is still there, labelled or not, as nobody else uses the namespace: it must be nothing in the end."""
        kinds = ("pods", "secrets", "persistentvolumeclaims")
        return {kind: len((await self._api.call("GET", f"{self._path}/{kind}"))["items"]) for kind in kinds}

    async def scheduled(self) -> dict[str, set[str]]:
        """Name -> uids of the pods that the cluster's scheduler says it has given a node: it remembers those that are gone."""
        uids: dict[str, set[str]] = defaultdict(set)
        query = {"fieldSelector": "reason=Scheduled"}
        for event in (await self._api.call("GET", f"{self._path}/events", query=query))["items"]:
            uids[event["involvedObject"]["name"]].add(event["involvedObject"]["uid"])
        return uids

    async def kill_api_server(self) -> None:
        """kill -9, and start again on the same data."""
        assert self.cluster.own is not None
        await self.cluster.own.restart("kube-apiserver")

    async def close(self) -> None:
        """What a storm that was broken off has left goes as well, finalizers or not."""
        try:
            for pod in (await self._api.call("GET", f"{self._path}/pods"))["items"]:
                if pod["metadata"].get("finalizers"):
                    path, free = f"{self._path}/pods/{pod['metadata']['name']}", {"metadata": {"finalizers": None}}
                    await self._api.call("PATCH", path, body=free, content_type=MERGE)
            with contextlib.suppress(ApiError):  # nobody has made it yet
                await self._api.call("DELETE", self._path)
            if self.simulated:
                await asyncio.gather(*(self.lose_node(name) for name in SIMULATED_NODES))
        finally:
            await self._api.close()


_ON_SIMULATED = {
    "HUBFLOW_KUBERNETES_NODE_SELECTOR": ",".join(f"{key}={value}" for key, value in nodes.SELECTOR.items()),
    "HUBFLOW_KUBERNETES_TOLERATIONS": json.dumps([nodes.TOLERATION]),
}


def _seen(pod: Pod) -> list[str]:
    if "terminated" in pod.job:
        return ["begin", "end"]
    return ["begin"] if "running" in pod.job else []
