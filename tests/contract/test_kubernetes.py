"""What only Kubernetes does, on a real cluster: why pods end, who may end them, and an API server that is unwell."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import re
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from shared.errors import PermanentError, TemporaryError, UnavailableError
from shared.oci import open_registry_client, parse_reference
from shared.runtime import kubernetes_api, kubernetes_logs, kubernetes_read
from shared.runtime import kubernetes_body as body
from shared.runtime.kubernetes import KubernetesRuntime
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import Api
from shared.runtime.kubernetes_features import Features, mounts_images
from shared.runtime.protocol import IncompleteLogError, Phase, Resources, ServiceSpec
from tests.cluster import NODE, NODE_ADDRESS, REFUSING_REGISTRY, REGISTRY
from tests.cluster.images import job_images
from tests.cluster.nodes import TOLERATION, node
from tests.cluster.programs import CONTAINERD
from tests.contract.runtime_places import Watcher, kubernetes_config, new_name, read, spec
from tests.servers.between import opened_between
from tests.servers.pushing import push_image
from tests.servers.registry import started_registry

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("kubernetes")]
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@contextlib.asynccontextmanager
async def watched(place, **more):
    """A runtime with these settings, and a watcher on it."""
    config = kubernetes_config(place.where, place.wrapper, place.installation, **more)
    runtime = KubernetesRuntime(config)
    watcher = Watcher(runtime)
    try:
        yield runtime, watcher
    finally:
        await watcher.close()
        await runtime.close()


@pytest.fixture
async def both(kubernetes_place):
    async with watched(kubernetes_place) as pair:
        yield pair


async def up(runtime, name):
    """Wait until the job has printed something."""
    async for chunk in runtime.logs(name, follow=True):
        return chunk
    raise AssertionError(f"{name} ended without a word")


def writes(runtime):
    return sum(
        number for (verb, kind), number in runtime.api.counted.items() if verb in WRITES and kind in {"pods", "secrets"}
    )


async def strangers_pod(place, runtime, name, **more):
    """Somebody's own pod with our label, and nothing else of ours."""
    image = runtime._config.defaults.default_image
    pod = {
        "metadata": {"name": name, "labels": body.labels(place.installation, {})},
        "spec": {"containers": [{"name": "own", "image": image, "command": ["true"]}], **more},
    }
    await place.cluster("POST", place.pod_path("").rstrip("/"), body=pod)


# what it costs


async def test_t93_an_attempt_costs_five_writes(kubernetes_place, both):
    runtime, watcher = both
    # One that ends by itself, one that is stopped, and one with less time than it has declared.
    for done, grace in enumerate((None, 10, 1), 1):
        name = new_name()
        await runtime.start(spec(name, "true" if grace is None else "echo up; sleep 60"))
        if grace is not None:
            await up(runtime, name)
            await runtime.stop(name, grace)
        await watcher.until(name, Phase.FINISHED)
        await runtime.remove(name)
        assert writes(runtime) == 5 * done
        await kubernetes_place.until_gone(name)


async def test_secrets_are_not_in_what_the_cluster_tells_of_a_pod(kubernetes_place, both):
    runtime, watcher = both
    name = new_name()
    await runtime.start(spec(name, "sleep 60", env={"TOKEN": "very-secret"}))
    await watcher.until(name, Phase.RUNNING)
    pod = await kubernetes_place.cluster("GET", kubernetes_place.pod_path(name))
    assert "very-secret" not in str(pod)
    assert pod["spec"]["automountServiceAccountToken"] is False
    await runtime.remove(name)


# why pods end


async def test_t08_too_much_memory_is_told_with_container_and_limit(both):
    runtime, watcher = both
    name = new_name()
    await runtime.start(spec(name, "tail /dev/zero", resources=Resources(memory_bytes=48 << 20)))
    end = await watcher.until(name, Phase.FINISHED)
    assert end.reason == "OOMKilled"
    assert name in end.message
    assert "container job" in end.message
    assert "48 MiB" in end.message


async def test_t09_images_that_cannot_be_had_are_named(kubernetes_place, tmp_path):
    async with (
        started_registry(tmp_path / "open", bind=NODE_ADDRESS, port=int(REGISTRY.rpartition(":")[2])),
        started_registry(
            tmp_path / "closed", bind=NODE_ADDRESS, port=int(REFUSING_REGISTRY.rpartition(":")[2]), users={"u": "word"}
        ),
        watched(kubernetes_place, pull_seconds=8) as (runtime, watcher),
        open_registry_client([REFUSING_REGISTRY]) as client,
    ):
        unknown, refused, silent, allowed = (new_name() for _ in range(4))
        auth = {"username": "u", "password": "word"}
        image = f"{REFUSING_REGISTRY}/private/tool:1"
        await push_image(client, parse_reference(image), *job_images()[0].pushable(), auth)
        await runtime.start(spec(unknown, "true", image=f"{REGISTRY}/nowhere/nothing:7"))
        await runtime.start(spec(refused, "true", image=image))
        await runtime.start(spec(silent, "true", image=f"{NODE_ADDRESS}:9/no/registry:1"))
        for name, word in ((unknown, "nowhere/nothing:7"), (refused, "private/tool:1"), (silent, "no/registry:1")):
            end = await watcher.until(name, Phase.FINISHED)
            assert end.reason == "ImagePull", end
            assert word in end.message
        await runtime.start(spec(allowed, "echo hello", image=image, registry_auth=auth))
        assert await read(runtime, allowed, follow=True) == b"hello\n"
        # Now the node has it, and gives it to anybody who does not have it ask the registry.
        async with watched(kubernetes_place, pull_seconds=8, defaults={"pull": "always"}) as (asking, watcher):
            for service in (False, True):
                name, other = new_name(), () if not service else (ServiceSpec("db", image),)
                await asking.start(spec(name, "true", image="" if service else image, services=other))
                assert (await watcher.until(name, Phase.FINISHED)).reason == "ImagePull"


async def test_t09_the_time_that_a_pod_waited_for_its_node_is_not_its_images(kubernetes_place):
    """As where a node is made for it: minutes go by before kubelet hears of the pod."""
    async with watched(kubernetes_place, pull_seconds=2) as (runtime, watcher):
        wanted = spec(new_name(), "true", image=f"{NODE_ADDRESS}:9/no/registry:1")
        content = body.pod(wanted, runtime._config.defaults, body.new_secret_name(wanted.name))
        content["spec"]["schedulingGates"] = [{"name": "hubflow.dev/test"}]
        namespace = await runtime._namespaces.ready("t1")
        made = await runtime._create_pod(wanted.name, namespace, content)
        await runtime._create_secret(wanted, made)
        async with asyncio.timeout(30):
            while runtime.api.now() - made.created < timedelta(seconds=8):
                await runtime.pods.changed(wanted.name, made.version, 0.5)
        await kubernetes_place.patch(wanted.name, {"spec": {"schedulingGates": None}})
        end = await watcher.until(wanted.name, Phase.FINISHED)
        assert end.reason == "ImagePull"
        assert re.search(r"after [2-6] s", end.message)
        await runtime.remove(wanted.name)


async def test_t10_what_fits_on_no_node_says_why_and_can_be_stopped(kubernetes_place):
    async with watched(kubernetes_place, allow="node_selector=disk") as (runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "true", options={"node_selector": {"disk": "golden"}}))
        async with asyncio.timeout(20):
            # First it may be another reason: a node that has just come is not ready yet.
            while "didn't match" not in (seen := await runtime.inspect(name)).message:
                await runtime.pods.changed(name, "", 0.2)
        assert seen.phase is Phase.PENDING
        await runtime.stop(name, 5)
        end = await watcher.until(name, Phase.FINISHED)
        assert end.reason == "Cancelled"
        assert "didn't match" in end.message
        before = writes(runtime)
        await runtime.remove(name)
        assert (before, writes(runtime)) == (4, 5)
        await kubernetes_place.until_gone(name)


async def test_t06_an_evicted_job_is_told_as_evicted(kubernetes_place, both):
    runtime, watcher = both
    name = new_name()
    await runtime.start(spec(name, "echo up; sleep 60"))
    await up(runtime, name)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    await kubernetes_place.cluster("POST", f"{kubernetes_place.pod_path(name)}/eviction", body=eviction)
    end = await watcher.until(name, Phase.FINISHED)
    assert end.reason == "Evicted"
    assert "EvictionByEvictionAPI" in end.message


async def test_t06_a_node_that_evicts_says_why(kubernetes_place):
    async with watched(kubernetes_place, allow="ephemeral_storage") as (runtime, watcher):
        name = new_name()
        wanted = spec(name, "head -c 9000000 /dev/zero > f; sleep 60", options={"ephemeral_storage": "1Mi"})
        await runtime.start(wanted)
        end = await watcher.until(name, Phase.FINISHED, timeout=60)
        assert end.reason == "Evicted"
        assert "ephemeral" in end.message


async def test_t12_the_clusters_own_deadline_is_the_jobs_timeout(kubernetes_place, both):
    runtime, watcher = both
    name = new_name()
    await runtime.start(spec(name, "echo up; sleep 60", timeout_s=3600))
    await up(runtime, name)
    await kubernetes_place.patch(name, {"spec": {"activeDeadlineSeconds": 1}})
    end = await watcher.until(name, Phase.FINISHED)
    assert end.reason == "JobTimeout"
    assert "DeadlineExceeded" in end.message


async def test_t13_where_images_can_be_mounted_nothing_brings_the_wrapper(kubernetes_place, both):
    if not CONTAINERD:
        pytest.skip("this cluster's containerd mounts no images (`make test-image-volumes` has one that does)")
    runtime, watcher = both
    name = new_name()
    script = 'echo "[JOB_OUT] A = 1"; ls /.hubflow/bin; /.workflow/bin/thub --help >/dev/null && echo both'
    await runtime.start(spec(name, script, declared_outputs=["A"]))
    assert (await watcher.until(name, Phase.FINISHED)).result["outputs"] == {"A": "1"}
    assert await read(runtime, name) == b"[JOB_OUT] A = 1\nhubflow-wrapper\nthub\nboth\n"
    pod = await kubernetes_place.cluster("GET", kubernetes_place.pod_path(name))
    assert "initContainers" not in pod["spec"]
    assert [volume["image"]["reference"] for volume in pod["spec"]["volumes"] if "image" in volume] == [
        f"{kubernetes_place.wrapper}/wrapper:1"
    ]
    await runtime.remove(name)


async def test_t13_whether_images_can_be_mounted_is_found_out(kubernetes_place):
    """And once, not for each pod."""
    nodes = (await kubernetes_place.cluster("GET", "/api/v1/nodes"))["items"]
    able = all(mounts_images(each["status"]["nodeInfo"]["containerRuntimeVersion"]) for each in nodes)
    async with watched(kubernetes_place, defaults={"image_volume": None}) as (runtime, watcher):
        names = [new_name() for _ in range(3)]
        await asyncio.gather(*(runtime.start(spec(name, "true")) for name in names))
        assert runtime.api.counted["GET", "nodes"] == 1
        for name in names:
            pod = await kubernetes_place.cluster("GET", kubernetes_place.pod_path(name))
            assert ("initContainers" not in pod["spec"]) is able
            assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
            await runtime.remove(name)


async def test_t13_who_may_not_see_the_nodes_brings_the_wrapper_by_an_init_container(kubernetes_place, both, tmp_path):
    runtime, _ = both
    namespace = await runtime._namespaces.ready("")
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/hubflow-jobs/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
    token = await kubernetes_place.cluster("POST", account, body=request)
    nobody = yaml.safe_load(Path(kubernetes_place.where).read_text())
    for user in nobody["users"]:
        user["user"] = {"token": token["status"]["token"]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(nobody))
    api = Api(Access(str(tmp_path / "kubeconfig")))
    try:
        features = Features(api)
        assert await features.image_volumes(namespace) is False
        assert await features.image_volumes(namespace) is False
        assert api.counted["GET", "nodes"] == 1, "it asks for every pod"
    finally:
        await api.close()


async def test_t13_a_wrapper_that_cannot_be_brought_is_its_own_reason(kubernetes_place):
    async with watched(kubernetes_place, defaults={"image_volume": False}) as (runtime, watcher):
        broken = dataclasses.replace(runtime._config.defaults, wrapper_image=runtime._config.defaults.default_image)
        runtime._config = dataclasses.replace(runtime._config, defaults=broken)
        name = new_name()
        await runtime.start(spec(name, "true"))
        end = await watcher.until(name, Phase.FINISHED)
        assert end.reason == "InitFailed"
        assert "hubflow-wrapper" in end.message


async def test_what_is_too_large_for_a_secret_never_becomes_a_pod(kubernetes_place, both):
    """It is the API server's own limit to the byte."""
    runtime, _ = both
    wanted = spec(new_name(), "true", registry_auth={"username": "u", "password": "p" * 1000}, env={"A": ""})
    room = body.SECRET_LIMIT - sum(map(len, body.secret_data(wanted).values()))
    for more in (1, 0):
        document = {**wanted.document, "env": {"A": "x" * (room + more)}}
        filled = dataclasses.replace(wanted, document=document)
        if more:
            with pytest.raises(PermanentError, match=f"{body.SECRET_LIMIT + 1} bytes") as refused:
                await runtime.start(filled)
            assert refused.value.reason == "BadInput"
            assert await kubernetes_place.traces(wanted.name) == []
        else:
            await runtime.start(filled)
            assert len(await kubernetes_place.traces(wanted.name)) == 2
    await runtime.remove(wanted.name)


async def test_t14_a_neighbour_that_never_ends_does_not_hold_the_job(kubernetes_place, both):
    runtime, watcher = both
    wanted = spec(new_name(), "echo done")
    namespace = await runtime._namespaces.ready("t1")
    content = body.pod(wanted, runtime._config.defaults, body.new_secret_name(wanted.name))
    mesh = {"name": "mesh", "image": runtime._config.defaults.default_image, "command": ["sleep", "1000"]}
    content["spec"]["containers"].append(mesh)
    await runtime._create_secret(wanted, await runtime._create_pod(wanted.name, namespace, content))
    assert (await watcher.until(wanted.name, Phase.FINISHED)).exit_code == 0
    await runtime.remove(wanted.name)


async def test_a_result_larger_than_its_share_of_kubelets_space_is_not_cut(both):
    """Kubelet keeps 12288 bytes of messages of a pod: of each container as many, whether the others say something or not."""
    runtime, watcher = both
    uploaded = []

    async def take(request: web.Request) -> web.Response:
        uploaded.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_put("/result", take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, NODE_ADDRESS, 0)
        await site.start()
        overflow = {"key": "result", "put_url": f"http://{NODE_ADDRESS}:{runner.addresses[0][1]}/result"}
        image = runtime._config.defaults.default_image
        services = tuple(ServiceSpec(f"s{number}", image, ("sleep", "1000")) for number in range(4))
        name, value = new_name(), "x" * 3000
        await runtime.start(
            spec(name, f"echo A={value} >> $HUBFLOW_OUTPUT", grace_s=1, services=services, overflow=overflow)
        )
        end = await watcher.until(name, Phase.FINISHED)
    finally:
        await runner.cleanup()
    assert (end.exit_code, end.reason) == (0, "")
    assert end.result["overflow"]["key"] == "result"
    assert [json.loads(each)["outputs"] for each in uploaded] == [{"A": value}]
    await runtime.remove(name)


async def test_containers_that_the_cluster_has_added_count_for_who_completes_a_pod(both):
    runtime, watcher = both
    wanted = spec(new_name(), f"echo A={'x' * 3000} >> $HUBFLOW_OUTPUT")
    content = body.pod(wanted, runtime._config.defaults, body.new_secret_name(wanted.name))
    image = runtime._config.defaults.default_image
    content["spec"]["containers"] += [
        {"name": f"mesh-{number}", "image": image, "command": ["sleep", "1000"]} for number in range(4)
    ]
    namespace = await runtime._namespaces.ready("t1")
    assert await runtime._create_pod(wanted.name, namespace, content)
    await runtime.start(wanted)
    # There is nowhere else to put it; a document that was cut would say nothing at all.
    end = await watcher.until(wanted.name, Phase.FINISHED)
    assert end.result["outcome"] == "output_too_large"
    await runtime.remove(wanted.name)


# somebody else ends them


async def test_t01_a_pod_deleted_as_it_ends_has_succeeded(kubernetes_place, both):
    runtime, watcher = both
    names = [new_name() for _ in range(4)]
    for name in names:
        await runtime.start(spec(name, "echo A=1 >> $HUBFLOW_OUTPUT"))

    async def delete(name):
        await watcher.until(name, Phase.FINISHED)
        await kubernetes_place.cluster("DELETE", kubernetes_place.pod_path(name))

    await asyncio.gather(*map(delete, names))
    for name in names:
        seen = await runtime.inspect(name)
        assert seen.exit_code == 0
        assert seen.reason == ""
        assert seen.result["outputs"] == {"A": "1"}
        await runtime.remove(name)
        assert await runtime.inspect(name) is None


async def test_t02_t03_what_ends_and_is_collected_while_nobody_watches_is_told_and_let_go(kubernetes_place):
    """As after the end of a status_watcher, perhaps one between the record of an outcome and the finalizer's release."""
    names = [new_name() for _ in range(5)]
    async with kubernetes_place.opened() as runtime:
        for name in names:
            await runtime.start(spec(name, "echo A=1 >> $HUBFLOW_OUTPUT"))
        async with asyncio.timeout(60):
            for name in names:
                while (await runtime.inspect(name)).phase is not Phase.FINISHED:
                    await asyncio.sleep(0.1)
    for name in names:
        await kubernetes_place.cluster("DELETE", kubernetes_place.pod_path(name))
    async with watched(kubernetes_place) as (later, watcher):
        for name in names:
            end = await watcher.until(name, Phase.FINISHED)
            assert (end.exit_code, end.reason, end.result["outputs"]) == (0, "", {"A": "1"})
        for name in names:
            await later.remove(name)
            await kubernetes_place.until_gone(name)


@pytest.mark.parametrize("grace", [30, 0])
async def test_t05_a_pod_deleted_by_a_person_is_told_as_that(kubernetes_place, both, grace):
    runtime, watcher = both
    name = new_name()
    await runtime.start(spec(name, "echo up; sleep 60"))
    await up(runtime, name)
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace}
    await kubernetes_place.cluster("DELETE", kubernetes_place.pod_path(name), body=options)
    end = await watcher.until(name, Phase.FINISHED)
    assert end.reason == "ContainerGone"
    assert "not Hubflow" in end.message
    await runtime.remove(name)


@pytest.fixture
async def another_node(kubernetes_place, cluster):
    """A simulated node that stays: where all nodes are silent, Kubernetes blames itself and evicts nothing."""
    if cluster.own is None:
        pytest.skip("this cluster's nodes are not ours to kill")
    nodes = "/api/v1/nodes"
    name = f"other-{kubernetes_place.installation}"
    await kubernetes_place.cluster("POST", nodes, body=node(name))
    async with asyncio.timeout(60):
        while not any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in (await kubernetes_place.cluster("GET", f"{nodes}/{name}"))["status"].get("conditions", ())
        ):
            await asyncio.sleep(0.2)
    yield
    await kubernetes_place.cluster("DELETE", f"{nodes}/{name}")


async def test_a_stopped_job_keeps_its_log_though_nobody_was_reading(kubernetes_place, both):
    runtime, watcher = both
    name = new_name()
    await runtime.start(spec(name, "trap 'echo tidying; exit 9' TERM; echo up; while true; do sleep 0.05; done"))
    await up(runtime, name)
    await runtime.stop(name, 15)
    end = await watcher.until(name, Phase.FINISHED)
    assert (end.result["outcome"], end.exit_code) == ("stopped", 9)
    pod = await kubernetes_place.cluster("GET", kubernetes_place.pod_path(name))
    assert pod["status"]["phase"] == "Failed"
    assert "deletionTimestamp" not in pod["metadata"]
    async with watched(kubernetes_place) as (later, _):
        log = await read(later, name, follow=True)
    assert log.startswith(b"up\n")
    assert log.endswith(b"tidying\n")
    assert len(log) == end.log_bytes
    await runtime.remove(name)


async def test_a_stopped_job_whose_node_does_not_end_it_is_deleted(kubernetes_place, cluster, monkeypatch):
    """A simulated or a virtual node may do nothing about deadlines; a lost one does nothing at all."""
    if cluster.own is None:
        pytest.skip("this cluster's nodes are not ours to hold")
    monkeypatch.setattr(kubernetes_read, "ENDING_PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr(kubernetes_read, "LEAVING_PATIENCE", timedelta(seconds=1))
    async with watched(kubernetes_place) as (runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "echo up; sleep 600", grace_s=0))
        await up(runtime, name)
        await cluster.own.end("kubelet", signal.SIGKILL)
        try:
            await runtime.stop(name, 5)
            end = await watcher.until(name, Phase.FINISHED)
            assert end.reason == "Cancelled"
        finally:
            await cluster.own.start("kubelet")
        await runtime.remove(name)


@pytest.mark.usefixtures("another_node")
async def test_t05_a_lost_node_is_told_as_lost(kubernetes_place, cluster):
    async with watched(kubernetes_place, defaults={"lost_seconds": 1}) as (runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "echo up; sleep 600", grace_s=0))
        await up(runtime, name)
        await cluster.own.end("kubelet", signal.SIGKILL)
        try:
            end = await watcher.until(name, Phase.FINISHED, timeout=150)
            assert end.reason == "NodeLost"
            await runtime.remove(name)
            assert await runtime.inspect(name) is None
        finally:
            await cluster.own.start("kubelet")
        # Work goes on once the node is back: until then its taints end whatever tolerates them for a second only.
        async with asyncio.timeout(120):
            while (await kubernetes_place.cluster("GET", f"/api/v1/nodes/{NODE}"))["spec"].get("taints"):
                await asyncio.sleep(0.2)
        again = new_name()
        await runtime.start(spec(again, "true"))
        assert (await watcher.until(again, Phase.FINISHED, timeout=60)).exit_code == 0


# what a workflow may ask


async def test_t89_what_the_operator_has_not_allowed_is_refused(kubernetes_place):
    async with watched(kubernetes_place, allow="runtime_class=kata|gvisor, node_selector=pool") as (runtime, _):
        for options, word in (
            ({"tolerations": [{"operator": "Exists"}]}, "tolerations"),
            ({"runtime_class": "runc"}, "gvisor"),
            ({"node_selector": {"kubernetes.io/hostname": "node1"}}, "kubernetes.io/hostname"),
            ({"hostPath": "/"}, "hostPath"),
        ):
            with pytest.raises(PermanentError, match=word) as refused:
                await runtime.start(spec(new_name(), "true", options=options))
            assert refused.value.reason == "Unsupported"
        with pytest.raises(PermanentError, match="must be a map"):
            await runtime.start(spec(new_name(), "true", options={"node_selector": "pool"}))


async def test_restricted_pods_run_and_root_is_refused(kubernetes_place):
    more = {"defaults": {"restricted": True}, "tenancy": {"security": "restricted"}, "create_seconds": 2}
    async with watched(
        dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-r"), **more
    ) as (
        runtime,
        watcher,
    ):
        good, root = new_name(), new_name()
        image = f"{kubernetes_place.wrapper}/bare:1"
        await runtime.start(spec(good, "", image=image, command=["/bin/sh", "-c", "echo A=1 >> $HUBFLOW_OUTPUT"]))
        await runtime.start(spec(root, "true"))
        assert (await watcher.until(good, Phase.FINISHED)).result["outputs"] == {"A": "1"}
        end = await watcher.until(root, Phase.FINISHED)
        assert end.reason == "StartFailed"
        assert "root" in end.message
        for name in (good, root):
            await runtime.remove(name)
        await kubernetes_place.cluster("DELETE", f"/api/v1/namespaces/{kubernetes_place.installation}-r")


# namespaces


async def test_each_tenant_has_a_namespace_that_is_put_right_again(kubernetes_place):
    quota = {"pods": "7"}
    async with watched(kubernetes_place, tenancy={"per_tenant": True, "quota": quota}) as (runtime, watcher):
        names = {"t1": new_name(), "Büro_2": new_name()}
        spaces = {}
        for tenant, name in names.items():
            wanted = spec(name, "true")
            await runtime.start(dataclasses.replace(wanted, labels={**wanted.labels, "tenant": tenant}))
            await watcher.until(name, Phase.FINISHED)
            spaces[tenant] = (await runtime._find(name)).namespace
            await runtime.remove(name)
        assert len(set(spaces.values())) == 2
        first = spaces["t1"]
        policy = f"/apis/networking.k8s.io/v1/namespaces/{first}/networkpolicies/hubflow-jobs"
        rules = (await kubernetes_place.cluster("GET", policy))["spec"]
        assert rules["policyTypes"] == ["Ingress", "Egress"]
        assert {"namespaceSelector": {}} in rules["egress"][1]["to"]
        limit = await kubernetes_place.cluster("GET", f"/api/v1/namespaces/{first}/resourcequotas/hubflow-jobs")
        assert limit["spec"]["hard"] == quota
        await kubernetes_place.cluster("DELETE", policy)
        runtime._namespaces.doubt(first)
        await runtime._namespaces.ready("t1")
        assert await kubernetes_place.cluster("GET", policy)
        for space in spaces.values():
            await kubernetes_place.cluster("DELETE", f"/api/v1/namespaces/{space}")


async def test_what_the_operator_does_not_set_any_more_goes_unless_it_is_his_own(kubernetes_place):
    place = dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-u")
    tenancy = {"quota": {"pods": "7"}, "limits": {"default": {"memory": "1Gi"}}}
    async with watched(place, tenancy=tenancy) as (before, _):
        name = await before._namespaces.ready("t1")
    parts = [f"/api/v1/namespaces/{name}/{plural}" for plural in ("resourcequotas", "limitranges")]
    async with watched(place) as (runtime, _):
        await runtime._namespaces.ready("t1")
        assert [(await place.cluster("GET", part))["items"] for part in parts] == [[], []]
        own = {"metadata": {"name": "hubflow-jobs"}, "spec": {"hard": {"pods": "9"}}}
        await place.cluster("POST", parts[0], body=own)
        runtime._namespaces.doubt(name)
        await runtime._namespaces.ready("t1")
        assert await place.cluster("GET", f"{parts[0]}/hubflow-jobs")
    await place.cluster("DELETE", f"/api/v1/namespaces/{name}")


async def test_a_quota_of_the_cluster_delays_and_fails_nothing(kubernetes_place):
    place = dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-q")
    async with watched(place, tenancy={"quota": {"pods": "1"}}) as (runtime, watcher):
        first, second = new_name(), new_name()
        await runtime.start(spec(first, "echo up; sleep 60"))
        with pytest.raises(TemporaryError, match="quota"):
            await runtime.start(spec(second, "true"))
        await runtime.remove(first)
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(TemporaryError):
                    await runtime.start(spec(second, "true"))
                    break
        assert runtime.api.counted["PATCH", "namespaces"] == 1, "what is there was made again"
        assert (await watcher.until(second, Phase.FINISHED)).exit_code == 0
        await runtime.remove(second)
        await place.cluster("DELETE", f"/api/v1/namespaces/{place.installation}")


async def test_t10_what_the_cluster_will_never_take_fails_at_once_with_its_words(kubernetes_place):
    place = dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-n")
    more = {"tenancy": {"quota": {"limits.cpu": "9"}}, "allow": "priority_class"}
    async with watched(place, **more) as (runtime, _):
        for wanted, word in (
            (spec(new_name(), "true"), "must specify limits.cpu"),
            (spec(new_name(), "true", options={"priority_class": "no-such"}), "no PriorityClass with name no-such"),
        ):
            with pytest.raises(PermanentError, match=word) as refused:
                await runtime.start(wanted)
            assert refused.value.reason == "Unsupported"
        await place.cluster("DELETE", f"/api/v1/namespaces/{place.installation}")


async def test_a_quota_that_a_pod_itself_has_used_up_keeps_nobody_from_completing_it(kubernetes_place):
    """Its executor was killed before it could give the pod its document."""
    place = dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-h")
    async with watched(place, tenancy={"quota": {"pods": "1"}}) as (runtime, watcher):
        wanted = spec(new_name(), "true")
        await place.half_start(runtime, wanted)
        await runtime.start(wanted)
        assert (await watcher.until(wanted.name, Phase.FINISHED)).exit_code == 0
        await runtime.remove(wanted.name)
        await place.cluster("DELETE", f"/api/v1/namespaces/{place.installation}")


async def test_a_quota_of_one_volume_lets_all_jobs_of_the_run_have_it(kubernetes_place):
    place = dataclasses.replace(kubernetes_place, installation=f"{kubernetes_place.installation}-v")
    async with watched(place, tenancy={"quota": {"persistentvolumeclaims": "1"}}) as (runtime, watcher):
        names = [new_name() for _ in range(2)]
        # At once: only one of them makes it.
        await asyncio.gather(*(runtime.start(spec(name, "ls $WORKFLOW_CACHE", shared="run-1")) for name in names))
        for name in names:
            assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
        await runtime.start(spec(third := new_name(), "ls $WORKFLOW_CACHE", shared="run-1"))
        assert (await watcher.until(third, Phase.FINISHED)).exit_code == 0
        with pytest.raises(TemporaryError, match="quota"):
            await runtime.start(spec(new_name(), "true", shared="run-2"))
        for name in (*names, third):
            await runtime.remove(name)
        await runtime.remove_shared_directory("run-1")
        await place.cluster("DELETE", f"/api/v1/namespaces/{place.installation}")


async def raw_log(place, name: str) -> bytes:
    """As the API server gives it."""
    api = Api(Access(place.where))
    try:
        async with api.request("GET", f"{place.pod_path(name)}/log") as response:
            return await response.read()
    finally:
        await api.close()


# an API server that is unwell


@contextlib.asynccontextmanager
async def through(place, cluster, **more):
    """A runtime whose every call goes through something that makes faults."""
    if cluster.own is None:
        pytest.skip("made for the project's own cluster")
    async with opened_between(cluster.own.folder / "pki") as between:
        pair = watched(place, access={"server": between.url}, **more)
        async with pair as (runtime, watcher):
            yield between, runtime, watcher


async def test_t90_a_server_that_is_busy_fails_no_job(kubernetes_place, cluster):
    async with through(kubernetes_place, cluster) as (between, runtime, watcher):
        name = new_name()
        between.refuse = [429, 500, 503, 429, 502]
        await runtime.start(spec(name, "true"))
        assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
        between.refuse = [500, 429]
        await runtime.remove(name)
        assert await runtime.inspect(name) is None


async def test_t90_a_server_that_stays_busy_is_temporary(kubernetes_place, cluster, monkeypatch):
    monkeypatch.setattr("shared.runtime.kubernetes_api.PATIENCE", 0.5)
    async with through(kubernetes_place, cluster) as (between, runtime, _):
        between.refuse_writes = 429
        with pytest.raises(UnavailableError, match="busy"):
            await runtime.start(spec(new_name(), "true"))
        between.refuse_writes = 0


async def test_t15_t22_a_forgotten_version_is_listed_again_and_nothing_is_missed(kubernetes_place, cluster):
    async with through(kubernetes_place, cluster) as (between, runtime, watcher):
        ended, gone = new_name(), new_name()
        await runtime.start(spec(ended, "trap 'exit 0' TERM; echo up; sleep 60 & wait"))
        await runtime.start(spec(gone, "sleep 60"))
        await up(runtime, ended)
        await watcher.until(gone, Phase.RUNNING)
        between.frozen = True
        await runtime.stop(ended, 15)
        async with asyncio.timeout(30):
            while (await runtime.inspect(ended)).phase is not Phase.FINISHED:
                await asyncio.sleep(0.1)
        await kubernetes_place.remove_by_hand(gone)
        async with asyncio.timeout(60):
            while await runtime.inspect(gone) is not None:
                await asyncio.sleep(0.1)
        assert Phase.FINISHED not in [seen.phase for seen in watcher.of(ended)]
        between.frozen = False
        between.forget()
        assert (await watcher.until(ended, Phase.FINISHED)).exit_code == 0
        await watcher.until(gone, Phase.GONE)
        assert runtime.pods.relists == 2


async def test_t16_a_watch_that_says_nothing_is_taken_up_again(kubernetes_place, cluster):
    async with through(kubernetes_place, cluster, idle=2.0) as (between, runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "sleep 2"))
        await watcher.until(name, Phase.PENDING)
        between.frozen = True
        async with asyncio.timeout(30):
            while (await runtime.inspect(name)).phase is not Phase.FINISHED:
                await asyncio.sleep(0.1)
        before = len([asked for asked in between.asked if "watch=1" in asked])
        async with asyncio.timeout(10):
            while len([asked for asked in between.asked if "watch=1" in asked]) == before:
                await asyncio.sleep(0.05)
        between.frozen = False
        assert (await watcher.until(name, Phase.FINISHED, timeout=15)).exit_code == 0


@pytest.mark.parametrize("status", [403, 429, 503])
async def test_a_watch_that_is_refused_is_asked_for_again_more_and_more_seldom(kubernetes_place, cluster, status):
    async with through(kubernetes_place, cluster) as (between, runtime, watcher):
        first, second = new_name(), new_name()
        await runtime.start(spec(first, "true"))
        await watcher.until(first, Phase.FINISHED)
        between.refuse_watches = status
        between.cut()
        asked = between.asked = []

        def kinds() -> tuple[int, int]:
            pods = [each for each in asked if each.startswith(f"GET {runtime.pods._path}?")]
            watches = sum("watch=1" in each for each in pods)
            return watches, len(pods) - watches

        async with asyncio.timeout(20):
            while kinds()[0] < 4:
                await asyncio.sleep(0.02)
        # 0.2, 0.4, and 0.8 s lie between them: a loop without pauses would have asked hundreds of times.
        await runtime.start(spec(second, "true"))
        async with asyncio.timeout(20):
            while (seen := await runtime.inspect(second)) is None or seen.phase is not Phase.FINISHED:
                await asyncio.sleep(0.1)
        assert max(kinds()) < 10
        between.refuse_watches = 0
        assert (await watcher.until(second, Phase.FINISHED)).exit_code == 0


async def test_t18_events_twice_and_late_change_nothing(kubernetes_place, cluster):
    async with through(kubernetes_place, cluster) as (between, runtime, watcher):
        between.twice = True
        between.cut()
        names = [new_name() for _ in range(3)]
        for name in names:
            await runtime.start(spec(name, "true"))
        for name in names:
            assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
            phases = [seen.phase for seen in watcher.of(name)]
            assert phases == sorted(phases, key=[Phase.PENDING, Phase.RUNNING, Phase.FINISHED].index)
            assert len(phases) == len(set(phases))
        for name in names:
            await runtime.remove(name)
            await kubernetes_place.until_gone(name)
        # When this one is known, what was late has come.
        await runtime.start(spec(marker := new_name(), "true"))
        await watcher.until(marker, Phase.FINISHED)
        assert [seen.name for seen in await runtime.list() if seen.name in names] == []
        told = [(seen.name, seen.phase) for seen in watcher.told]
        assert len(told) == len(set(told)), "a pod that was gone was told of again"
        await runtime.remove(marker)


async def test_t17_an_odd_pod_makes_nobody_blind_for_the_others(kubernetes_place, both):
    runtime, watcher = both
    odd, other, strange = (new_name() for _ in range(3))
    await runtime.start(spec(odd, "tail /dev/zero", resources=Resources(memory_bytes=48 << 20)))
    await kubernetes_place.patch(odd, {"metadata": {"annotations": {body.ENDING_SINCE: "x"}}})
    await runtime.start(spec(other, "true"))
    assert (await watcher.until(other, Phase.FINISHED)).exit_code == 0
    assert (await watcher.until(odd, Phase.FINISHED)).reason == "OOMKilled"
    # It has a volume where we expect our Secret.
    volume = {"name": body.DOCUMENT_VOLUME, "emptyDir": {}}
    await strangers_pod(kubernetes_place, runtime, strange, volumes=[volume])
    await runtime.start(spec(later := new_name(), "true"))
    assert (await watcher.until(later, Phase.FINISHED)).exit_code == 0
    async with watched(kubernetes_place) as (new, _):
        assert later in [seen.name for seen in await new.list()]
    assert runtime.pods.relists == 1
    await kubernetes_place.cluster("DELETE", kubernetes_place.pod_path(strange))
    for name in (odd, other, later):
        await runtime.remove(name)


async def test_t91_a_strangers_pod_with_our_label_is_removed_and_nobodys_secrets(kubernetes_place, both):
    """It has no Secret of ours; the path of a Secret without a name is that of all of them."""
    runtime, _ = both
    secrets = f"/api/v1/namespaces/{await runtime._namespaces.ready('t1')}/secrets"
    precious, strange = {"metadata": {"name": new_name()}}, new_name()
    await kubernetes_place.cluster("POST", secrets, body=precious)
    await strangers_pod(kubernetes_place, runtime, strange)
    await runtime.remove(strange)
    await kubernetes_place.until_gone(strange)
    path = f"{secrets}/{precious['metadata']['name']}"
    assert await kubernetes_place.cluster("GET", path)
    await kubernetes_place.cluster("DELETE", path)


async def test_watches_that_are_cut_are_taken_up_where_they_were(kubernetes_place, cluster):
    async with through(kubernetes_place, cluster) as (between, runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "sleep 3"))
        for _ in range(5):
            between.cut()
            await asyncio.sleep(0.3)
        assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
        assert runtime.pods.relists == 1


async def test_what_a_node_says_in_place_of_a_log_is_not_the_log(kubernetes_place, cluster, monkeypatch):
    """A pod is deleted by hand; its node removes the container, and the log with it."""
    monkeypatch.setattr(kubernetes_logs, "NOT_KEPT", 1.0)
    async with watched(kubernetes_place) as (runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "echo up; sleep 60", grace_s=1))
        await watcher.until(name, Phase.RUNNING)
        await kubernetes_place.cluster("DELETE", kubernetes_place.pod_path(name))
        await watcher.until(name, Phase.FINISHED)
        async with asyncio.timeout(60):
            while not (await raw_log(kubernetes_place, name)).startswith(b"unable to retrieve"):
                await asyncio.sleep(0.1)
            with pytest.raises(IncompleteLogError, match="bytes of the log"):
                await anext(runtime.logs(name, 0, follow=True))
        await runtime.remove(name)


async def test_t56_a_log_that_is_read_as_its_pod_is_deleted_is_whole_or_says_that_it_is_not(
    kubernetes_place, both, monkeypatch
):
    monkeypatch.setattr(kubernetes_logs, "NOT_KEPT", 1.0)
    runtime, watcher = both
    name, log, whole = new_name(), bytearray(), True
    await runtime.start(
        spec(name, "trap 'seq 1 1000; exit 0' TERM; echo up; while true; do sleep 0.05; done", grace_s=5)
    )
    try:
        async for chunk in runtime.logs(name, follow=True):
            if not log:
                await kubernetes_place.cluster("DELETE", kubernetes_place.pod_path(name))
            log += chunk
    except IncompleteLogError:
        whole = False
    end = await watcher.until(name, Phase.FINISHED)
    assert log.startswith(b"up\n")
    assert whole is (len(log) == end.log_bytes)
    assert whole is log.endswith(numbered(1, 1000))
    await runtime.remove(name)


async def test_t57_a_job_that_is_silent_for_long_is_neither_dead_nor_is_its_log_over(both, monkeypatch):
    monkeypatch.setattr(kubernetes_logs, "SILENCE", 1.0)
    runtime, watcher = both
    name, log, broken = new_name(), b"", 0
    await runtime.start(spec(name, "echo a; sleep 4; echo b"))
    while True:
        try:
            async for chunk in runtime.logs(name, len(log), follow=True):
                log += chunk
            break
        except TemporaryError:
            broken += 1
    assert broken
    assert log == b"a\nb\n"
    end = await watcher.until(name, Phase.FINISHED)
    assert (end.exit_code, end.log_bytes) == (0, len(log))
    await runtime.remove(name)


async def test_a_busy_node_keeps_the_ends_of_logs(both):
    """containerd before 1.7 throws away what it has not read when a container ends; so the wrapper lets it finish."""
    runtime, watcher = both
    script = "head -c 2900000 /dev/urandom > data; cat data; seq 1 20000"
    busy = [await asyncio.create_subprocess_exec("sh", "-c", "while :; do :; done") for _ in range(4)]
    try:
        names = [new_name() for _ in range(3)]
        await asyncio.gather(*(runtime.start(spec(name, script)) for name in names))
        logs = await asyncio.gather(*(read(runtime, name, follow=True) for name in names))
        ends = [await watcher.until(name, Phase.FINISHED, timeout=60) for name in names]
    finally:
        for process in busy:
            process.kill()
            await process.wait()
    assert [len(log) for log in logs] == [end.log_bytes for end in ends]
    assert all(log.endswith(b"\n19999\n20000\n") for log in logs)
    for name in names:
        await runtime.remove(name)


def numbered(first, amount, pad=""):
    """What `seq | sed` prints in the scripts below."""
    return "".join(f"{number}{pad}\n" for number in range(first, first + amount)).encode()


async def test_t54_who_follows_a_log_loses_nothing_when_kubelet_rotates_it(kubernetes_place, both):
    runtime, watcher = both
    name, pad = new_name(), " " + "x" * 100
    script = f"for part in 1 2 3 4 5 6 7 8 9; do seq ${{part}}00001 ${{part}}30000 | sed 's/$/{pad}/'; sleep 1; done"
    await runtime.start(spec(name, script))
    log = await read(runtime, name, follow=True)
    end = await watcher.until(name, Phase.FINISHED)
    expected = b"".join(numbered(part * 100_000 + 1, 30_000, pad) for part in range(1, 10))
    assert (len(log), end.log_bytes) == (len(expected), len(expected))
    assert log == expected
    # And it was rotated: who comes late gets the newest file only, is told so, and gets nothing twice.
    async with watched(kubernetes_place) as (other, _):
        late = await read_what_there_is(other, name)
    assert 0 < len(late) < len(expected)
    assert expected.endswith(late)
    await runtime.remove(name)


async def test_t54_the_end_of_a_log_that_was_printed_too_fast_to_be_followed_is_kept(both):
    """More lines than kubelet hands on, so that it is left behind in a file that is rotated away."""
    runtime, watcher = both
    name = new_name()
    await runtime.start(
        spec(name, "for part in 1 2 3 4 5 6; do seq ${part}000001 ${part}150000; sleep 1; done; echo 9999999")
    )
    log = await read_what_there_is(runtime, name)
    end = await watcher.until(name, Phase.FINISHED)
    expected = b"".join(numbered(part * 10**6 + 1, 150_000) for part in range(1, 7)) + b"9999999\n"
    assert (len(expected), log[-8:]) == (end.log_bytes, expected[-8:])
    numbers = [int(line) for line in log.splitlines()]
    assert all(one < other for one, other in itertools.pairwise(numbers))
    await runtime.remove(name)


async def test_t55_a_log_that_was_rotated_and_then_broken_off_goes_on_with_the_next_byte(kubernetes_place, cluster):
    """The place in its newest file is not the place in the log: all that came was skipped, up to as much as had been read."""
    async with through(kubernetes_place, cluster) as (between, runtime, _):
        # Few lines: kubelet leaves behind who follows too many of them.
        name, pad = new_name(), " " + "x" * 1000
        script = (
            f"for part in 1 2 3 4 5 6 7 8; do seq ${{part}}00001 ${{part}}03000 | sed 's/$/{pad}/'; sleep 1; done; "
            "n=0; while true; do n=$((n + 1)); echo tick $n; sleep 0.2; done"
        )
        await runtime.start(spec(name, script))
        big = b"".join(numbered(part * 100_000 + 1, 3000, pad) for part in range(1, 9))
        log, cuts, after = bytearray(), 0, len(big)
        async with asyncio.timeout(90):
            while cuts < 2 or len(log) <= after:
                try:
                    async for chunk in runtime.logs(name, len(log), follow=True):
                        log += chunk
                        if len(log) <= after:
                            continue
                        if cuts == 2:
                            break
                        if len(await read(runtime, name)) < len(big):
                            cuts, after = cuts + 1, len(log) + 50  # some of it may have come already
                            between.cut_logs()
                except TemporaryError:
                    pass
        ticks = b"".join(b"tick %d\n" % number for number in range(1, 10_000))
        assert bytes(log) == (big + ticks)[: len(log)]
        await runtime.remove(name)


async def read_what_there_is(runtime, name):
    log = bytearray()
    with contextlib.suppress(IncompleteLogError):
        async for chunk in runtime.logs(name, follow=True):
            log.extend(chunk)
    return bytes(log)


async def test_a_log_that_its_node_does_not_end_ends_with_its_container(kubernetes_place, cluster, monkeypatch):
    """A simulated node never ends the answer to whoever follows a log."""
    if cluster.own is None:
        pytest.skip("this cluster has no simulated nodes")
    monkeypatch.setattr(kubernetes_logs, "FOLLOWED_AFTER", 0.0)
    monkeypatch.setattr(kubernetes_logs, "SILENT_AFTER_END", 0.5)
    machine = node(f"silent-{kubernetes_place.installation}")
    silent = {"silent": kubernetes_place.installation}
    machine["metadata"]["labels"] |= silent
    defaults = {"node_selector": silent, "tolerations": (TOLERATION,)}
    async with watched(kubernetes_place, defaults=defaults) as (runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "true"))
        await kubernetes_place.patch(name, {"metadata": {"annotations": {"hubflow.dev/simulate": "run"}}})
        await kubernetes_place.cluster("POST", "/api/v1/nodes", body=machine)
        try:
            await watcher.until(name, Phase.RUNNING)
            reading = asyncio.create_task(read(runtime, name, follow=True))
            async with asyncio.timeout(60):
                while not any(task.get_name() == f"end of {name}" for task in asyncio.all_tasks()):
                    await asyncio.sleep(0.05)
            await kubernetes_place.patch(name, {"metadata": {"annotations": {"hubflow.dev/simulate": None}}})
            await watcher.until(name, Phase.FINISHED)
            async with asyncio.timeout(60):
                assert not await reading
            await runtime.remove(name)
        finally:
            await kubernetes_place.cluster("DELETE", f"/api/v1/nodes/{machine['metadata']['name']}")


async def test_a_clock_that_is_a_minute_ahead_takes_no_pod_for_lost(both, monkeypatch):
    """What the API server has written is compared with its own clock."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(minutes=1)

    monkeypatch.setattr(kubernetes_api, "datetime", Ahead)
    runtime, watcher = both
    name = new_name()
    await runtime.start(spec(name, "trap '' TERM; echo up; sleep 6; echo late", grace_s=15))
    await up(runtime, name)
    reading = asyncio.create_task(read(runtime, name, follow=True))
    await runtime.stop(name, 15)
    end = await watcher.until(name, Phase.FINISHED)
    assert end.exit_code == 0
    assert await reading == b"up\nlate\n"
    await runtime.remove(name)


async def test_an_ended_log_that_is_refused_is_asked_for_again(kubernetes_place, cluster, monkeypatch):
    """As kubelet does while it, or its container runtime, starts: what it refuses then is no empty log."""
    async with through(kubernetes_place, cluster) as (between, runtime, watcher):
        name = new_name()
        await runtime.start(spec(name, "echo up"))
        await watcher.until(name, Phase.FINISHED)
        between.refuse_logs = [400, 404]
        assert await read(runtime, name, follow=True) == b"up\n"
        assert not between.refuse_logs
        monkeypatch.setattr(kubernetes_logs, "NOT_KEPT", 1.0)
        between.refuse_logs = [400] * 100
        with pytest.raises(IncompleteLogError, match="bytes of the log"):
            await read(runtime, name, follow=True)
        await runtime.remove(name)


async def test_t55_a_log_survives_the_end_of_the_api_server(kubernetes_place, cluster):
    if cluster.own is None:
        pytest.skip("this cluster's API server is not ours to kill")
    async with watched(kubernetes_place) as (runtime, _):
        name = new_name()
        await runtime.start(spec(name, "for i in 1 2 3 4 5 6 7 8; do seq 1 2000; sleep 1; done"))
        collected, broken = bytearray(), 0
        restart = None
        while True:
            try:
                async for chunk in runtime.logs(name, len(collected), follow=True):
                    collected += chunk
                    if restart is None:
                        restart = asyncio.create_task(cluster.own.restart("kube-apiserver"))
                break
            except TemporaryError:
                broken += 1
        await restart
        assert broken
        assert bytes(collected) == b"".join(b"%d\n" % number for number in range(1, 2001)) * 8


async def test_a_cluster_that_is_away_is_temporary(kubernetes_place, monkeypatch):
    monkeypatch.setattr("shared.runtime.kubernetes_api.PATIENCE", 0.5)
    config = kubernetes_config(kubernetes_place.where, "x", "none", access={"server": "https://127.0.0.1:9"})
    runtime = KubernetesRuntime(config)
    try:
        for attempt in (runtime.ping, runtime.list, lambda: runtime.start(spec(new_name(), "true"))):
            with pytest.raises(TemporaryError, match=r"127\.0\.0\.1:9"):
                await attempt()
        with pytest.raises(TemporaryError):
            await anext(runtime.watch())
    finally:
        await runtime.close()
