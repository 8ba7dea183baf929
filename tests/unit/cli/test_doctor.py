"""What the doctor makes of facts that no cluster of the tests can be made to show."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml

from cli.doctor import meaning, probe
from cli.doctor.cluster import volumes
from cli.doctor.finding import State
from cli.doctor.installation import Installation
from cli.doctor.workplace import RELEASE, amount
from cli.doctor.workplace import check as workplace
from shared.runtime import kubernetes_body as body

HEALTHY = {"version": 180006, "pending": [], "max_connections": 300, "connections": 10}


def node(runtime: str) -> dict:
    return {"metadata": {"name": runtime}, "status": {"nodeInfo": {"containerRuntimeVersion": runtime}}}


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("v1.26.9", State.FAILED),
        ("v1.27.0", State.WARNING),
        ("v1.29.0", State.OK),
        ("v1.34.4-gke.100", State.OK),
        ("v2.0.0", State.OK),
    ],
)
def test_versions_of_kubernetes(version, state):
    assert meaning.kubernetes_version(version).state is state


@pytest.mark.parametrize(
    ("seconds", "state"), [(0.5, State.OK), (-4.9, State.OK), (6, State.WARNING), (-61, State.FAILED)]
)
def test_clocks_that_differ(seconds, state):
    finding = meaning.clocks("clocks", {"a": 1000.0, "b": 1000.0 + seconds})
    assert finding.state is state
    assert f"{abs(seconds):.1f} s" in finding.message


def test_an_old_postgresql_and_an_old_rabbitmq():
    assert meaning.postgres({**HEALTHY, "version": 130011}, 7, "hubflow")[0].state is State.FAILED
    assert meaning.rabbitmq({"version": "3.9.29", "policies": []})[0].state is State.FAILED
    assert meaning.rabbitmq({"version": "3.10.0", "policies": []})[0].state is State.OK
    assert meaning.rabbitmq({"version": "4.1.2", "policies": []})[0].state is State.OK


def test_more_processes_than_postgresql_has_connections_for():
    assert [each.state for each in meaning.postgres(HEALTHY, 7, "hubflow")] == [State.OK, State.OK]
    [*_, connections] = meaning.postgres({**HEALTHY, "max_connections": 100}, 8, "hubflow")
    assert connections.state is State.WARNING
    assert connections.fix == "max_connections = 146, or HUBFLOW_DATABASE_CONNECTIONS=9 in settings.env"
    for mended in ({"max_connections": 146}, {"max_connections": 100, "connections": 9}):
        assert len(meaning.postgres({**HEALTHY, **mended}, 8, "hubflow")) == 2, mended
    older = {name: fact for name, fact in HEALTHY.items() if name != "connections"} | {"max_connections": 100}
    assert meaning.postgres(older, 8, "hubflow")[-1] == connections
    [*_, many] = meaning.postgres({**HEALTHY, "max_connections": 100}, 40, "hubflow")
    assert many.fix == "max_connections = 530"


def test_the_fix_for_a_lacking_migration_names_the_namespace():
    findings = meaning.postgres({**HEALTHY, "pending": ["0009"]}, 7, "elsewhere")
    assert "kubectl -n elsewhere delete job migrate" in findings[1].fix


@pytest.mark.parametrize(
    ("pattern", "definition", "state"),
    [
        (".*", {"max-length": 10}, State.FAILED),
        ("^hubflow", {"expires": 10}, State.FAILED),
        ("^hubflow", {"delivery-limit": 50}, State.OK),
        ("^others", {"message-ttl": 10}, State.OK),
    ],
)
def test_policies_that_throw_events_away(pattern, definition, state):
    facts = {"version": "4.0.0", "policies": [{"name": "p", "pattern": pattern, "definition": definition}]}
    assert meaning.rabbitmq(facts)[1].state is state


def test_policies_that_cannot_be_seen():
    assert meaning.rabbitmq({"version": "4.0.0", "policies": None})[1].state is State.WARNING


@pytest.mark.parametrize(
    ("known", "runtimes", "wanted", "asked", "state", "says"),
    [
        (True, ["containerd://2.1.0"], True, True, State.OK, "used"),
        (True, ["containerd://2.1.0"], None, True, State.OK, "used"),
        (True, ["containerd://2.1.0"], None, False, State.WARNING, "they are not used"),
        (True, ["containerd://2.1.0"], False, True, State.WARNING, "they are not used"),
        (True, ["containerd://2.1.0", "containerd://1.7.2"], True, True, State.FAILED, "containerd://1.7.2"),
        (
            True,
            ["containerd://2.1.0", "containerd://1.7.2"],
            None,
            True,
            State.OK,
            "not used; nodes with containerd://1.7.2",
        ),
        (False, ["cri-o://1.33.0"], True, True, State.FAILED, "API server"),
        (False, ["cri-o://1.33.0"], None, False, State.OK, "not used; the API server"),
        (True, ["cri-o://1.33.1"], True, True, State.OK, "used"),
        (True, ["docker://27.0"], False, True, State.OK, "not used"),
    ],
)
def test_image_volumes(known, runtimes, wanted, asked, state, says):
    finding = volumes([node(each) for each in runtimes], known=known, wanted=wanted, asked=asked)
    assert finding.state is state
    assert says in finding.message


@pytest.mark.parametrize(("text", "value"), [("250m", 0.25), ("2Gi", 2 << 30), ("500", 500), ("1k", 1000), ("0", 0)])
def test_amounts(text, value):
    assert float(amount(text)) == value


def test_the_pods_that_look_run_as_the_user_of_their_image():
    # OpenShift refuses a pod that names one.
    executor = {"spec": {"template": {"spec": {"containers": [{"image": "hubflow"}]}}}}
    installation = Installation("hubflow", {"executor": executor}, {"HUBFLOW_RUNTIME_KIND": "kubernetes"})
    for pod in (probe.as_service(installation), probe.as_job(installation, installation.runtime())):
        [container] = pod["spec"]["containers"]
        assert pod["spec"]["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
        assert container["securityContext"]["runAsNonRoot"] is True
        assert "runAsUser" not in container["securityContext"]


class Leaving:
    """An API server whose namespace of jobs is being deleted, with these pods in it."""

    def __init__(self, pods):
        self._pods = pods

    async def call(self, method, path):
        """A namespace, or its pods."""
        return {"items": self._pods} if path.endswith("/pods") else {"status": {"phase": "Terminating"}}


@pytest.mark.parametrize(
    ("finalizers", "words", "fix"),
    [([body.FINALIZER], "1 pods (hf-a-1-0, ...) are held", RELEASE), (["other"], "no job can start", "kubectl apply")],
)
async def test_a_namespace_of_jobs_that_is_being_deleted(finalizers, words, fix):
    config = Installation("hubflow", {}, {"HUBFLOW_RUNTIME_KIND": "kubernetes"}).runtime()
    [finding] = await workplace(Leaving([{"metadata": {"name": "hf-a-1-0", "finalizers": finalizers}}]), config)
    assert finding.state is State.FAILED
    assert words in finding.message
    assert fix in finding.fix


def test_the_cure_for_a_deleted_namespace_gives_what_status_watcher_has_anyway():
    root = Path(__file__).parents[3]
    cure = (root / "docs/kubernetes.md").read_text().partition(f"## {RELEASE}")[2].partition("<<'END'\n")[2]
    role, binding = yaml.safe_load_all(textwrap.dedent(cure.partition("    END\n")[0]))
    granted = yaml.safe_load_all((root / "k8s/base/jobs/permissions.yaml").read_text())
    [own] = [
        each for each in granted if each and (each["kind"], each["metadata"]["name"]) == ("Role", "status-watcher")
    ]
    assert role["rules"] == own["rules"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "status-watcher", "namespace": "hubflow"}]
