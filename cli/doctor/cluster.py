"""The cluster itself: its version, its nodes, its clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from cli.doctor.finding import Finding, failed, ok, warning
from cli.doctor.meaning import clocks, kubernetes_version, numbers
from shared.runtime.kubernetes_api import Api, ApiError

_KNOWS_IMAGE_VOLUMES = {"containerd": (2, 1), "cri-o": (1, 33)}
"""Runtime of a node -> since when it mounts images."""


async def check(api: Api, namespace: str, *, image_volumes: bool) -> list[Finding]:
    """Findings about the API server and the nodes. Raises TemporaryError if nobody answers, ApiError if we may not look."""
    async with api.request("GET", "/version") as response:
        told = response.headers.get("Date", "")
        version = (await response.json())["gitVersion"]
    findings = [kubernetes_version(version)]
    if told:
        # The header has whole seconds.
        findings.append(
            clocks("clock of the API server", {"here": time.time(), "there": parsedate_to_datetime(told).timestamp()})
        )
    nodes = (await api.call("GET", "/api/v1/nodes"))["items"]
    findings.append(_ready(nodes))
    findings.append(volumes(nodes, known=await _knows_image_volumes(api, namespace), wanted=image_volumes))
    return findings


async def _knows_image_volumes(api: Api, namespace: str) -> bool:
    """Asks with a pod that is not made: an API server without the feature drops the field, and misses a kind of volume."""
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {
        "metadata": {"name": "hubflow-doctor-volumes"},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "doctor", "image": "none", "securityContext": confined}],
            "volumes": [{"name": "image", "image": {"reference": "none"}}],
        },
    }
    try:
        await api.call("POST", f"/api/v1/namespaces/{namespace}/pods", query={"dryRun": "All"}, body=pod)
    except ApiError as error:
        if error.status == 422:
            return False
        raise
    return True


def _ready(nodes: Sequence[Mapping[str, Any]]) -> Finding:
    bad = [each["metadata"]["name"] for each in nodes if not _is_ready(each)]
    if len(bad) == len(nodes):
        return failed("nodes", "no node is ready", "kubectl describe nodes")
    if bad:
        return warning("nodes", f"not ready: {', '.join(bad[:5])} of {len(nodes)}", "kubectl describe node " + bad[0])
    return ok("nodes", f"all {len(nodes)} ready")


def _is_ready(node: Mapping[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"].get("conditions") or ())


def volumes(nodes: Sequence[Mapping[str, Any]], *, known: bool, wanted: bool) -> Finding:
    """Can the wrapper's image be mounted, rather than copied by an init container? `known`: to the API server."""
    lacking = sorted({_runtime(each) for each in nodes if not _mounts_images(_runtime(each))})
    why = "the API server does not know them (Kubernetes 1.35, or the feature gate ImageVolume)"
    if lacking:
        why = f"nodes with {', '.join(lacking)} do not know them"
    able = known and not lacking
    if wanted and not able:
        return failed(
            "image volumes", f"set to be used, but {why}", "HUBFLOW_KUBERNETES_IMAGE_VOLUMES=false in settings.env"
        )
    if able and not wanted:
        fix = "HUBFLOW_KUBERNETES_IMAGE_VOLUMES=true in settings.env saves each job's init container"
        return warning("image volumes", "the cluster has them, and they are not used", fix)
    return ok("image volumes", "used" if wanted else f"not used; {why}")


def _runtime(node: Mapping[str, Any]) -> str:
    return str(node["status"]["nodeInfo"]["containerRuntimeVersion"])


def _mounts_images(runtime: str) -> bool:
    name, _, version = runtime.partition("://")
    return name in _KNOWS_IMAGE_VOLUMES and numbers(version) >= _KNOWS_IMAGE_VOLUMES[name]
