"""`hubflow doctor` on a real installation: healthy, and with each thing broken that can be broken without harm to others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.shipping.building import ROOT
from tests.shipping.installing import Installation
from tests.shipping.kubectl import Kubectl

pytestmark = pytest.mark.servers
JOBS = "hubflow-jobs"


class Report:
    """What the doctor has said."""

    def __init__(self, installation: Installation, *options: str) -> None:
        kubeconfig = ("--kubeconfig", str(installation.kubectl.kubeconfig))
        self.done = installation.hubflow("doctor", *kubeconfig, *options, "-o", "json")
        self.rows = {row["check"]: row for row in json.loads(self.done.stdout)}

    @property
    def failed(self) -> set[str]:
        return {check for check, row in self.rows.items() if row["state"] == "failed"}

    def says(self, check: str, *words: str) -> str:
        """The finding has failed with these words; returns how to mend it."""
        row = self.rows[check]
        assert row["state"] == "failed", row
        assert self.done.returncode == 1
        assert row["fix"]
        for word in words:
            assert word in row["message"], row
        return row["fix"]


@contextlib.contextmanager
def settings(kubectl: Kubectl, **values: str) -> Iterator[None]:
    """The executor's Deployment with other settings, which no pod ever gets."""
    deployment = ("deployment/executor", "-n", "hubflow")
    kubectl("rollout", "pause", *deployment)
    try:
        kubectl("set", "env", *deployment, *(f"HUBFLOW_{name}={value}" for name, value in values.items()))
        yield
    finally:
        kubectl("set", "env", *deployment, *(f"HUBFLOW_{name}-" for name in values))
        kubectl("rollout", "resume", *deployment)


@contextlib.contextmanager
def applied(kubectl: Kubectl, document: dict) -> Iterator[None]:
    kubectl("apply", "-f", "-", input=json.dumps(document))
    try:
        yield
    finally:
        kubectl("delete", "-f", "-", input=json.dumps(document))


def quota(**hard: str) -> dict:
    metadata = {"name": "too-small", "namespace": JOBS}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}}


def test_a_healthy_installation_has_nothing_to_mend(installation):
    report = Report(installation)
    assert report.done.returncode == 0, report.done.stdout
    assert {row["state"] for row in report.rows.values()} <= {"ok", "warning"}
    inside = {
        "postgresql",
        "migrations",
        "rabbitmq",
        "rabbitmq policies",
        "objects, as a service",
        "objects, as a job",
        "names",
    }
    assert inside <= report.rows.keys()
    assert all(report.rows[check]["state"] == "ok" for check in inside)
    for namespace in ("hubflow", JOBS):
        pods = installation.kubectl.get("pods", "-n", namespace, "-l", "app.kubernetes.io/name=doctor")["items"]
        assert [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")] == []


def test_people_get_a_table(installation):
    done = installation.hubflow("doctor", "--kubeconfig", str(installation.kubectl.kubeconfig), "--no-pods")
    assert done.returncode == 0
    assert done.stdout.startswith("CHECK")
    assert "permissions of executor" in done.stdout


def test_a_missing_permission_is_named_and_its_fix_mends_it(installation, monkeypatch):
    installation.kubectl("delete", "rolebinding", "executor", "-n", JOBS)
    fix = Report(installation, "--no-pods").says("permissions of executor", "create pods", "create secrets", JOBS)
    assert fix == "kubectl apply -k k8s/base/jobs"
    monkeypatch.chdir(ROOT)
    installation.kubectl(*fix.split()[1:])
    assert Report(installation, "--no-pods").failed == set()


def test_a_level_that_refuses_jobs_is_named_and_its_fix_mends_it(installation):
    installation.kubectl("label", "namespace", JOBS, "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
    fix = Report(installation, "--no-pods").says("pod security", "PodSecurity", "restricted")
    installation.kubectl(*fix.partition(";")[0].split()[1:])
    assert Report(installation, "--no-pods").rows["pod security"]["state"] == "ok"


def test_a_namespace_that_takes_everything_is_warned_of(installation):
    installation.kubectl("label", "namespace", JOBS, "pod-security.kubernetes.io/enforce-")
    report = Report(installation, "--no-pods")
    assert (report.rows["pod security"]["state"], report.done.returncode) == ("warning", 0)
    installation.kubectl(*report.rows["pod security"]["fix"].split()[1:])


def test_a_quota_that_is_used_up(installation):
    with applied(installation.kubectl, quota(pods="0")):
        Report(installation, "--no-pods").says("quota", "used up", "pods")


def test_a_quota_that_refuses_jobs_without_resources(installation):
    with applied(installation.kubectl, quota(**{"limits.cpu": "100", "limits.memory": "1Ti"})):
        fix = Report(installation, "--no-pods").says("quota", "limits.cpu", "limits.memory")
        assert "LimitRange" in fix


def test_a_volume_that_nobody_makes(installation):
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "nowhere",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    metadata = {"name": "waiting", "namespace": "hubflow"}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    with applied(installation.kubectl, claim):
        Report(installation, "--no-pods").says("storage", "waiting", "nowhere")


def test_settings_that_the_cluster_cannot_fulfil(installation):
    wrong = {"KUBERNETES_IMAGE_VOLUMES": "true", "KUBERNETES_SHARED_CLASS": "nowhere"}
    with settings(installation.kubectl, **wrong):
        report = Report(installation, "--no-pods")
    assert "IMAGE_VOLUMES=false" in report.says("image volumes", "containerd://")
    report.says("shared volumes", "nowhere")


def test_settings_that_are_none(installation):
    with settings(installation.kubectl, RUNTIME_KIND="process"):
        Report(installation, "--no-pods").says("settings", "HUBFLOW_RUNTIME_KIND")


def test_servers_that_are_not_where_the_settings_say(installation):
    wrong = {
        "DATABASE_URL": "postgresql://hubflow:wrong@postgres/hubflow",
        "AMQP_URL": "amqp://hubflow:wrong@rabbitmq/",
        "S3_ENDPOINT": "http://nowhere.hubflow.svc:8333",
    }
    with settings(installation.kubectl, **wrong):
        report = Report(installation)
    assert report.failed == {"postgresql", "rabbitmq", "objects, as a service", "objects, as a job", "names"}
    report.says("postgresql", "password")
    report.says("names", "nowhere.hubflow.svc")


def test_an_s3_that_only_services_reach_and_keys_that_it_does_not_know(installation):
    wrong = {"S3_JOB_ENDPOINT": "http://s3.hubflow.svc:9", "S3_SECRET_KEY": "wrong"}
    with settings(installation.kubectl, **wrong):
        report = Report(installation)
    assert report.failed == {"objects, as a service", "objects, as a job"}
    assert "HUBFLOW_S3_JOB_ENDPOINT" in report.says("objects, as a job", "s3.hubflow.svc:9")


def test_a_policy_that_throws_events_away_and_a_schema_that_is_behind(installation):
    inside = ("exec", "-n", "hubflow")
    rabbitmq = (*inside, "rabbitmq-0", "--", "rabbitmqctl")
    sql = (*inside, "postgres-0", "--", "psql", "-U", "hubflow", "-d", "hubflow", "-c")
    installation.kubectl(*rabbitmq, "set_policy", "short", "^hubflow", '{"message-ttl": 60000}', "--apply-to", "queues")
    installation.kubectl(*sql, "UPDATE migrations SET name = 'was ' || name")
    try:
        report = Report(installation)
    finally:
        installation.kubectl(*sql, "UPDATE migrations SET name = substr(name, 5)")
        installation.kubectl(*rabbitmq, "clear_policy", "short")
    assert report.failed == {"rabbitmq policies", "migrations"}
    assert "clear_policy short" in report.says("rabbitmq policies", "short", "message-ttl")
    report.says("migrations", "0001")


def test_a_service_that_does_not_run(installation):
    installation.kubectl("scale", "deployment/notifier", "-n", "hubflow", "--replicas=0")
    try:
        Report(installation, "--no-pods").says("services", "notifier")
    finally:
        installation.kubectl("scale", "deployment/notifier", "-n", "hubflow", "--replicas=1")


def test_no_installation_and_no_cluster(installation, tmp_path):
    Report(installation, "--namespace", "default").says("installation", "default")
    absent = installation.hubflow("doctor", "--kubeconfig", str(tmp_path / "none"), "-o", "json")
    assert absent.returncode == 1
    assert json.loads(absent.stdout)[0]["check"] == "api server"
