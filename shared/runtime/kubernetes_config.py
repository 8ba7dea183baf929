"""From settings to what the kubernetes runtime wants to know."""

from __future__ import annotations

from shared.runtime.allowed import Allowed
from shared.runtime.kubernetes import KubernetesConfig, KubernetesRuntime
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_body import PodDefaults
from shared.runtime.kubernetes_options import OFFER, json_list, json_map, networks, pairs, words
from shared.runtime.kubernetes_place import Tenancy
from shared.settings import KubernetesSettings, image_volumes, require_for_pods


def open_kubernetes(
    settings: KubernetesSettings, installation: str, default_image: str, pull: str
) -> KubernetesRuntime:
    """The runtime, not yet asked anything. Raises ConfigurationError."""
    require_for_pods(settings, installation)
    return KubernetesRuntime(config_of(settings, installation, default_image, pull))


def config_of(
    settings: KubernetesSettings, installation: str, default_image: str, pull: str = "missing"
) -> KubernetesConfig:
    """The same as the settings have it."""
    return KubernetesConfig(
        access=Access(settings.kubeconfig, settings.context, settings.calls_per_second),
        defaults=PodDefaults(
            installation=installation,
            default_image=default_image,
            wrapper_image=settings.wrapper_image,
            pull=pull,
            image_volume=image_volumes(settings.image_volumes),
            node_selector=pairs(settings.node_selector),
            tolerations=tuple(json_list(settings.tolerations)),
            priority_class=settings.priority_class,
            runtime_class=settings.runtime_class,
            pull_secrets=words(settings.pull_secrets),
            ephemeral_storage=settings.ephemeral_storage,
            restricted=settings.restricted,
            lost_seconds=settings.lost_seconds,
        ),
        tenancy=Tenancy(
            namespace=settings.namespace,
            per_tenant=settings.namespace_per_tenant,
            manage=settings.manage_namespaces,
            quota=json_map(settings.quota),
            limits=json_map(settings.limits),
            egress=networks(settings.egress),
            egress_except=networks(settings.egress_except),
            egress_cluster=settings.egress_cluster,
            security="restricted" if settings.restricted else "baseline",
        ),
        allowed=Allowed.parse(settings.allow, OFFER),
        pull_seconds=settings.pull_seconds,
        create_seconds=settings.create_seconds,
        shared_class=settings.shared_class,
        shared_size=settings.shared_size,
    )
