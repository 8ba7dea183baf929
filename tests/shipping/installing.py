"""An overlay on the real cluster, its console on ports of this machine."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.shipping.building import ROOT
from tests.shipping.kubectl import PROGRAM, Kubectl

INSTALLED_WITHIN = 420
TOKEN = "hubflow-demo-operator"
DEMO = ROOT / "k8s/overlays/demo"


@dataclass(frozen=True)
class Installation:
    """Hubflow on a cluster."""

    kubectl: Kubectl

    def hubflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command as an operator has it, through a port of its own: a forwarded port ends with the pod it leads to."""
        with _console(self.kubectl) as url:
            environment = {**os.environ, "HUBFLOW_URL": url, "HUBFLOW_TOKEN": TOKEN, "HUBFLOW_TENANT": "acme"}
            command = [sys.executable, "-m", "cli.main", *arguments]
            return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def _console(kubectl: Kubectl) -> Iterator[str]:
    with subprocess.Popen(
        [PROGRAM, "port-forward", "-n", "hubflow", "service/console", ":http"],
        env={**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}, stdout=subprocess.PIPE, text=True,
    ) as forward:  # fmt: skip
        try:
            assert forward.stdout is not None
            told = forward.stdout.readline()
            port = re.search(r"127\.0\.0\.1:(\d+)", told)
            assert port is not None, told
            yield f"http://127.0.0.1:{port[1]}"
        finally:
            forward.terminate()


@contextlib.contextmanager
def volumes(cluster: Cluster, kubectl: Kubectl) -> Iterator[None]:
    """What a StorageClass would make: folders of the node for the demo's servers."""
    names = []
    for server in ("postgres", "rabbitmq", "s3"):
        folder = cluster.folder / "demo" / f"{server}-{os.urandom(3).hex()}"
        folder.mkdir(parents=True)
        folder.chmod(0o777)  # containers are other users
        kubectl("apply", "-f", "-", input=_volume(folder, f"data-{server}-0"))
        names.append(folder.name)
    yield
    kubectl("delete", "persistentvolume", *names, "--wait=false")


def _volume(folder: Path, claim: str) -> str:
    return f"""
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {folder.name}}}
spec:
  capacity: {{storage: 20Gi}}
  accessModes: [ReadWriteOnce]
  claimRef: {{namespace: hubflow, name: {claim}}}
  hostPath: {{path: {folder}}}
"""


def install(kubectl: Kubectl, overlay: Path = DEMO) -> Installation:
    """Apply the overlay, and wait until all is ready."""
    kubectl("apply", "-k", str(overlay))
    _await_ready(kubectl)
    return Installation(kubectl)


def _await_ready(kubectl: Kubectl) -> None:
    ours = ("-n", "hubflow", "-l", "app.kubernetes.io/part-of")
    for kind in ("statefulset", "deployment"):
        done = kubectl.run("rollout", "status", kind, *ours, f"--timeout={INSTALLED_WITHIN}s")
        if done.returncode != 0:
            state = kubectl("get", "pods", "-n", "hubflow", "-o", "wide")
            logs = kubectl.run("logs", *ours, "--all-containers", "--tail=15", "--prefix").stdout
            raise AssertionError(f"{done.stdout}{done.stderr}\n{state}\n{logs}")
