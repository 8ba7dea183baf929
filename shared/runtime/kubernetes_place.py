"""The namespaces that jobs run in: made when a tenant's first job comes, and put right again every few minutes.

One for all tenants, or one for each. All of it is applied (server-side), so what somebody has changed is changed back, what
somebody has deleted comes again, and what is not set any more goes. Where we may not do that, the operator makes the namespaces
and says so by a setting.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import TemporaryError
from shared.log import get_logger
from shared.runtime import kubernetes_body as body
from shared.runtime.kubernetes_api import APPLY, Api, ApiError
from shared.runtime.kubernetes_options import CREDENTIALS

AGAIN = 300.0
"""Seconds after which a namespace is put right again."""
COUNTED_WITHIN = 10.0
"""Seconds that the cluster has for the first count of a quota."""
_MANAGER = "hubflow"
_log = get_logger("runtime")
_EVERYWHERE = {"0.0.0.0/0", "::/0"}
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Tenancy:
    """How jobs are kept apart."""

    namespace: str = "hubflow-jobs"
    """Of all jobs; with `per_tenant` the beginning of each one's name."""
    per_tenant: bool = False
    manage: bool = True
    """We make the namespaces and what is in them; otherwise the operator does."""
    quota: Mapping[str, str] = field(default_factory=dict)
    """`hard` of each namespace's ResourceQuota; empty: none, and one of ours is deleted."""
    limits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """LimitRange for containers: `default`, `defaultRequest`, `max`; empty: none, and one of ours is deleted."""
    egress: tuple[str, ...] = ("0.0.0.0/0", "::/0")
    """Where jobs may connect to; nobody connects to them."""
    egress_except: tuple[str, ...] = CREDENTIALS
    """But not there."""
    egress_cluster: bool = True
    """They may connect to all pods of the cluster, also to those within `egress_except`."""
    security: str = "baseline"
    """Pod Security level that the namespace enforces."""

    def namespace_of(self, tenant: str) -> str:
        """Name of the namespace of this tenant's jobs."""
        if not self.per_tenant:
            return self.namespace
        readable = re.sub(r"[^a-z0-9]+", "-", tenant.lower()).strip("-")[:30].strip("-")
        if readable == tenant:
            return f"{self.namespace}-{tenant}"
        return f"{self.namespace}-{readable}-{hashlib.sha256(tenant.encode()).hexdigest()[:10]}"

    @property
    def everywhere(self) -> str:
        """The namespace to watch; "" for all."""
        return "" if self.per_tenant else self.namespace


def network_policy(tenancy: Tenancy) -> dict[str, Any]:
    """`spec` of the NetworkPolicy of jobs, the same as in k8s/base/jobs/network.yaml."""
    peers = ip_blocks(tenancy.egress, tenancy.egress_except)
    if tenancy.egress_cluster and _EVERYWHERE & set(tenancy.egress):
        # To some network plugins (Cilium, and with it Dataplane V2 of GKE) the address of a pod is in no ipBlock. Who has
        # narrowed `egress` is not given more than that.
        peers.append({"namespaceSelector": {}})
    names = {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]}
    egress: list[dict[str, Any]] = [names]
    if peers:
        egress.append({"to": peers})
    return {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": egress}


def ip_blocks(allowed: Iterable[str], but: Iterable[str]) -> list[dict[str, Any]]:
    """Peers of a NetworkPolicy: the `allowed` networks without those of `but`.

    The API server refuses an exception that does not lie within its network, so each network has only its own; one that is
    an exception as a whole is left out.
    """
    exceptions = [ipaddress.ip_network(each) for each in but]
    blocks = []
    for network in map(ipaddress.ip_network, allowed):
        if any(_within(network, each) for each in exceptions):
            continue
        inside = [str(each) for each in exceptions if _within(each, network)]
        blocks.append({"ipBlock": {"cidr": str(network), **({"except": inside} if inside else {})}})
    return blocks


def _within(inner: _Network, outer: _Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


class Namespaces:
    """Makes them, once for each process and tenant, and again every few minutes."""

    def __init__(self, api: Api, tenancy: Tenancy, installation: str, service_account: str) -> None:
        self._api = api
        self._tenancy = tenancy
        self._installation = installation
        self._service_account = service_account
        self._made: dict[str, float] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def ready(self, tenant: str) -> str:
        """The tenant's namespace, made if need be. Raises TemporaryError if that cannot be."""
        name = self._tenancy.namespace_of(tenant)
        if not self._tenancy.manage or self._made.get(name, 0.0) > time.monotonic():
            return name
        async with self._making.setdefault(name, asyncio.Lock()):
            if self._made.get(name, 0.0) <= time.monotonic():
                await self._make(name, tenant)
                self._made[name] = time.monotonic() + AGAIN
        return name

    def doubt(self, name: str) -> None:
        """Something of this namespace seems to be missing: make it again before the next pod."""
        self._made.pop(name, None)

    async def _make(self, name: str, tenant: str) -> None:
        marks = {"app.kubernetes.io/managed-by": "hubflow", body.INSTALLATION: body.label(self._installation)}
        if self._tenancy.per_tenant:
            marks[body.TENANT] = body.label(tenant)
        level = {"pod-security.kubernetes.io/enforce": self._tenancy.security}
        try:
            await self._apply(f"/api/v1/namespaces/{name}", "v1", "Namespace", name, labels=marks | level)
            await asyncio.gather(
                *(self._apply_in(name, marks, part) for part in self._parts()),
                *(self._take_back(name, plural) for plural in self._unset()),
            )
            if self._tenancy.quota:
                await self._counted(name)
        except ApiError as error:
            raise TemporaryError(
                f"namespace {name} cannot be prepared: {error}. Give the executor's account the rights of k8s/base, or "
                "make the namespace yourself and set HUBFLOW_KUBERNETES_MANAGE_NAMESPACES=false"
            ) from error

    async def _counted(self, name: str) -> None:
        """Wait until the cluster knows the quota: before that, it lets any number of pods through.

        Asked again and again, once for each namespace: a watch would need rights that the executor has no other use for.
        """
        path = f"/api/v1/namespaces/{name}/resourcequotas/hubflow-jobs"
        try:
            async with asyncio.timeout(COUNTED_WITHIN):
                while True:
                    quota = await self._api.call("GET", path)
                    if quota.get("status", {}).get("hard"):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise TemporaryError(
                f"the quota of namespace {name} is still not counted after {COUNTED_WITHIN:g} s: does the cluster's "
                "controller manager run?"
            ) from error

    def _parts(self) -> list[tuple[str, str, str, Mapping[str, Any]]]:
        """(version, plural, kind, content) of what each namespace has."""
        tenancy = self._tenancy
        account = {"automountServiceAccountToken": False}
        parts: list[tuple[str, str, str, Mapping[str, Any]]] = [
            ("v1", "serviceaccounts", "ServiceAccount", account),
            ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", {"spec": network_policy(tenancy)}),
        ]
        if tenancy.quota:
            parts.append(("v1", "resourcequotas", "ResourceQuota", {"spec": {"hard": dict(tenancy.quota)}}))
        if tenancy.limits:
            limits = {"type": "Container", **tenancy.limits}
            parts.append(("v1", "limitranges", "LimitRange", {"spec": {"limits": [limits]}}))
        return parts

    def _unset(self) -> list[str]:
        """What a namespace may have of an earlier setting, and has no more."""
        settings = {"resourcequotas": self._tenancy.quota, "limitranges": self._tenancy.limits}
        return [plural for plural, setting in settings.items() if not setting]

    async def _take_back(self, namespace: str, plural: str) -> None:
        """Delete what we have made; what the operator has made by that name stays."""
        path = f"/api/v1/namespaces/{namespace}/{plural}/hubflow-jobs"
        try:
            found = await self._api.call("GET", path)
            if (found["metadata"].get("labels") or {}).get(body.INSTALLATION) == body.label(self._installation):
                await self._api.call("DELETE", path)
        except ApiError as error:
            if error.status == 403:  # rights of before this was done
                _log.warning("what is not set any more may still be there", path=path, error=str(error))
            elif error.status != 404:
                raise

    async def _apply_in(
        self, namespace: str, marks: Mapping[str, str], part: tuple[str, str, str, Mapping[str, Any]]
    ) -> None:
        version, plural, kind, content = part
        group = f"/api/{version}" if version == "v1" else f"/apis/{version}"
        name = self._service_account if kind == "ServiceAccount" else "hubflow-jobs"
        path = f"{group}/namespaces/{namespace}/{plural}/{name}"
        await self._apply(path, version, kind, name, labels=marks, **content)

    async def _apply(
        self, path: str, version: str, kind: str, name: str, *, labels: Mapping[str, str], **content: Any
    ) -> None:
        document = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": dict(labels)}, **content}
        query = {"fieldManager": _MANAGER, "force": "true"}
        await self._api.call("PATCH", path, query=query, body=document, content_type=APPLY)
