"""The demo overlay on the real cluster: installed by kubectl, used by the CLI through the console's API."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.servers
WORKFLOW = """
name: hello
stages:
  - name: greet
    jobs:
      - name: ask
        script: |
          echo "[JOB_OUT] NAME = world"
          echo kept > kept.txt
        outputs: [NAME]
        artifacts: [{name: kept, paths: [kept.txt]}]
      - name: answer
        needs: [ask]
        inputs: {NAME: "${{ jobs.ask.outputs.NAME }}"}
        fetch: [{artifact: kept, from: ask}]
        script: echo "hello $NAME, $(cat kept.txt)"
"""


@pytest.fixture(scope="module")
def hello(installation, tmp_path_factory):
    """Tenant acme and its workflow, as a person makes them."""
    file = tmp_path_factory.mktemp("hello") / "hello.yaml"
    file.write_text(WORKFLOW)
    made = installation.hubflow("tenant", "create", "acme")
    assert made.returncode == 0, made.stderr
    applied = installation.hubflow("workflow", "apply", str(file))
    assert applied.returncode == 0, applied.stderr


def test_a_workflow_runs_as_pods_and_is_seen_to_succeed(installation, hello):
    run = installation.hubflow("run", "start", "hello", "--wait", "--logs")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "hello world, kept" in run.stdout


def test_the_schema_was_made_by_a_job_that_is_done(installation):
    job = installation.kubectl.get("job", "migrate", "-n", "hubflow")
    assert job["status"].get("succeeded") == 1


def test_a_killed_service_comes_back_by_itself_and_a_drained_one_ends_in_order(installation, hello):
    kubectl = installation.kubectl
    [before] = kubectl.get("pods", "-n", "hubflow", "-l", "app.kubernetes.io/name=scheduler")["items"]
    kubectl("rollout", "restart", "deployment/scheduler", "-n", "hubflow")
    kubectl("rollout", "status", "deployment/scheduler", "-n", "hubflow", "--timeout=180s")
    kubectl("wait", "pod", before["metadata"]["name"], "-n", "hubflow", "--for=delete", "--timeout=60s")
    run = installation.hubflow("run", "start", "hello", "--wait")
    assert run.returncode == 0, run.stdout + run.stderr


def test_nothing_of_a_job_stays(installation):
    kubectl = installation.kubectl
    kubectl("wait", "pods", "--all", "-n", "hubflow-jobs", "--for=delete", "--timeout=120s")
    assert kubectl.get("secrets", "-n", "hubflow-jobs")["items"] == []
