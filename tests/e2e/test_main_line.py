"""The main line over separate processes: what a user does through the API, and what survives kill -9."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from shared.db.database import Database, open_database
from shared.embedded import S3Address
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import Api
from shared.runtime.kubernetes_body import selector
from tests.cluster import NODE_ADDRESS
from tests.e2e.system import System, open_system
from tests.servers.dockerd import Dockerd
from tests.servers.kubernetes import SHARED_CLASS, Kubernetes, missing
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.servers

EVERYTHING = """
name: everything
env: {GREETING: hello}
stages:
- name: test
  jobs:
  - name: lint
    script: echo "$GREETING from lint"
  - name: unit
    script: |
      echo "[JOB_OUT] COUNT = 42"
      mkdir -p dist && echo built > dist/app.txt
    outputs: [COUNT]
    artifacts: [{name: app, paths: [dist]}]
- name: build
  sequencing: serial
  jobs:
  - name: first
    inputs: {COUNT: "${{ jobs.unit.outputs.COUNT }}"}
    script: echo "count is $COUNT"
  - name: second
    fetch: [{artifact: app, from: unit, path: in}]
    script: cat in/dist/app.txt
"""
NOWHERE = """
name: nowhere
stages: [{name: s, jobs: {a: {script: 'true', pending_timeout: 5s, options: {node_selector: {disk: golden}}}}}]
"""
PAUSED = """
name: paused
stages:
- name: ask
  type: pause
  jobs:
  - {name: mail, script: 'echo "link $HUBFLOW_APPROVE_URL"'}
- name: deploy
  jobs:
  - {name: deploy, script: echo deployed}
"""


@pytest.fixture(
    scope="module",
    params=[
        "process",
        pytest.param("docker", marks=pytest.mark.xdist_group("dockerd")),
        pytest.param("kubernetes", marks=pytest.mark.xdist_group("kubernetes")),
    ],
)
def runtime(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of each runtime; engine and cluster are started only for their own tests."""
    if request.param == "process":
        return {}
    s3: S3Address = request.getfixturevalue("s3")
    if request.param == "kubernetes":
        return _on_kubernetes(request, s3)
    engine: Dockerd = request.getfixturevalue("dockerd")
    return {
        "runtime_kind": "docker", "runtime_docker_host": engine.url, "runtime_default_image": "hubflow-test/busybox:latest",
        "s3_job_endpoint": f"http://{engine.gateway}:{s3.endpoint.rpartition(':')[2]}",
    }  # fmt: skip


def _on_kubernetes(request: pytest.FixtureRequest, s3: S3Address) -> dict[str, str]:
    if reason := missing():
        pytest.skip(f"kubernetes: {reason}")
    cluster: Kubernetes = request.getfixturevalue("kubernetes")
    return {
        "runtime_kind": "kubernetes", "runtime_default_image": cluster.image("job:1"),
        "kubernetes_kubeconfig": str(cluster.kubeconfig), "kubernetes_namespace": "hubflow-test-main-line",
        "kubernetes_wrapper_image": cluster.image("wrapper:1"), "kubernetes_shared_class": SHARED_CLASS,
        "kubernetes_allow": "node_selector=disk",
        "s3_job_endpoint": f"http://{NODE_ADDRESS}:{s3.endpoint.rpartition(':')[2]}",
    }  # fmt: skip


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory,
    module_database: str,
    s3: S3Address,
    rabbitmq: RabbitMQ,
    runtime: dict[str, str],
) -> AsyncIterator[System]:
    """One system for all tests of a runtime: what a test breaks, it mends."""
    broker = await rabbitmq.new_vhost()
    async with open_system(tmp_path_factory.mktemp("system"), module_database, s3, broker, **runtime) as opened:
        yield opened


async def test_a_workflow_with_outputs_and_an_artifact(system: System) -> None:
    run = await system.start_run(await system.apply(EVERYTHING))
    view = await system.wait(run)
    assert view["state"] == "succeeded", view
    assert await system.log_of(run, "lint") == "hello from lint\n"
    assert await system.log_of(run, "first") == "count is 42\n"
    assert await system.log_of(run, "second") == "built\n"
    job = await system.api("GET", f"/api/v1/runs/{run}/jobs/unit")
    assert job["outputs"] == {"COUNT": "42"}


async def test_t10_a_job_that_fits_on_no_node_fails_with_the_clusters_words(
    system: System, runtime: dict[str, str]
) -> None:
    if runtime.get("runtime_kind") != "kubernetes":
        pytest.skip("only a cluster chooses nodes")
    run = await system.start_run(await system.apply(NOWHERE))
    await system.wait(run)
    job = await system.api("GET", f"/api/v1/runs/{run}/jobs/a")
    assert job["reason"] == "PendingTimeout"
    assert "nodes are available" in job["message"]


async def test_a_pause_is_approved_by_its_link(system: System) -> None:
    run = await system.start_run(await system.apply(PAUSED))
    await system.wait(run, until="paused")
    link = (await system.log_of(run, "mail")).split()[1]
    async with aiohttp.ClientSession() as browser:
        for _ in range(2):  # mail scanners look too
            async with browser.get(link) as page:
                assert page.status == 200
                assert "deploy" in await page.text() or page.ok
        assert (await system.api("GET", f"/api/v1/runs/{run}"))["state"] == "paused"
        async with browser.post(link) as page:
            assert page.status == 200
        async with browser.post(link) as page:
            assert page.status == 409
    assert (await system.wait(run))["state"] == "succeeded"


async def test_a_failing_job_says_why(system: System) -> None:
    jobs = "  - {name: a, script: 'echo oops; exit 3'}\n  - {name: b, script: 'true'}\n"
    source = f"name: failing\nstages:\n- name: s\n  jobs:\n{jobs}"
    run = await system.start_run(await system.apply(source))
    view = await system.wait(run)
    assert (view["state"], view["reason"]) == ("failed", "ExitCode")
    assert "3" in view["message"]
    job = await system.api("GET", f"/api/v1/runs/{run}/jobs/a")
    assert job["attempts"][0]["exit_code"] == 3


async def test_t31_cancel_stops_what_runs(system: System) -> None:
    source = "name: long\nstages:\n- name: s\n  jobs:\n  - {name: a, script: 'echo begun; exec sleep 600', grace: 2s}\n"
    run = await system.start_run(await system.apply(source))
    async with asyncio.timeout(30):
        while (await system.api("GET", f"/api/v1/runs/{run}"))["state"] != "running":
            await asyncio.sleep(0.05)
    await system.api("POST", f"/api/v1/runs/{run}/cancel", {"reason": "wrong branch"})
    view = await system.wait(run)
    assert (view["state"], view["reason"]) == ("cancelled", "Cancelled")
    assert "wrong branch" in view["message"]


async def test_t12_a_job_over_its_time_is_ended_though_executor_and_scheduler_were_killed(system: System) -> None:
    source = (
        "name: slow\nstages:\n- name: s\n  jobs:\n  - {name: a, script: 'exec sleep 600', timeout: 3s, grace: 1s}\n"
    )
    run = await system.start_run(await system.apply(source))
    async with asyncio.timeout(60):
        while (await system.api("GET", f"/api/v1/runs/{run}/jobs/a"))["state"] != "running":
            await asyncio.sleep(0.05)
    for service in ("executor", "scheduler"):
        system.restart(service)
    await system.ready()
    view = await system.wait(run)
    assert (view["state"], view["reason"]) == ("failed", "JobTimeout")


async def test_a_retry_succeeds_at_the_second_attempt(system: System) -> None:
    source = (
        "name: flaky\nstages:\n- name: s\n  jobs:\n"
        "  - {name: a, script: 'test $HUBFLOW_ATTEMPT = 2', retries: {max: 1, backoff: {delay: 1s}}}\n"
    )
    run = await system.start_run(await system.apply(source))
    assert (await system.wait(run))["state"] == "succeeded"
    assert [each["state"] for each in (await system.api("GET", f"/api/v1/runs/{run}/jobs/a"))["attempts"]] == [
        "failed",
        "succeeded",
    ]


async def containers(system: System) -> int:
    """How many containers of jobs exist, on the runtime's own side."""
    if system.environment["HUBFLOW_RUNTIME_KIND"] == "process":
        return sum(1 for _ in (system.folder / "jobs" / "containers").iterdir())
    if system.environment["HUBFLOW_RUNTIME_KIND"] == "kubernetes":
        return await _pods_and_secrets(system.environment)
    import aiodocker

    async with aiodocker.Docker(system.environment["HUBFLOW_RUNTIME_DOCKER_HOST"]) as engine:
        installation = system.environment["HUBFLOW_RUNTIME_INSTALLATION"]
        return len(await engine.containers.list(all=True, filters={"label": [f"hubflow.installation={installation}"]}))


async def _pods_and_secrets(environment: dict[str, str]) -> int:
    api = Api(Access(environment["HUBFLOW_KUBERNETES_KUBECONFIG"]))
    place = f"/api/v1/namespaces/{environment['HUBFLOW_KUBERNETES_NAMESPACE']}"
    mine = {"labelSelector": selector(environment["HUBFLOW_RUNTIME_INSTALLATION"])}
    try:
        found = [await api.call("GET", f"{place}/{kind}", query=mine) for kind in ("pods", "secrets")]
    finally:
        await api.close()
    return sum(len(each["items"]) for each in found)


async def test_t89_what_the_operator_does_not_allow_is_refused_when_it_is_applied(system: System) -> None:
    if system.environment["HUBFLOW_RUNTIME_KIND"] != "kubernetes":
        pytest.skip("other runtimes have no options that would have to be allowed")
    job = "{name: a, script: 'true', options: {node_selector: {kubernetes.io/hostname: node1}, read_only_root: true}}"
    source = f"name: greedy\nstages:\n- name: s\n  jobs:\n  - {job}\n"
    status, problem = await system.ask("PUT", "/api/v1/workflows/greedy", {"source": source})
    assert (status, problem["code"]) == (422, "options-not-allowed")
    assert "job a: node_selector 'kubernetes.io/hostname' is not allowed here, only: disk" in problem["detail"]


@pytest.mark.parametrize("victim", ["front", "scheduler", "executor", "status_watcher", "log_collector"])
async def test_t25_kill_9_of_a_service_in_the_middle_of_runs(system: System, victim: str) -> None:
    source = (
        "name: middle\nstages:\n- name: s\n  jobs:\n  - {name: a, script: 'echo one; sleep 1; echo two'}\n"
        "- name: t\n  jobs:\n  - {name: b, script: 'echo three'}\n"
    )
    workflow = await system.apply(source)
    runs = await asyncio.gather(*(system.start_run(workflow) for _ in range(4)))
    await asyncio.sleep(0.3)  # chaos, not a condition: any moment will do
    system.restart(victim)
    await system.ready()
    for run in runs:
        view = await system.wait(run, seconds=120)
        assert view["state"] == "succeeded", view
        assert await system.log_of(run, "a") == "one\ntwo\n"
        assert await system.log_of(run, "b") == "three\n"
        for job in ("a", "b"):
            assert len((await system.api("GET", f"/api/v1/runs/{run}/jobs/{job}"))["attempts"]) == 1


async def test_everything_is_given_back(system: System) -> None:
    run = await system.start_run(await system.apply(EVERYTHING))
    assert (await system.wait(run))["finished_at"]
    async with open_database(system.environment["HUBFLOW_DATABASE_URL"]) as opened, asyncio.timeout(90):
        while await unsettled(opened) or await containers(system):
            await asyncio.sleep(0.2)


async def unsettled(database: Database) -> int:
    """Events not sent, parked messages, logs not stored, outcomes whose container is still there."""
    count: int = await database.fetchval(
        "SELECT (SELECT count(*) FROM events WHERE sent_at IS NULL) + (SELECT count(*) FROM dead_events) "
        "+ (SELECT count(*) FROM logs WHERE completed_at IS NULL) "
        "+ (SELECT count(*) FROM attempt_outcomes WHERE removed_at IS NULL)"
    )
    return count
