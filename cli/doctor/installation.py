"""What the cluster's own documents say about an installation: which services there are, and with which settings."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.config import load
from shared.errors import ConfigurationError
from shared.runtime.kubernetes import KubernetesConfig
from shared.runtime.kubernetes_api import Api, ApiError
from shared.runtime.kubernetes_config import config_of
from shared.settings import KubernetesSettings, ObjectsSettings, RuntimeSettings

SERVICES = ("console", "trigger", "scheduler", "executor", "status-watcher", "log-collector", "notifier")


@dataclass(frozen=True)
class Installation:
    """One Hubflow on one cluster."""

    namespace: str
    deployments: Mapping[str, Mapping[str, Any]]
    """Service -> its Deployment; without those that are not there."""
    settings: Mapping[str, str] = field(repr=False)
    """The executor's environment, secrets and all."""
    missing: tuple[str, ...] = ()
    """ConfigMaps and Secrets that the executor names and that are not there."""

    @property
    def executor(self) -> Mapping[str, Any]:
        """The executor's pod, as its Deployment has it."""
        found: Mapping[str, Any] = self.deployments["executor"]["spec"]["template"]["spec"]
        return found

    def runtime(self) -> KubernetesConfig:
        """How jobs become pods. Raises ConfigurationError."""
        runtime, kubernetes = load(self.settings, RuntimeSettings, KubernetesSettings)
        if runtime.kind != "kubernetes":
            raise ConfigurationError(
                f"HUBFLOW_RUNTIME_KIND is {runtime.kind!r}: set it to kubernetes (k8s/base/services/settings.env)"
            )
        return config_of(kubernetes, runtime.installation, runtime.default_image or "alpine:3", runtime.pull)

    def objects(self) -> ObjectsSettings:
        """Where the S3 is. Raises ConfigurationError."""
        settings: ObjectsSettings = load(self.settings, ObjectsSettings)[0]
        return settings


async def find(api: Api, namespace: str) -> Installation:
    """Raises ApiError for what may not be read."""
    listed = await api.call("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")
    deployments = {each["metadata"]["name"]: each for each in listed["items"] if each["metadata"]["name"] in SERVICES}
    if "executor" not in deployments:
        return Installation(namespace, deployments, {})
    container = deployments["executor"]["spec"]["template"]["spec"]["containers"][0]
    settings, missing = await _environment(api, namespace, container)
    return Installation(namespace, deployments, settings, tuple(missing))


async def _environment(api: Api, namespace: str, container: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    environment: dict[str, str] = {}
    missing: list[str] = []
    for source in container.get("envFrom") or ():
        for kind, key in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
            if reference := source.get(key):
                content = await _content(api, namespace, kind, reference["name"])
                environment |= content or {}
                if content is None and not reference.get("optional"):
                    missing.append(f"{kind.removesuffix('s')} {reference['name']}")
    for variable in container.get("env") or ():
        if "value" in variable:
            environment[variable["name"]] = variable["value"]
    return environment, missing


async def _content(api: Api, namespace: str, kind: str, name: str) -> dict[str, str] | None:
    try:
        data = (await api.call("GET", f"/api/v1/namespaces/{namespace}/{kind}/{name}")).get("data") or {}
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    return {key: base64.b64decode(value).decode() if kind == "secrets" else value for key, value in data.items()}
