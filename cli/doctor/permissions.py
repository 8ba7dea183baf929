"""What three services' accounts must be allowed (k8s/base/jobs/permissions.yaml), and what we need for asking."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cli.doctor.finding import Finding, failed, ok, warning
from shared.runtime.kubernetes_api import Api, ApiError
from shared.runtime.kubernetes_place import Tenancy

NEEDED: Mapping[str, tuple[str, ...]] = {
    "executor": (
        "create pods", "get pods", "patch pods", "delete pods", "create secrets", "create persistentvolumeclaims",
        "get persistentvolumeclaims", "delete persistentvolumeclaims",
    ),
    "status-watcher": ("get pods", "list pods", "watch pods", "patch pods", "delete pods", "delete secrets"),
    "log-collector": ("get pods", "list pods", "watch pods", "get pods/log"),
}  # fmt: skip
MANAGING = (
    *(
        f"{verb} {kind}"
        for kind in ("namespaces", "serviceaccounts", "networkpolicies", "resourcequotas", "limitranges")
        for verb in ("create", "patch")
    ),
    *(f"{verb} {kind}" for kind in ("resourcequotas", "limitranges") for verb in ("get", "delete")),
)
"""The executor's, where it makes namespaces itself: what it applies it patches, and creates if it is not there. What is not set
any more it deletes."""
EVERYWHERE = ("list pods", "list persistentvolumeclaims")
"""The executor's, where each tenant has a namespace: it looks for what it is to end without knowing in which."""
OWN = ("create pods", "get pods", "delete pods")
"""Ours, in both namespaces, for the pods that look from inside."""
_GROUPS = {"networkpolicies": "networking.k8s.io"}
_REVIEWS = "/apis/authorization.k8s.io/v1"


async def check(api: Api, namespace: str, tenancy: Tenancy) -> list[Finding]:
    """A finding for each account."""
    findings = []
    for account, needed in NEEDED.items():
        wanted = needed
        if account == "executor" and tenancy.manage:
            wanted = (*wanted, *MANAGING)
        if account == "executor" and tenancy.per_tenant:
            wanted = (*wanted, *EVERYWHERE)
        findings.append(await _account(api, namespace, tenancy.everywhere, account, wanted))
    return findings


async def own(api: Api, namespaces: list[str]) -> list[str]:
    """What we may not do of what the pods that look from inside take, by SelfSubjectAccessReview."""
    wanted = [(each, namespace) for namespace in namespaces for each in OWN]
    answers = await asyncio.gather(*(may(api, each, namespace) for each, namespace in wanted))
    return [f"{each} in {namespace}" for (each, namespace), may in zip(wanted, answers, strict=True) if not may]


async def _account(api: Api, namespace: str, jobs: str, account: str, needed: tuple[str, ...]) -> Finding:
    check = f"permissions of {account}"
    try:
        answers = await asyncio.gather(*(may(api, each, jobs, f"{namespace}:{account}") for each in needed))
    except ApiError as error:
        return warning(
            check, f"cannot be looked at with this account: {error}", "run `hubflow doctor` as a cluster admin"
        )
    refused = [each for each, may in zip(needed, answers, strict=True) if not may]
    where = f"in {jobs}" if jobs else "in all namespaces"
    if refused:
        folder = "k8s/base/jobs" if jobs else "an overlay with k8s/components/tenant-namespaces"
        return failed(check, f"may not {', '.join(refused)} {where}", f"kubectl apply -k {folder}")
    return ok(check, f"all {len(needed)} {where}")


async def may(api: Api, what: str, namespace: str, account: str = "") -> bool:
    """May the account (NAMESPACE:NAME), or may we? Raises ApiError if that must not be asked."""
    verb, _, kind = what.partition(" ")
    resource, _, subresource = kind.partition("/")
    attributes = {"verb": verb, "group": _GROUPS.get(resource, ""), "resource": resource, "subresource": subresource}
    spec: dict[str, object] = {"resourceAttributes": {**attributes, "namespace": namespace}}
    path = "selfsubjectaccessreviews"
    if account:
        path = "subjectaccessreviews"
        groups = [
            "system:serviceaccounts",
            f"system:serviceaccounts:{account.partition(':')[0]}",
            "system:authenticated",
        ]
        spec |= {"user": f"system:serviceaccount:{account}", "groups": groups}
    answer = await api.call("POST", f"{_REVIEWS}/{path}", body={"spec": spec})
    return bool(answer["status"].get("allowed"))
