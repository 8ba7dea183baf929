"""The namespace of jobs: would it take a job's pod, and has it room? And the volumes."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from cli.doctor.finding import Finding, failed, ok, warning
from shared.runtime import kubernetes_body as body
from shared.runtime.kubernetes import KubernetesConfig
from shared.runtime.kubernetes_api import Api, ApiError
from shared.runtime.protocol import ContainerSpec

NEARLY = Decimal("0.9")
RELEASE = "When the namespace of jobs was deleted"
"""The heading of docs/kubernetes.md that tells the cure."""
_JOB = "hubflow-doctor"
_SUFFIXES = {
    "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip


async def where(api: Api, config: KubernetesConfig) -> str:
    """The namespace of jobs, or that of some tenant's; "" if no tenant has one yet. Raises ApiError."""
    if not config.tenancy.per_tenant:
        return config.tenancy.namespace
    query = {"labelSelector": "app.kubernetes.io/managed-by=hubflow"}
    found = (await api.call("GET", "/api/v1/namespaces", query=query))["items"]
    names = [each["metadata"]["name"] for each in found if each["status"].get("phase") == "Active"]
    return next((name for name in names if name.startswith(f"{config.tenancy.namespace}-")), "")


async def check(api: Api, config: KubernetesConfig) -> list[Finding]:
    """Findings about where jobs run. Raises ApiError for what may not be read."""
    namespace = await where(api, config)
    if config.tenancy.per_tenant:
        each = f"one for each tenant, {config.tenancy.namespace}-*: made when its first job comes"
        if not namespace:
            fix = "run `hubflow doctor` again when a tenant's first job has run"
            return [ok("namespace of jobs", each), warning("a job's pod", "not looked at: no tenant has one yet", fix)]
        found = await api.call("GET", f"/api/v1/namespaces/{namespace}")
        looked_at = ok("namespace of jobs", f"{each}; looked at is {namespace}")
        return [looked_at, await _pod_security(api, namespace, found, config), await _quota(api, namespace)]
    try:
        found = await api.call("GET", f"/api/v1/namespaces/{namespace}")
    except ApiError as error:
        if error.status != 404:
            raise
        if config.tenancy.manage:
            return [ok("namespace of jobs", f"{namespace} is made when the first job comes")]
        return [failed("namespace of jobs", f"{namespace} does not exist", "kubectl apply -k k8s/base/jobs")]
    if found["status"].get("phase") == "Terminating":
        return [await _terminating(api, namespace)]
    return [await _pod_security(api, namespace, found, config), await _quota(api, namespace)]


async def _terminating(api: Api, namespace: str) -> Finding:
    pods = (await api.call("GET", f"/api/v1/namespaces/{namespace}/pods"))["items"]
    held = [each["metadata"]["name"] for each in pods if body.FINALIZER in (each["metadata"].get("finalizers") or ())]
    message = f"{namespace} is being deleted, and no job can start"
    if held:
        message += f"; {len(held)} pods ({held[0]}, ...) are held until their outcome is stored"
        return failed("namespace of jobs", message, f'"{RELEASE}" in docs/kubernetes.md')
    return failed("namespace of jobs", message, "kubectl apply -k k8s/base/jobs, when it is gone")


async def _pod_security(api: Api, namespace: str, found: Mapping[str, Any], config: KubernetesConfig) -> Finding:
    """Asks with a pod as the executor would send it, without making it."""
    check = "pod security"
    level = (found["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce", "")
    pod = body.pod(ContainerSpec(name=_JOB, image="", document={}, labels={}), config.defaults, _JOB)
    del pod["metadata"]["finalizers"]
    try:
        await api.call("POST", f"/api/v1/namespaces/{namespace}/pods", query={"dryRun": "All"}, body=pod)
    except ApiError as error:
        if "PodSecurity" in str(error):
            fix = f"kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=baseline --overwrite"
            return failed(check, str(error), f"{fix}; or HUBFLOW_KUBERNETES_RESTRICTED=true")
        if "quota" in str(error):
            return ok(check, f"level {level or 'none'}")  # the next finding tells
        return failed("a job's pod", f"the cluster refuses it: {error}", "kubectl apply -k k8s/base/jobs")
    if not level:
        fix = f"kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=baseline"
        return warning(check, f"{namespace} takes pods of any kind, privileged ones too", fix)
    return ok(check, f"level {level}, and jobs keep to it")


async def _quota(api: Api, namespace: str) -> Finding:
    quotas = (await api.call("GET", f"/api/v1/namespaces/{namespace}/resourcequotas"))["items"]
    ranges = (await api.call("GET", f"/api/v1/namespaces/{namespace}/limitranges"))["items"]
    defaults = {
        f"{kind}.{name}" for each in ranges for limit in each["spec"]["limits"] for kind, name in _defaults(limit)
    }
    for quota in quotas:
        hard, used = quota["status"].get("hard") or quota["spec"]["hard"], quota["status"].get("used") or {}
        edit = f"kubectl -n {namespace} edit resourcequota {quota['metadata']['name']}"
        if missing := sorted(name for name in hard if name.startswith(("requests.", "limits.")) and name not in defaults
                             and name.split(".")[1] in {"cpu", "memory"}):  # fmt: skip
            message = f"{', '.join(missing)} limited, and jobs that name no resources get none: they are refused"
            return failed("quota", message, "a LimitRange with defaults (k8s/overlays/production/quota.yaml)")
        full = sorted(name for name in hard if amount(used.get(name, "0")) >= amount(hard[name]) * NEARLY)
        if spent := [name for name in full if amount(used.get(name, "0")) >= amount(hard[name])]:
            return failed("quota", f"used up: {', '.join(f'{used.get(n, 0)} of {hard[n]} {n}' for n in spent)}", edit)
        if full:
            return warning("quota", f"nearly used up: {', '.join(f'{used[n]} of {hard[n]} {n}' for n in full)}", edit)
    return ok("quota", f"room in {len(quotas)} quotas" if quotas else "no quota")


def _defaults(limit: Mapping[str, Any]) -> list[tuple[str, str]]:
    if limit["type"] != "Container":
        return []
    given = [("limits", name) for name in limit.get("default") or ()]
    requests = {**(limit.get("default") or {}), **(limit.get("defaultRequest") or {})}
    return [*given, *(("requests", name) for name in requests)]


def amount(text: str) -> Decimal:
    """A quantity of Kubernetes: 250m, 2Gi, 500."""
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * _SUFFIXES[suffix]
    return Decimal(text)


async def storage(api: Api, namespace: str, config: KubernetesConfig) -> list[Finding]:
    """Volumes of the servers beside us, where there are some, and of WORKFLOW_CACHE."""
    findings = []
    claims = (await api.call("GET", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"))["items"]
    waiting = [each for each in claims if each["status"].get("phase") != "Bound"]
    classes = (await api.call("GET", "/apis/storage.k8s.io/v1/storageclasses"))["items"]
    if waiting:
        name, wanted = waiting[0]["metadata"]["name"], waiting[0]["spec"].get("storageClassName")
        why = f"wants the StorageClass {wanted}" if wanted else "wants the default StorageClass"
        known = ", ".join(each["metadata"]["name"] for each in classes) or "none"
        fix = f"kubectl -n {namespace} describe pvc {name}; kubectl get storageclass (is one the default?)"
        findings.append(failed("storage", f"the volume {name} is not there: it {why} (there are: {known})", fix))
    elif claims:
        findings.append(ok("storage", f"all {len(claims)} volumes are there"))
    shared = config.shared_class
    if shared and shared not in {each["metadata"]["name"] for each in classes}:
        fix = "HUBFLOW_KUBERNETES_SHARED_CLASS in settings.env: one of `kubectl get storageclass` with ReadWriteMany"
        findings.append(failed("shared volumes", f"there is no StorageClass {shared}", fix))
    elif shared:
        findings.append(ok("shared volumes", f"of the StorageClass {shared}"))
    return findings
