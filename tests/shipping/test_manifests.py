"""The manifests of `k8s/`, as a real API server sees them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.shipping.building import ROOT, VERSION
from tests.shipping.kubectl import Kubectl

pytestmark = pytest.mark.servers
OVERLAYS = sorted(path.parent.name for path in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in (ROOT / "k8s" / "components").glob("*/kustomization.yaml"))


OFFLINE = Kubectl(Path(os.devnull))
"""Renders; that needs no cluster."""


def rendered(kubectl, folder: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(kubectl("kustomize", str(folder))) if document]


def refused_or_warned(kubectl, folder: Path) -> str:
    """What the API server says against it."""
    # A Job cannot be changed: as an upgrade does.
    kubectl("delete", "job", "migrate", "-n", "hubflow", "--ignore-not-found")
    done = kubectl.run("apply", "--dry-run=server", "-k", str(folder))
    warnings = [line for line in done.stderr.splitlines() if "last-applied-configuration" not in line]
    return "" if done.returncode == 0 and not warnings else done.stdout + "\n".join(warnings)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_what_the_cluster_takes(kubectl, namespaces, overlay):
    assert refused_or_warned(kubectl, ROOT / "k8s/overlays" / overlay) == ""


def overlay_with(component: str, folder: Path) -> Path:
    """An overlay of the base and one component, in `folder`."""
    # Kustomize takes paths that are relative to the file.
    near = Path(*[".."] * (len(folder.resolve().parts) - 1)) / str(ROOT / "k8s")[1:]
    parts = {"resources": [str(near / "base")], "components": [str(near / "components" / component)]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    return folder


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_is_what_the_cluster_takes(kubectl, namespaces, component, tmp_path):
    assert refused_or_warned(kubectl, overlay_with(component, tmp_path)) == ""


def test_with_a_namespace_for_each_tenant_installations_are_named_after_the_services_namespace(tmp_path):
    named = {}
    for each in rendered(OFFLINE, overlay_with("tenant-namespaces", tmp_path)):
        if each["kind"] == "Deployment":
            [container] = each["spec"]["template"]["spec"]["containers"]
            variables = {variable["name"]: variable for variable in container.get("env", ())}
            named[each["metadata"]["name"]] = variables.get("HUBFLOW_RUNTIME_INSTALLATION", {}).get("valueFrom")
    assert [name for name, source in named.items() if source == {"fieldRef": {"fieldPath": "metadata.namespace"}}] == [
        "executor", "log-collector", "status-watcher"
    ]  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_have_the_version_of_this_tree(kubectl, overlay):
    documents = rendered(kubectl, ROOT / "k8s/overlays" / overlay)
    settings = next(
        each for each in documents if each["kind"] == "ConfigMap" and "hubflow-settings" in each["metadata"]["name"]
    )
    assert settings["data"]["HUBFLOW_KUBERNETES_WRAPPER_IMAGE"].endswith(f"hubflow-wrapper:{VERSION}")
    images = {
        container["image"]
        for each in documents if each["kind"] in {"Deployment", "Job"}
        for container in each["spec"]["template"]["spec"]["containers"]
    }  # fmt: skip
    assert len(images) == 1
    assert images.pop().endswith(f"hubflow:{VERSION}")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_confined_and_every_service_can_be_drained(kubectl, overlay):
    documents = rendered(kubectl, ROOT / "k8s/overlays" / overlay)
    services = [each for each in documents if each["kind"] == "Deployment"]
    assert len(services) == 7
    [migrate] = [each for each in documents if each["kind"] == "Job"]
    users = {"runAsUser", "runAsGroup", "fsGroup"}  # OpenShift gives its own, and refuses others
    for each in [*services, migrate]:
        assert not users & each["spec"]["template"]["spec"]["securityContext"].keys()
    for each in services:
        pod = each["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["containers"], *pod["initContainers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= pod["containers"][0].keys()
        assert pod["terminationGracePeriodSeconds"] > 20
    names = {each["metadata"]["name"] for each in services}
    budgets = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "PodDisruptionBudget"}
    assert budgets.keys() == names
    # What is not ready does not stand in the way of a drain.
    assert {each["unhealthyPodEvictionPolicy"] for each in budgets.values()} == {"AlwaysAllow"}
