"""The demo overlay with components/tenant-namespaces: the executor makes a namespace for each tenant and keeps it in order."""

from __future__ import annotations

import os

import pytest

from tests.shipping.building import ROOT
from tests.shipping.installing import DEMO, install
from tests.shipping.test_doctor import Report

pytestmark = pytest.mark.servers
COMPONENT = ROOT / "k8s/components/tenant-namespaces"
NAMESPACE = "hubflow-jobs-solo"
WORKFLOW = """
name: where
stages:
  - {name: only, jobs: [{name: say, script: "echo I ran"}]}
"""


@pytest.fixture
def divided(installation, tmp_path):
    """The installation with the component; without it again afterwards."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        f"resources: [{os.path.relpath(DEMO, overlay)}]\ncomponents: [{os.path.relpath(COMPONENT, overlay)}]\n"
    )
    kubectl = installation.kubectl
    try:
        yield install(kubectl, overlay)
    finally:
        install(kubectl)
        kubectl("delete", "-f", str(COMPONENT / "permissions.yaml"))
        kubectl("delete", "namespace", NAMESPACE, "--timeout=120s", "--ignore-not-found")


def test_a_tenants_jobs_run_in_a_namespace_of_their_own(divided, tmp_path):
    file = tmp_path / "where.yaml"
    file.write_text(WORKFLOW)
    made = divided.hubflow("tenant", "create", "solo")
    assert made.returncode == 0, made.stderr
    applied = divided.hubflow("--tenant", "solo", "workflow", "apply", str(file))
    assert applied.returncode == 0, applied.stderr
    run = divided.hubflow("--tenant", "solo", "run", "start", "where", "--wait", "--logs")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "I ran" in run.stdout
    labels = divided.kubectl.get("namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    policies = divided.kubectl.get("networkpolicies", "-n", NAMESPACE)["items"]
    assert policies
    told = Report(divided).rows
    assert NAMESPACE in told["namespace of jobs"]["message"]
    assert [told[check]["state"] for check in ("pod security", "quota", "objects, as a job")] == ["ok"] * 3, told
    divided.kubectl("wait", "pods", "--all", "-n", NAMESPACE, "--for=delete", "--timeout=120s")
    assert divided.kubectl.get("secrets", "-n", NAMESPACE)["items"] == []
