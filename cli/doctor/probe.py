"""The two pods that look from inside, and their reports."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

from cli.doctor.installation import Installation
from shared.errors import TemporaryError
from shared.runtime.kubernetes import KubernetesConfig
from shared.runtime.kubernetes_api import Api, ApiError

PATIENCE = 120.0
"""Seconds until a pod must have looked, with the pull of its image."""
LOOK_EVERY = 0.5
CONTAINER = "doctor"
_SECURITY = {
    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]},
}  # fmt: skip


def as_service(installation: Installation) -> dict[str, Any]:
    """With all that the executor is given but its account."""
    container = installation.executor["containers"][0]
    given = {key: container[key] for key in ("image", "imagePullPolicy", "envFrom", "env") if key in container}
    pull = {"imagePullSecrets": installation.executor.get("imagePullSecrets") or []}
    return _pod("services", given, pull)


def as_job(installation: Installation, config: KubernetesConfig) -> dict[str, Any]:
    """Where jobs are, with nothing but the address of the S3."""
    container, defaults, objects = installation.executor["containers"][0], config.defaults, installation.objects()
    endpoint = {"name": "HUBFLOW_S3_ENDPOINT", "value": objects.job_endpoint or objects.endpoint}
    given = {"image": container["image"], "imagePullPolicy": "IfNotPresent", "env": [endpoint]}
    where = {
        "serviceAccountName": defaults.service_account,
        "nodeSelector": dict(defaults.node_selector),
        "tolerations": [dict(each) for each in defaults.tolerations],
        "imagePullSecrets": [{"name": name} for name in defaults.pull_secrets],
    }
    return _pod("job", given, where)


def _pod(place: str, container: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    amounts = {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "64Mi"}
    look = {
        **container, "name": CONTAINER, "command": ["hubflow", "doctor", "--inside", place], "securityContext": _SECURITY,
        "resources": {"requests": amounts, "limits": amounts},
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"hubflow-doctor-{place}-{os.urandom(4).hex()}",
            "labels": {"app.kubernetes.io/name": "doctor"},
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "activeDeadlineSeconds": int(PATIENCE),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [look],
            **more,
        },
    }


async def facts_of(api: Api, namespace: str, pod: Mapping[str, Any]) -> dict[str, Any]:
    """Start the pod, wait for its report, remove it. Raises ApiError if it is refused, TemporaryError if it does not report."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    await api.call("POST", path, body=pod)
    path = f"{path}/{pod['metadata']['name']}"
    try:
        return await _report(api, path)
    finally:
        await asyncio.shield(_remove(api, path))


async def _report(api: Api, path: str) -> dict[str, Any]:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        pod = await api.call("GET", path)
        status = pod.get("status") or {}
        # The cluster may have put others beside it, as meshes do.
        containers = {each["name"]: each for each in status.get("containerStatuses") or ()}
        container = containers.get(CONTAINER, {})
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("message") and ended["exitCode"] == 0:
            facts: dict[str, Any] = json.loads(ended["message"])
            return facts
        if ended or status.get("phase") == "Failed":
            raise TemporaryError(f"the pod ended without a report: {(ended or status).get('message') or ended}")
        if asyncio.get_running_loop().time() > deadline:
            raise TemporaryError(f"the pod has not reported in {PATIENCE:g} s: {_why(status, container)}")
        await asyncio.sleep(LOOK_EVERY)


def _why(status: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    waiting = (container.get("state") or {}).get("waiting") or {}
    conditions = [each.get("message", "") for each in status.get("conditions") or () if each["status"] == "False"]
    return str(waiting.get("message") or waiting.get("reason") or next(filter(None, conditions), status.get("phase")))


async def _remove(api: Api, path: str) -> None:
    try:
        await api.call("DELETE", path, body={"gracePeriodSeconds": 0})
    except ApiError as error:
        if error.status != 404:
            raise
