"""Simulated nodes: KWOK plays their kubelets (`stages.yaml`)."""

from __future__ import annotations

from typing import Any

LABEL = "hubflow.dev/simulated"
"""On simulated nodes; as a taint it keeps pods away that do not ask for them."""
SELECTOR = {LABEL: "yes"}
TOLERATION = {"key": LABEL, "operator": "Exists"}


def node(name: str) -> dict[str, Any]:
    """A Node to be created."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {**SELECTOR, "kubernetes.io/os": "linux"},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [{"key": LABEL, "value": "yes", "effect": "NoSchedule"}]},
    }
