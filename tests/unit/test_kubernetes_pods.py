"""What needs no cluster: names, what is allowed, and what pods mean that no test can make a cluster show."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.doctor.workplace import amount
from cli.serving import load_services
from services.status_watcher.core import outcome_of, overflowed
from shared.config import load
from shared.errors import ConfigurationError, PermanentError
from shared.oci import credentials_for, parse_reference
from shared.runtime import docker_body
from shared.runtime import kubernetes_body as body
from shared.runtime.allowed import Allowed
from shared.runtime.kubernetes_config import config_of, open_kubernetes
from shared.runtime.kubernetes_features import mounts_images
from shared.runtime.kubernetes_options import OFFER
from shared.runtime.kubernetes_place import Tenancy, ip_blocks, network_policy
from shared.runtime.kubernetes_read import hopeless, may_pass, observe, overdue, pod_of
from shared.runtime.protocol import ContainerSpec, Phase, ServiceSpec
from shared.service import check
from shared.settings import KubernetesSettings, RuntimeSettings
from shared.vault import new_key

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def pod(**status: Any) -> dict[str, Any]:
    """A pod as the API server tells of it. `deleted`, `node` and `notes` are not of its status."""
    metadata: dict[str, Any] = {
        "name": "hf-a-1-0", "namespace": "jobs", "uid": "u", "resourceVersion": "7", "finalizers": [body.FINALIZER],
        "creationTimestamp": "2026-11-25T11:00:00Z", "annotations": {f"{body.NOTE}run": "r", **status.pop("notes", {})},
    }  # fmt: skip
    if deleted := status.pop("deleted", ""):
        metadata["deletionTimestamp"] = deleted
    return {"metadata": metadata, "spec": {"nodeName": status.pop("node", "node1")}, "status": status}


def state(**of_job: Any) -> list[dict[str, Any]]:
    return [{"name": body.JOB, "state": of_job}]


DB = ServiceSpec("db", "hub.test/pg:16", env={"PW": "s3cret"}, port=5432, ready_seconds=1.5,
                 registry_auth={"username": "u", "password": "p"})  # fmt: skip


def with_services(*services: ServiceSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pod and Secret of an attempt."""
    spec = ContainerSpec("hf-a-1-0", "", {"command": ["x"]}, {}, services=services)
    defaults = body.PodDefaults("here", "job:1", "wrapper:1")
    return body.pod(spec, defaults, "secret-name"), body.secret(
        spec, defaults, "secret-name", "u", body.secret_data(spec)
    )


def test_t14_services_are_native_sidecars_after_the_wrapper_and_tell_no_secrets() -> None:
    made, secret = with_services(DB, ServiceSpec("other", "o:1", ("run",), check=("ok",)))
    wrapper, db, other = made["spec"]["initContainers"]
    assert (wrapper["name"], db["restartPolicy"], other["restartPolicy"]) == ("wrapper", "Always", "Always")
    assert db["startupProbe"]["tcpSocket"] == {"port": 5432}
    assert db["startupProbe"]["failureThreshold"] == 2
    assert (other["command"], other["startupProbe"]["exec"]) == (["run"], {"command": ["ok"]})
    assert "s3cret" not in json.dumps(made)
    (variable,) = db["env"]
    key = variable["valueFrom"]["secretKeyRef"]["key"]
    assert base64.b64decode(secret["data"][key]) == b"s3cret"
    assert "hub.test" in base64.b64decode(secret["data"][".dockerconfigjson"]).decode()
    assert made["spec"]["imagePullSecrets"] == [{"name": "secret-name"}]
    assert made["spec"]["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ["db", "other"]}]


@pytest.mark.parametrize(
    ("pull", "ask", "policy"),
    [
        ("missing", False, "IfNotPresent"),
        ("checked", False, "IfNotPresent"),
        ("checked", True, "Always"),
        ("always", False, "Always"),
    ],
)
def test_nodes_ask_the_registry_for_what_workflows_name_only(pull: str, ask: bool, policy: str) -> None:
    defaults = body.PodDefaults("here", "job:1", "wrapper:1", pull=pull)
    service = dataclasses.replace(DB, ask_registry=ask)
    for image, of_job in (("hub.test/private:1", policy), ("", "IfNotPresent")):
        spec = ContainerSpec("hf-a-1-0", image, {}, {}, services=(service,), ask_registry=ask)
        made = body.pod(spec, defaults, "secret-name")["spec"]
        found = [each["imagePullPolicy"] for each in (*made["initContainers"], *made["containers"])]
        assert found == ["IfNotPresent", policy, of_job]


def test_all_that_a_secret_holds_counts_against_what_kubernetes_takes() -> None:
    """Each part alone was small enough; the API refused the whole, after the pod was there."""
    half = body.SECRET_LIMIT // 2
    service = ServiceSpec("db", "pg:16", env={"A": "x" * half})
    fits = ContainerSpec("hf-a-1-0", "", {"command": ["x" * (half - 1000)]}, {}, services=(service,))
    assert sum(map(len, body.secret_data(fits).values())) <= body.SECRET_LIMIT
    account = {"username": "u", "password": "p" * 1000}
    with pytest.raises(PermanentError, match=f"has [0-9]+ bytes, and Kubernetes takes {body.SECRET_LIMIT}") as refused:
        body.secret_data(dataclasses.replace(fits, registry_auth=account))
    assert refused.value.reason == "BadInput"


def test_two_accounts_of_one_registry_keep_their_images() -> None:
    """By the rule of kubelet, which is that of `credentials_for`: the longest path wins."""
    one, other, third = ({"username": name, "password": "p"} for name in ("one", "other", "third"))
    services = (
        ServiceSpec("db", "hub.test:5000/b/pg:16", registry_auth=other),
        ServiceSpec("again", "hub.test:5000/c/pg:16", registry_auth=one),
        ServiceSpec("cache", "acme/redis", registry_auth=third),
        ServiceSpec("queue", "rabbitmq:4", registry_auth=other),
    )
    spec = ContainerSpec("hf-a-1-0", "hub.test:5000/a/tool:1", {}, {}, registry_auth=one, services=services)
    config = body.secret_data(spec)[".dockerconfigjson"].decode()
    for image, auth in (("hub.test:5000/a/tool:1", one), *((each.image, each.registry_auth) for each in services[:2])):
        assert credentials_for(config, parse_reference(image)) == auth
    accounts = {key: entry["username"] for key, entry in json.loads(config)["auths"].items()}
    assert accounts["https://index.docker.io/v1/"] == "third"
    assert accounts["docker.io/library/rabbitmq"] == "other"


def test_pods_run_on_linux_unless_the_operator_says_otherwise() -> None:
    spec = ContainerSpec("hf-a-1-0", "", {}, {})
    for own, expected in (({}, "linux"), ({body.OS: "talos"}, "talos")):
        defaults = body.PodDefaults("here", "job:1", "wrapper:1", node_selector={"pool": "jobs", **own})
        selector = body.pod(spec, defaults, "secret-name")["spec"]["nodeSelector"]
        assert selector == {"pool": "jobs", body.OS: expected}


def test_a_pod_without_services_is_as_it_was() -> None:
    made, _ = with_services()
    assert "hostAliases" not in made["spec"]
    assert [each["name"] for each in made["spec"]["initContainers"]] == ["wrapper"]


@pytest.mark.parametrize(
    ("service", "job", "verdict"),
    [
        ({"state": {"running": {}}}, {"waiting": {"reason": "PodInitializing"}}, ""),
        ({"state": {"terminated": {"exitCode": 3, "message": "no room"}}}, {"waiting": {}}, "StartFailed"),
        ({"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137}}}, {"waiting": {}}, "StartFailed"),
        ({"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 3}}}, {"running": {}}, ""),
        ({"state": {"waiting": {"reason": "InvalidImageName"}}}, {"waiting": {}}, "ImagePull"),
    ],
)
def test_a_service_that_ends_before_the_job_begins_fails_it(
    service: dict[str, Any], job: dict[str, Any], verdict: str
) -> None:
    shown = pod(
        phase="Pending", containerStatuses=state(**job), initContainerStatuses=[{"name": "service-db", **service}]
    )
    found = hopeless(pod_of(shown), 0, 300, 60)
    assert (found[0] if found else "") == verdict
    if verdict == "StartFailed":
        assert found is not None
        assert "service db" in found[1]


@given(st.text(max_size=200), st.text(max_size=200))
def test_t50_labels_are_short_and_stay_unique(one: str, other: str) -> None:
    assert len(body.label(one)) <= 63
    assert (body.label(one) == body.label(other)) == (one == other)
    assert body.label(body.label(one)) == body.label(one)


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_tenants_never_share_a_namespace(one: str, other: str) -> None:
    tenancy = Tenancy(namespace="hubflow-jobs", per_tenant=True)
    assert len(tenancy.namespace_of(one)) <= 63
    assert (tenancy.namespace_of(one) == tenancy.namespace_of(other)) == (one == other)


def test_t89_settings_that_allow_what_does_not_exist_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="hostPath"):
        load({"HUBFLOW_KUBERNETES_ALLOW": "hostPath"}, KubernetesSettings)
    with pytest.raises(ConfigurationError, match="TOLERATIONS"):
        load({"HUBFLOW_KUBERNETES_TOLERATIONS": "[1]"}, KubernetesSettings)


def test_a_namespace_for_each_tenant_needs_an_installation_with_a_name() -> None:
    divided = KubernetesSettings(wrapper_image="wrapper", namespace_per_tenant=True)
    with pytest.raises(ConfigurationError, match="HUBFLOW_RUNTIME_INSTALLATION that no other"):
        open_kubernetes(divided, RuntimeSettings().installation, "", "checked")
    open_kubernetes(divided, "staging", "", "checked")
    open_kubernetes(KubernetesSettings(wrapper_image="wrapper"), RuntimeSettings().installation, "", "checked")


def test_services_that_need_pods_start_only_with_what_these_need() -> None:
    environment = {
        "HUBFLOW_DATABASE_URL": "postgresql://localhost/hubflow", "HUBFLOW_SECRET_KEY": new_key(),
        "HUBFLOW_RUNTIME_KIND": "kubernetes", "HUBFLOW_KUBERNETES_NAMESPACE_PER_TENANT": "true",
    }  # fmt: skip
    with pytest.raises(ConfigurationError) as told:
        check(load_services(["executor"]), environment)
    assert "WRAPPER_IMAGE" in str(told.value)
    assert "RUNTIME_INSTALLATION" in str(told.value)
    check(load_services(["scheduler"]), environment)


def test_networks_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"EGRESS: .*host bits"):
        load({"HUBFLOW_KUBERNETES_EGRESS": "10.0.0.1/8"}, KubernetesSettings)
    with pytest.raises(ConfigurationError, match="EGRESS_EXCEPT"):
        load({"HUBFLOW_KUBERNETES_EGRESS_EXCEPT": "metadata"}, KubernetesSettings)


def test_a_network_has_only_exceptions_that_lie_within_it() -> None:
    allowed = ["0.0.0.0/0", "10.0.0.0/8", "169.254.169.0/24", "::/0"]
    assert ip_blocks(allowed, ["169.254.0.0/16", "10.1.0.0/16", "fe80::/10"]) == [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16", "10.1.0.0/16"]}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
    ]


def test_the_manifest_of_jobs_and_the_namespaces_of_tenants_have_the_same_network_policy() -> None:
    manifest = yaml.safe_load((Path(__file__).parents[2] / "k8s/base/jobs/network.yaml").read_text())
    assert manifest["spec"] == network_policy(Tenancy())
    assert config_of(KubernetesSettings(), "test", "").tenancy == Tenancy()


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "168.63.129.16",
        "100.100.100.200",
    ],
)  # fmt: skip
def test_jobs_do_not_reach_where_clouds_hand_out_credentials(address: str) -> None:
    [_, rule] = network_policy(Tenancy())["egress"]
    blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
    [block] = [each for each in blocks if ip_address(address) in ip_network(each["cidr"])]
    assert any(ip_address(address) in ip_network(each) for each in block["except"])


@pytest.mark.parametrize(
    ("egress", "setting", "peers"),
    [
        ("0.0.0.0/0", "true", [{"namespaceSelector": {}}]),
        ("0.0.0.0/0", "false", []),
        ("10.0.0.0/8", "true", []),  # who has narrowed it is not given the cluster besides
    ],
)
def test_pods_of_the_cluster_are_reached_where_networks_do_not_mean_them(
    egress: str, setting: str, peers: list[Any]
) -> None:
    environment = {
        "HUBFLOW_KUBERNETES_EGRESS": egress,
        "HUBFLOW_KUBERNETES_EGRESS_EXCEPT": "",
        "HUBFLOW_KUBERNETES_EGRESS_CLUSTER": setting,
    }
    [settings] = load(environment, KubernetesSettings)
    [names, rule] = network_policy(config_of(settings, "test", "").tenancy)["egress"]
    assert names["ports"][0]["port"] == 53
    assert rule["to"] == [{"ipBlock": {"cidr": egress}}, *peers]


def test_t89_a_toleration_of_everything_is_not_one_of_a_key() -> None:
    allowed = Allowed.parse("tolerations=pool", OFFER)
    allowed.check({"tolerations": [{"key": "pool", "operator": "Exists"}]})
    with pytest.raises(PermanentError, match="tolerations"):
        allowed.check({"tolerations": [{"operator": "Exists"}]})


def test_t13_the_wrapper_is_brought_with_enough_memory_and_no_limit_of_cpu() -> None:
    made, _ = with_services()
    (installer,) = made["spec"]["initContainers"]
    limits = installer["resources"]["limits"]
    assert "cpu" not in limits
    assert amount(limits["memory"]) > amount("64Mi")


def test_t13_a_wrapper_that_could_not_be_brought_for_lack_of_memory_is_its_own_reason() -> None:
    killed = {"exitCode": 137, "reason": "OOMKilled"}
    installer = [{"name": body.WRAPPER, "state": {"terminated": killed}}]
    seen = observe(
        pod_of(pod(phase="Failed", initContainerStatuses=installer, containerStatuses=state(waiting={}))), NOW
    )
    assert seen is not None
    assert seen.reason == "InitFailed"
    assert "OOMKilled" in seen.message
    assert not outcome_of(seen).started


@pytest.mark.parametrize(
    ("code", "of_pod", "reason"),
    [
        (1, {}, "InitFailed"),
        (137, {}, "InitFailed"),
        (137, {"reason": "Evicted"}, "Evicted"),
        (137, {"deleted": "2026-11-25T12:00:00Z"}, "ContainerGone"),
        (1, {"deleted": "2026-11-25T12:00:00Z"}, "InitFailed"),
        (0, {"reason": "OutOfephemeral-storage"}, "Evicted"),
        (0, {"reason": "OutOfnvidia.com/gpu"}, "Evicted"),
    ],
)
def test_a_container_that_a_webhook_has_added_and_that_fails_is_named(
    code: int, of_pod: dict[str, Any], reason: str
) -> None:
    added = [
        {"name": "istio-proxy", "state": {"terminated": {"exitCode": 3, "message": "ended with the pod"}}},
        {"name": "istio-init", "state": {"terminated": {"exitCode": code, "message": "no iptables"}}},
    ]
    shown = pod(
        phase="Failed",
        initContainerStatuses=added,
        containerStatuses=state(waiting={"reason": "PodInitializing"}),
        **of_pod,
    )
    shown["spec"]["initContainers"] = [{"name": "istio-proxy", "restartPolicy": "Always"}, {"name": "istio-init"}]
    seen = observe(pod_of(shown), NOW)
    assert seen is not None
    assert (seen.phase, seen.reason) == (Phase.FINISHED, reason)
    if reason == "InitFailed":
        assert f"istio-init of pod hf-a-1-0, which the cluster has added, ended with {code}" in seen.message
        assert "no iptables" in seen.message


def test_t09_an_image_of_a_container_that_a_webhook_has_added_is_missed_by_name() -> None:
    waiting = {"reason": "ErrImagePull", "message": "istio/proxyv2: not found"}
    added = [{"name": "istio-init", "state": {"waiting": waiting}}]
    of_job = state(waiting={"reason": "PodInitializing"})
    shown = pod_of(pod(phase="Pending", initContainerStatuses=added, containerStatuses=of_job))
    seen, verdict = observe(shown, NOW), hopeless(shown, 0, 300, 60)
    assert seen is not None
    assert seen.message == "ErrImagePull: container istio-init: istio/proxyv2: not found"
    assert verdict is not None
    assert (verdict[0], "container istio-init" in verdict[1]) == ("ImagePull", True)


def test_t05_a_node_that_vanished_with_its_pod_is_lost() -> None:
    gone = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByPodGC",
        "message": "PodGC: node not found",
    }
    running = {"startedAt": "2026-11-25T11:30:00Z"}
    seen = observe(pod_of(pod(phase="Failed", conditions=[gone], containerStatuses=state(running=running))), NOW)
    assert seen is not None
    assert (seen.phase, seen.reason) == (Phase.FINISHED, "NodeLost")
    # Its code has begun, and begins again only as often as its user has allowed.
    assert outcome_of(seen).started is True


def test_t05_a_node_that_was_restarted_under_a_job_is_lost_and_its_job_has_not_failed() -> None:
    """What containerd says of a container that it finds dead when it starts."""
    ended = {"exitCode": 255, "reason": "Unknown", "startedAt": "2026-11-25T11:30:00Z"}
    seen = observe(pod_of(pod(phase="Failed", containerStatuses=state(terminated=ended))), NOW)
    assert seen is not None
    assert seen.reason == "NodeLost"
    assert "restarted" in seen.message
    assert (outcome_of(seen).state, outcome_of(seen).started) == ("lost", True)


def test_t07_a_job_that_had_ended_before_its_node_was_restarted_has_its_own_outcome() -> None:
    message = '{"version": 1, "attempt": "hf-a-1-0", "outcome": "exited", "exit_code": 0}'
    ended = {"exitCode": 255, "reason": "Unknown", "message": message}
    seen = observe(pod_of(pod(phase="Failed", containerStatuses=state(terminated=ended))), NOW)
    assert seen is not None
    assert outcome_of(seen).state == "succeeded"


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"limits": {"memory": "134217728"}}, "its limit of 128 MiB"),
        ({"limits": {"memory": "1Gi"}}, "its limit of 1Gi"),
        ({"limits": {"cpu": "1"}}, "what its node had"),
        (None, "what its node had"),
    ],
)
def test_t08_the_limit_that_is_told_is_that_of_the_pod(resources: Any, words: str) -> None:
    """A LimitRange, or a webhook, may have given it."""
    shown = pod(phase="Failed", containerStatuses=state(terminated={"exitCode": 137, "reason": "OOMKilled"}))
    shown["spec"]["containers"] = [
        {"name": "istio-proxy", "resources": {"limits": {"memory": "9"}}},
        {"name": body.JOB, **({"resources": resources} if resources else {})},
    ]
    seen = observe(pod_of(shown), NOW)
    assert seen is not None
    assert (seen.reason, seen.message.partition("than ")[2]) == ("OOMKilled", words)


def test_t07_an_eviction_in_the_second_of_the_exit_does_not_make_a_failure() -> None:
    message = '{"version": 1, "attempt": "hf-a-1-0", "outcome": "exited", "exit_code": 0}'
    ended = {"exitCode": 0, "message": message, "reason": "Completed"}
    seen = observe(pod_of(pod(phase="Failed", reason="Evicted", containerStatuses=state(terminated=ended))), NOW)
    assert seen is not None
    assert (seen.reason, seen.exit_code) == ("", 0)


def test_a_result_of_another_attempt_counts_as_none() -> None:
    ended = {"exitCode": 0, "message": '{"version": 1, "attempt": "hf-b-1-0", "outcome": "exited", "exit_code": 0}'}
    seen = observe(pod_of(pod(phase="Succeeded", containerStatuses=state(terminated=ended))), NOW)
    assert seen is not None
    assert (seen.reason, seen.result) == ("WrapperFailed", None)


@pytest.mark.parametrize(
    ("disruption", "reason"),
    [
        # Deleted by hand on a node that is slow: it may be well otherwise.
        ("", "ContainerGone"),
        ("DeletionByTaintManager", "NodeLost"),
    ],
)
def test_a_deleted_pod_is_given_up_only_when_its_node_stays_silent(disruption: str, reason: str) -> None:
    running = {"startedAt": "2026-11-25T11:30:00Z"}
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": disruption}] if disruption else []
    leaving = pod(
        phase="Running", deleted="2026-11-25T12:00:00Z", conditions=conditions, containerStatuses=state(running=running)
    )
    early, late = (observe(pod_of(leaving), NOW + timedelta(seconds=seconds)) for seconds in (10, 30))
    assert early is not None
    assert early.phase is Phase.RUNNING
    assert late is not None
    assert (late.phase, late.reason) == (Phase.FINISHED, reason)
    assert outcome_of(late).started is True


@pytest.mark.parametrize("odd", [{"timings": [1]}, {"exit_code": "1"}, {"message": 7}, {"overflow": "here"}])
def test_t17_a_result_that_a_job_has_made_up_is_read_as_far_as_it_goes(odd: dict[str, Any]) -> None:
    message = json.dumps({"version": 1, "attempt": "hf-a-1-0", "outcome": "exited", "exit_code": 0, **odd})
    seen = observe(pod_of(pod(containerStatuses=state(terminated={"exitCode": 0, "message": message}))), NOW)
    assert seen is not None
    assert not overflowed(seen)
    assert outcome_of(seen).state in {"succeeded", "failed"}


@pytest.mark.parametrize("message", ["[" * 4096, 7], ids=["brackets", "no text"])
def test_t17_a_termination_message_that_cannot_be_read_fails_its_own_job_only(message: Any) -> None:
    """Brackets that a job has written were too deep for Python's reader, and ended every status_watcher, again and again."""
    killed = {"exitCode": 137, "reason": "Error", "message": message}
    seen = observe(pod_of(pod(phase="Failed", containerStatuses=state(terminated=killed))), NOW)
    assert seen is not None
    assert (seen.phase, seen.reason, seen.result) == (Phase.FINISHED, "WrapperFailed", None)


def test_t17_brackets_without_end_are_no_result_on_an_engine() -> None:
    assert docker_body.result_in(docker_body.RESULT_BEGINS + b': 1, "outputs": ' + b"[" * 300_000) is None


def test_a_stopped_pod_is_overdue_only_when_its_node_has_had_its_time() -> None:
    patch = body.ending("u", "Cancelled", "stopped", NOW)
    notes = patch["metadata"]["annotations"]
    told = pod(phase="Running", notes=notes, containerStatuses=state(running={}))
    told["spec"]["terminationGracePeriodSeconds"] = 15
    assert [overdue(pod_of(told), NOW + timedelta(seconds=seconds)) for seconds in (0, 24, 26)] == [False, False, True]
    pulling = pod_of(pod(phase="Pending", notes=notes, containerStatuses=state(waiting={})))
    assert [overdue(pulling, NOW + timedelta(seconds=seconds)) for seconds in (0, 1, 3)] == [False, False, True]
    leaving = pod(phase="Running", notes=notes, deleted="2026-11-25T12:00:00Z")
    assert not overdue(pod_of(leaving), NOW + timedelta(hours=1))
    for written in ("2026-11-25T12:00:00", "9999-12-31T23:59:59Z"):
        by_hand = pod(phase="Running", notes={body.ENDING_SINCE: written}, containerStatuses=state(running={}))
        assert not overdue(pod_of(by_hand), NOW + timedelta(hours=1))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1", True),
        ("status unknown for quota: q, resources: pods", True),
        ("unable to create new content in namespace jobs because it is being terminated", True),
        ('error looking up service account jobs/hubflow-jobs: serviceaccount "hubflow-jobs" not found', True),
        ("not yet ready to handle request", True),
        (
            'User "system:serviceaccount:h:executor" cannot create resource "pods" in API group "" in the namespace "j"',
            True,
        ),
        ("failed quota: q: must specify limits.cpu for: job", False),
        ("no PriorityClass with name golden was found", False),
        ('pod rejected: RuntimeClass "kata" not found', False),
        ('violates PodSecurity "baseline:latest": host namespaces', False),
        ('admission webhook "validation.gatekeeper.sh" denied the request: [registries] image not allowed', False),
        ("maximum memory usage per Container is 1Gi, but limit is 2Gi", False),
    ],
)
def test_t10_what_is_forbidden_for_good_is_told_from_what_passes(words: str, expected: bool) -> None:
    assert may_pass(f'pods "hf-a-1-0" is forbidden: {words}') is expected


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("ErrImagePull", "failed to resolve reference: not found", "ImagePull"),
        ("InvalidImageName", "couldn't parse image name", "ImagePull"),
        ("ImagePullBackOff", "connection refused", None),
        ("CreateContainerError", "name is reserved", "StartFailed"),
        ("PodInitializing", "", None),
    ],
)
def test_t09_what_will_never_start_is_known_at_once(reason: str, message: str, expected: str | None) -> None:
    waiting = {"reason": reason, "message": message}
    seen = pod_of(pod(phase="Pending", containerStatuses=state(waiting=waiting)))
    verdict = hopeless(seen, 100, pull_seconds=7200, create_seconds=60)
    assert (verdict and verdict[0]) == expected
    if reason == "ImagePullBackOff":
        assert hopeless(seen, 301, pull_seconds=300, create_seconds=60) is not None


@pytest.mark.parametrize(
    ("runtime", "able"),
    [
        ("containerd://2.1.0", True),
        ("containerd://2.10.3-gke.1", True),
        ("containerd://10.0", True),
        ("containerd://2.0.9", False),
        ("containerd://1.7.27", False),
        ("cri-o://1.33.1", True),
        ("cri-o://1.32.9", False),
        ("docker://27.0", False),
        ("containerd://", False),
        ("fake", False),
        ("", False),
    ],
)
def test_which_runtimes_mount_images(runtime: str, able: bool) -> None:
    assert mounts_images(runtime) is able


@pytest.mark.parametrize(
    ("text", "wanted"), [("auto", None), ("AUTO", None), ("true", True), ("1", True), ("false", False), ("", False)]
)
def test_image_volumes_are_left_to_the_cluster_or_decided(text: str, wanted: bool | None) -> None:
    (settings,) = load({"HUBFLOW_KUBERNETES_IMAGE_VOLUMES": text}, KubernetesSettings)
    assert config_of(settings, "one", "alpine:3").defaults.image_volume is wanted


def test_image_volumes_by_another_word_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="IMAGE_VOLUMES: 'maybe': expected auto, true or false"):
        load({"HUBFLOW_KUBERNETES_IMAGE_VOLUMES": "maybe"}, KubernetesSettings)
