"""The cluster itself: its version, its nodes, its clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from cli.doctor.finding import Finding, failed, ok, warning
from cli.doctor.meaning import clocks, kubernetes_version
from cli.doctor.permissions import may
from shared.runtime.kubernetes_api import Api
from shared.runtime.kubernetes_features import knows_image_volumes, mounts_images


async def check(api: Api, namespace: str, *, image_volumes: bool | None) -> list[Finding]:
    """Findings about the API server and the nodes. Raises TemporaryError if nobody answers, ApiError if we may not look.

    `image_volumes`: as `PodDefaults` has it."""
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
    known = await knows_image_volumes(api, namespace)
    asked = image_volumes is not None or await may(api, "list nodes", "", f"{namespace}:executor")
    findings.append(volumes(nodes, known=known, wanted=image_volumes, asked=asked))
    return findings


def _ready(nodes: Sequence[Mapping[str, Any]]) -> Finding:
    bad = [each["metadata"]["name"] for each in nodes if not _is_ready(each)]
    if len(bad) == len(nodes):
        return failed("nodes", "no node is ready", "kubectl describe nodes")
    if bad:
        return warning("nodes", f"not ready: {', '.join(bad[:5])} of {len(nodes)}", "kubectl describe node " + bad[0])
    return ok("nodes", f"all {len(nodes)} ready")


def _is_ready(node: Mapping[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"].get("conditions") or ())


def volumes(nodes: Sequence[Mapping[str, Any]], *, known: bool, wanted: bool | None, asked: bool = True) -> Finding:
    """Can the wrapper's image be mounted, rather than copied by an init container? `known`: to the API server. `wanted`: None
    if the executor finds that out, for which it must be `asked`."""
    lacking = sorted({_runtime(each) for each in nodes if not mounts_images(_runtime(each))})
    why = "the API server does not know them (Kubernetes 1.35, or the feature gate ImageVolume)"
    if lacking:
        why = f"nodes with {', '.join(lacking)} do not know them"
    able = known and not lacking
    if wanted and not able:
        return failed(
            "image volumes", f"set to be used, but {why}", "HUBFLOW_KUBERNETES_IMAGE_VOLUMES=false in settings.env"
        )
    if able and (wanted is False or not asked):
        fix = "HUBFLOW_KUBERNETES_IMAGE_VOLUMES=true in settings.env saves each job's init container"
        if wanted is None:
            fix = "k8s/components/image-volumes in the overlay lets the executor see the nodes: no init container any more"
        return warning("image volumes", "the cluster has them, and they are not used", fix)
    return ok("image volumes", "used" if able else f"not used; {why}")


def _runtime(node: Mapping[str, Any]) -> str:
    return str(node["status"]["nodeInfo"]["containerRuntimeVersion"])
