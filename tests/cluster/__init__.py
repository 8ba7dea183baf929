"""A real Kubernetes on this machine, for tests, benchmarks and trying things out: `make cluster`, `make cluster-down`.

    python -m tests.cluster up|down|build|status

etcd, API server, controller-manager, scheduler, kubelet, kube-proxy, CoreDNS, containerd and runc run real pods on the
node `node1`; KWOK simulates as many nodes beside it as somebody wishes (`nodes.py`). All but containerd is built from Go
modules (`programs.py`), once for each version, outside the work tree. The cluster's state is in `.hubflow/cluster` and
is forgotten when it goes down. A machine has one cluster at a time, because bridge and addresses are fixed (`machine.py`).

What to know: NetworkPolicies are accepted but not enforced, as no plugin here does; RuntimeClasses are accepted, but
there is no Kata and no gVisor; Debian's containerd 1.6 has no image volumes. With HUBFLOW_CLUSTER_CONTAINERD=2.2.9 that
version is built and used, and the tests bring the wrapper by an image volume (`make test-image-volumes`). Pods reach
servers of this machine at `NODE_ADDRESS`.
"""

from __future__ import annotations

from pathlib import Path

NODE = "node1"
NODE_ADDRESS = "10.252.0.1"
"""The node's and this machine's address for pods. kubelet refuses loopback, and kernels may lack dummy links: a bridge."""
REGISTRY = f"{NODE_ADDRESS}:5000"
"""A registry that listens here is spoken to without TLS."""
REFUSING_REGISTRY = f"{NODE_ADDRESS}:5001"
"""As `REGISTRY`, for one that wants passwords."""
FOLDER = Path(__file__).resolve().parents[2] / ".hubflow" / "cluster"
