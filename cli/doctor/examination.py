"""The whole examination, in the order in which things depend on one another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from cli.doctor import cluster, meaning, permissions, probe, workplace
from cli.doctor.finding import Finding, failed, ok, warning
from cli.doctor.installation import SERVICES, Installation, find
from shared.errors import ConfigurationError, TemporaryError
from shared.runtime.kubernetes import KubernetesConfig
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import Api, ApiError


async def examine(access: Access, namespace: str, *, pods: bool) -> list[Finding]:
    """All findings. What cannot be looked at is a finding too."""
    api = Api(access)
    try:
        return [finding async for finding in _examine(api, namespace, pods)]
    finally:
        await api.close()


async def _examine(api: Api, namespace: str, pods: bool) -> AsyncIterator[Finding]:
    try:
        await api.call("GET", "/version")
    except (TemporaryError, ApiError, ConfigurationError) as error:
        yield failed("api server", str(error), "--kubeconfig and --context; kubectl version")
        return
    try:
        installation = await find(api, namespace)
    except ApiError as error:
        yield failed("installation", f"cannot be read: {error}", "run `hubflow doctor` as a cluster admin")
        return
    if "executor" not in installation.deployments:
        yield failed(
            "installation", f"there is none in the namespace {namespace}", "kubectl apply -k k8s/overlays/demo"
        )
        return
    for finding in _services(installation):
        yield finding
    try:
        config = installation.runtime()
    except (ConfigurationError, ValueError) as error:
        yield failed("settings", str(error), "settings.env of the overlay")
        return
    parts: dict[str, Callable[[], Awaitable[list[Finding]]]] = {
        "cluster": lambda: cluster.check(api, namespace, image_volumes=config.defaults.image_volume),
        "permissions": lambda: permissions.check(api, namespace, config.tenancy),
        "namespace of jobs": lambda: workplace.check(api, config),
        "storage": lambda: workplace.storage(api, namespace, config),
    }
    for name, check in parts.items():
        try:
            for finding in await check():
                yield finding
        except (ApiError, TemporaryError) as error:
            yield warning(name, f"cannot be looked at: {error}", "run `hubflow doctor` as a cluster admin")
    if pods:
        for finding in await _from_inside(api, installation, config):
            yield finding


def _services(installation: Installation) -> list[Finding]:
    findings = []
    if installation.missing:
        lacking = ", ".join(installation.missing)
        findings.append(failed("secrets", f"there is no {lacking}", "k8s/overlays/production/secrets.example.yaml"))
    absent = [name for name in SERVICES if name not in installation.deployments]
    if absent:
        findings.append(failed("services", f"not installed: {', '.join(absent)}", "apply the overlay again"))
    waiting = [name for name, each in installation.deployments.items() if not each["status"].get("availableReplicas")]
    if waiting:
        logs = f"kubectl -n {installation.namespace} logs deployment/{waiting[0]} --all-containers"
        findings.append(failed("services", f"not ready: {', '.join(sorted(waiting))}", logs))
    if not absent and not waiting:
        findings.append(ok("services", f"all {len(SERVICES)} are ready"))
    return findings


async def _from_inside(api: Api, installation: Installation, config: KubernetesConfig) -> list[Finding]:
    try:
        jobs = await workplace.where(api, config)
    except (ApiError, TemporaryError) as error:
        return [warning("inside", f"cannot be looked at: {error}", "run `hubflow doctor` as a cluster admin")]
    wanted = {installation.namespace: probe.as_service(installation)}
    if jobs:
        wanted[jobs] = probe.as_job(installation, config)
    if refused := await permissions.own(api, list(wanted)):
        return [
            warning("inside", f"this account may not {', '.join(refused)}", "run `hubflow doctor` as a cluster admin")
        ]
    reports = await asyncio.gather(
        *(probe.facts_of(api, namespace, pod) for namespace, pod in wanted.items()), return_exceptions=True
    )
    findings: list[Finding] = []
    for namespace, report in zip(wanted, reports, strict=True):
        if isinstance(report, ApiError | TemporaryError):
            fix = f"kubectl -n {namespace} get events --sort-by=.lastTimestamp"
            findings.append(failed(f"a pod in {namespace}", str(report), fix))
        elif isinstance(report, BaseException):
            raise report
        elif namespace == jobs:
            findings += _of_job(report, installation)
        else:
            findings += _of_service(report, installation)
    return findings


def _of_service(facts: Mapping[str, Any], installation: Installation) -> list[Finding]:
    replicas = sum(int(each["spec"].get("replicas", 1)) for each in installation.deployments.values())
    findings = [
        *meaning.postgres(facts["postgres"], replicas, installation.namespace),
        *meaning.rabbitmq(facts["rabbitmq"]),
    ]
    findings.append(meaning.objects("objects, as a service", facts["objects"], installation.objects().endpoint))
    if times := facts["postgres"].get("clocks"):
        findings.append(meaning.clocks("clock of postgresql", times))
    return findings


def _of_job(facts: Mapping[str, Any], installation: Installation) -> list[Finding]:
    objects = installation.objects()
    fix = {"fix": "HUBFLOW_S3_JOB_ENDPOINT in settings.env; egress in k8s/base/jobs/network.yaml"}
    findings = [meaning.names(facts["names"])]
    findings.append(
        meaning.objects("objects, as a job", {**fix, **facts["objects"]}, objects.job_endpoint or objects.endpoint)
    )
    if times := facts["objects"].get("clocks"):
        findings.append(meaning.clocks("clock of the S3", times))
    return findings
