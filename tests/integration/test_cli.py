"""The command against all services in one process, on real PostgreSQL and S3, jobs as plain processes."""

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.dev import Dev, development
from cli.failure import INTERRUPTED, RUN_CANCELLED, RUN_FAILED, UNREACHABLE
from shared.embedded.process import holds

GREET = """
name: greet
inputs:
  WHO: {default: world}
stages:
  - name: hello
    jobs:
      - name: say
        script: |
          echo "hello $NAME"
          mkdir -p out && echo kept > out/file
          echo "[JOB_OUT] SAID = $NAME"
        inputs: {NAME: "${{ inputs.WHO }}"}
        artifacts: [{name: out, paths: [out]}]
"""
FAIL = "name: fail\nstages:\n  - name: s\n    jobs:\n      - name: bad\n        script: echo the reason; exit 3\n"
TELL = """\
name: tell
stages:
  - name: one
    jobs:
      - name: tell
        env: {PASSWORD: "${{ secrets.PASSWORD }}"}
        script: |
          echo "[JOB_OUT] URL = https://u:$PASSWORD@hub"
          echo "[JOB_OUT] PASS = $PASSWORD"
        outputs: [URL, PASS]
  - name: two
    jobs:
      - name: heard
        env: {GIVEN: "${{ jobs.tell.outputs.PASS }}"}
        script: echo ${#GIVEN}; echo "[JOB_OUT] LENGTH = ${#GIVEN}"
        outputs: [LENGTH]
"""
CARRY = """
name: carry
stages:
  - name: one
    jobs:
      - name: make
        script: |
          echo "[JOB_OUT] VERSION = 1.$HUBFLOW_ATTEMPT"
          test "$HUBFLOW_ATTEMPT" = 2
        outputs: [VERSION]
        retries: {max: 1, backoff: {delay: 1s}}
  - name: two
    jobs:
      - name: use
        env: {GIVEN: "${{ jobs.make.outputs.VERSION }}"}
        inputs: {_WORKFLOW_FLAG_TASK_DETAIL: true}
        script: |
          echo "[JOB_OUT] GOT = $GIVEN"
          echo "[JOB_OUT] DETAIL = $_WORKFLOW_TASK_DETAIL"
          test -e MENDED
        outputs: [GOT, DETAIL]
"""
TOLERANT = """
name: tolerant
stages:
  - name: s
    jobs:
      - {name: lint, allow_failure: true, script: echo the style; exit 1}
      - {name: unit, needs: [lint], script: echo the reason; exit 3}
"""
SLEEP = "name: sleep\nstages:\n  - name: s\n    jobs:\n      - name: long\n        script: echo begun; sleep 60\n"
GATE = (
    "name: gate\nstages:\n  - name: ask\n    type: pause\n    jobs:\n      - name: j\n        script: echo waiting\n"
    "  - name: after\n    jobs:\n      - name: k\n        script: echo went on\n"
)


@dataclass
class Result:
    code: int
    out: str
    err: str


@dataclass
class Place:
    """A running Hubflow, and a folder below which commands find it."""

    dev: Dev
    folder: Path

    async def start(self, *arguments: str, **more: object) -> asyncio.subprocess.Process:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HUBFLOW_")}
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", *arguments, cwd=self.folder, stdin=pipe, stdout=pipe, stderr=pipe,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])}, **more,
        )  # fmt: skip

    async def run(self, *arguments: str, stdin: str = "") -> Result:
        """`hubflow ARGUMENTS...` to its end. No command may ever show a trace."""
        process = await self.start(*arguments)
        async with asyncio.timeout(120):
            out, err = await process.communicate(stdin.encode())
        result = Result(process.returncode or 0, out.decode(), err.decode())
        assert "Traceback" not in result.err
        return result

    async def json(self, *arguments: str) -> object:
        result = await self.run(*arguments, "-o", "json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    async def apply(self, text: str) -> None:
        (self.folder / "flow.yml").write_text(text)
        result = await self.run("workflow", "apply", "flow.yml")
        assert result.code == 0, result.err


@pytest.fixture(scope="session")
async def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    async with development(folder / ".hubflow", runtime="process", throwaway=True) as dev:
        yield Place(dev, folder)


async def test_a_run_that_succeeds_with_its_log_outputs_and_artifact(place):
    await place.apply(GREET)
    result = await place.run("run", "start", "greet", "-i", "WHO=you", "--logs")
    assert result.code == 0, result.err
    assert "say | hello you" in result.out
    assert "succeeded after" in result.out
    assert (await place.run("run", "logs", "@latest", "say")).out.startswith("hello you\n")
    shown = await place.json("run", "show", "@latest")
    assert shown["state"] == "succeeded"
    events = await place.json("events", "show", "@latest")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    followed = await place.run("events", "@latest", "--follow")
    assert "run.finished" in followed.out


async def test_a_job_shows_its_outputs_without_the_secrets_in_them(place):
    assert (await place.run("secret", "set", "PASSWORD", "--from-stdin", stdin="s3cr3t-word")).code == 0
    await place.apply(TELL)
    result = await place.run("run", "start", "tell", "--wait", "--logs")
    assert result.code == 0, result.out
    assert "heard | 11" in result.out  # whoever names the output gets it whole
    shown = await place.run("run", "show", "@latest", "tell")
    assert "outputs    URL = https://u:***@hub" in shown.out
    assert "attempts   1: succeeded after" in shown.out
    documents = [await place.json("run", "show", "@latest", name) for name in ("tell", "heard")]
    assert documents[0]["outputs"] == {"URL": "https://u:***@hub", "PASS": "***"}
    assert documents[1]["outputs"] == {"LENGTH": "11"}
    assert "s3cr3t-word" not in str([result, shown, documents])
    near = await place.run("run", "show", "@latest", "tel")
    assert "did you mean 'tell'?" in near.err


async def test_an_artifact_comes_as_a_file_or_unpacked(place):
    await place.apply(GREET)
    assert (await place.run("run", "start", "greet", "--wait")).code == 0
    listed = await place.json("artifact", "list", "@latest")
    assert [(each["job"], each["name"]) for each in listed] == [("say", "out")]
    assert (await place.run("artifact", "get", "@latest", "out", "-x", "-o", "unpacked")).code == 0
    assert [path.read_text() for path in (place.folder / "unpacked").rglob("file")] == ["kept\n"]
    assert (await place.run("artifact", "get", "@latest", "say/out")).code == 0
    assert len(list(place.folder.glob("out.tar.*"))) == 1
    unknown = await place.run("artifact", "get", "@latest", "oot")
    assert unknown.code == UNREACHABLE
    assert "say/out" in unknown.err


async def test_a_run_that_fails_shows_why_and_what_to_try(place):
    await place.apply(FAIL)
    result = await place.run("run", "start", "fail", "--wait")
    assert result.code == RUN_FAILED
    assert "  the reason" in result.out
    assert "run retry" in result.out
    assert (await place.run("run", "logs", "@latest", "--failed")).out == "the reason\n"
    assert (await place.run("run", "retry", "@latest", "--wait")).code == RUN_FAILED


async def test_a_failure_that_is_allowed_is_not_shown_as_the_reason(place):
    await place.apply(TOLERANT)
    result = await place.run("run", "start", "tolerant", "--wait")
    assert result.code == RUN_FAILED
    report = result.out[result.out.index("the last lines of") :]
    assert "the last lines of s / unit:\n  the reason" in report
    assert "the style" not in report
    assert (await place.run("run", "logs", "@latest", "--failed")).out == "the reason\n"
    shown = [await place.json("run", "show", "@latest", name) for name in ("lint", "unit")]
    assert [each["allow_failure"] for each in shown] == [True, False]


async def test_t35_a_retried_run_shows_and_uses_what_it_carries_over(place):
    mended = place.folder / "mended"
    await place.apply(CARRY.replace("MENDED", str(mended)))
    assert (await place.run("run", "start", "carry", "--wait")).code == RUN_FAILED
    first = await place.json("run", "show", "@latest", "make")
    mended.touch()
    again = await place.run("run", "retry", "@latest", "--wait")
    assert again.code == 0, again.out
    make, use = [await place.json("run", "show", "@latest", name) for name in ("make", "use")]
    assert make["carried_from"] is not None
    assert make["outputs"] == {"VERSION": "1.2"}
    assert [each["state"] for each in make["attempts"]] == ["failed", "succeeded"]
    assert make["attempts"] == first["attempts"]
    assert use["outputs"]["GOT"] == "1.2"
    detail = json.loads(use["outputs"]["DETAIL"])
    (seen,) = [job for stage in detail["stages"] for job in stage["jobs"] if job["name"] == "make"]
    assert (seen["status"], json.loads(seen["output_value"])) == ("success", {"VERSION": "1.2"})


async def test_a_run_that_is_cancelled_and_a_log_that_is_followed(place):
    await place.apply(SLEEP)
    started = await place.json("run", "start", "sleep")
    number = str(started["number"])
    follower = await place.start("run", "logs", number, "long", "-f")
    async with asyncio.timeout(30):
        assert await follower.stdout.readline() == b"begun\n"
    watcher = await place.start("run", "watch", number)
    assert (await place.run("run", "cancel", number, "--why", "enough")).code == 0
    async with asyncio.timeout(30):
        assert await watcher.wait() == RUN_CANCELLED
        assert await follower.wait() == 0
    again = await place.run("run", "cancel", number)
    assert again.code == UNREACHABLE
    assert "is over" in again.err


async def test_a_pause_waits_for_a_decision(place):
    await place.apply(GATE)
    started = await place.json("run", "start", "gate")
    number = str(started["number"])
    watcher = await place.start("run", "watch", number)
    async with asyncio.timeout(30):
        while b"run approve" not in (line := await watcher.stdout.readline()):
            assert line, "it ended without pausing"
    assert (await place.run("run", "approve", number, "--comment", "fine")).code == 0
    async with asyncio.timeout(30):
        assert await watcher.wait() == 0
    assert (await place.json("run", "show", number))["stages"][0]["decision"]["comment"] == "fine"
    late = await place.run("run", "reject", number, "ask")
    assert late.code == UNREACHABLE


async def test_ctrl_c_leaves_the_run_alone_and_says_so(place):
    await place.apply(SLEEP)
    watcher = await place.start("run", "start", "sleep", "--wait", start_new_session=True)
    async with asyncio.timeout(30):
        while b"running" not in (line := await watcher.stdout.readline()):
            assert line
        os.killpg(watcher.pid, signal.SIGINT)
        _, err = await watcher.communicate()
    assert watcher.returncode == INTERRUPTED
    assert b"The run goes on" in err
    assert b"Traceback" not in err
    assert (await place.run("run", "cancel", "@latest")).code == 0
    await place.run("run", "watch", "@latest")


async def test_workflows_are_compared_versioned_and_deleted(place):
    await place.apply(FAIL.replace("name: fail", "name: versions"))
    assert (await place.run("workflow", "diff", "flow.yml")).code == 0
    assert "unchanged" in (await place.run("workflow", "apply", "flow.yml")).out
    (place.folder / "flow.yml").write_text(FAIL.replace("name: fail", "name: versions").replace("exit 3", "exit 4"))
    different = await place.run("workflow", "diff", "flow.yml")
    assert different.code == RUN_FAILED
    assert "+        script: echo the reason; exit 4" in different.out
    assert "version 2" in (await place.run("workflow", "apply", "flow.yml")).out
    assert "exit 3" in (await place.run("workflow", "show", "versions", "--version", "1")).out
    assert (await place.run("workflow", "delete", "versions", "--yes")).code == 0
    assert "versions" not in (await place.run("workflow", "list", "-o", "name")).out


async def test_secrets_tokens_tenants_and_hooks(place):
    assert (await place.run("secret", "set", "PASSWORD", "--from-stdin", stdin="geheim\n")).code == 0
    assert (await place.run("secret", "list", "-o", "name")).out == "PASSWORD\n"
    assert (await place.run("secret", "delete", "PASSWORD")).code == 0
    made = await place.run("token", "create", "reader", "--scope", "read", "--expires", "1h")
    assert made.out.startswith("hf_")
    tokens = await place.json("token", "list")
    assert [each["name"] for each in tokens] == ["reader"]
    assert (await place.run("token", "revoke", tokens[0]["id"])).code == 0
    assert (await place.run("tenant", "create", "acme", "--jobs", "3")).code == 0
    assert (await place.run("tenant", "quota", "acme", "--cpu", "1.5", "--memory", "2Gi")).code == 0
    quota = (await place.json("tenant", "show", "acme"))["quota"]
    assert (quota["jobs"], quota["cpu_millis"], quota["memory_bytes"]) == (3, 1500, 2 << 30)
    await place.apply(GREET)
    assert "/hooks/dev/greet/github" in (await place.run("hook", "show", "greet")).out
    assert (await place.run("events", "dead", "list")).code == 0
    assert place.dev.url in (await place.run("version")).out


async def test_what_the_server_refuses_is_a_sentence_with_a_hint(place):
    await place.apply(GREET)
    result = await place.run("run", "start", "gret")
    assert result.code == UNREACHABLE
    assert "did you mean 'greet'" in result.err
    assert (await place.run("run", "show", "99999999")).code == UNREACHABLE


async def test_the_second_start_is_quick_and_finds_everything(tmp_path):
    async with development(tmp_path / ".hubflow", runtime="process") as first:
        assert first.first_start
    began = time.monotonic()
    async with development(tmp_path / ".hubflow", runtime="process") as second:
        taken = time.monotonic() - began
        assert not second.first_start
        assert (second.token, second.tenant) == (first.token, first.tenant)
    assert taken < 8, "2 s on an idle machine; tests share theirs"


async def test_the_usual_port_is_given_to_one_of_those_that_start_together():
    from contextlib import AsyncExitStack

    from aiohttp import web

    from cli.dev import _take_port
    from shared.embedded.process import free_ports

    port = free_ports(1)[0]
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        assert _take_port(first, port)
        assert not _take_port(second, port)
        runner = web.AppRunner(web.Application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()  # as the services do; taken is not in the way
        await runner.cleanup()
        assert not _take_port(second, port)
    async with AsyncExitStack() as third:
        assert _take_port(third, port)


async def test_dev_goes_on_in_the_background_until_it_is_stopped(tmp_path):
    here = Place(None, tmp_path)
    begun = await here.run("dev", "--detach", "--runtime", "process")
    assert begun.code == 0, begun.err
    try:
        assert "PLAIN PROCESSES" in begun.out
        assert "running already" in (await here.run("dev", "--detach")).out
        assert (await here.run("run", "list")).code == 0
        assert (tmp_path / ".hubflow" / "secret.key").stat().st_mode & 0o777 == 0o600
    finally:
        below = tmp_path / "deep" / "down"
        below.mkdir(parents=True)
        stopped = await Place(None, below).run("dev", "--stop")
    assert (stopped.code, stopped.out.strip()) == (0, "stopped")
    gone = await here.run("run", "list")
    assert gone.code == UNREACHABLE
    assert "hubflow dev" in gone.err
    assert "nothing runs" in (await here.run("dev", "--stop")).out


async def test_servers_of_dev_that_are_killed_come_back_where_they_were(tmp_path):
    here, state = Place(None, tmp_path), tmp_path / ".hubflow"
    begun = await here.run("dev", "--detach", "--runtime", "process")
    assert begun.code == 0, begun.err
    try:
        await here.apply(GREET)
        for server, title in (("postgres", "PostgreSQL"), ("s3", "the S3")):
            os.kill(json.loads((state / server / "server.json").read_text())["pid"], signal.SIGKILL)
            log = state / "services.log"
            assert await holds(lambda title=title, log=log: f"{title} runs again" in log.read_text(), 60)
            assert f"{title} has died" in (state / "dev.log").read_text()
        deadline = time.monotonic() + 30  # services connect again by themselves
        while (result := await here.run("run", "start", "greet", "--logs")).code and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        assert result.code == 0, result.err
        assert "say | hello" in result.out
    finally:
        await here.run("dev", "--stop")


IN_CONTAINER = """
name: boxed
stages:
  - name: s
    jobs:
      - name: reach
        component: hubflow-test/busybox:latest
        script: |
          mkdir -p out && echo from a container > out/file
          wget -q -O - "$CONSOLE/healthz"
        inputs: {CONSOLE: "URL"}
        artifacts: [{name: out, paths: [out]}]
"""


async def test_containers_reach_object_storage_and_console_over_the_bridge(dockerd, tmp_path):
    settings = {"HUBFLOW_RUNTIME_DOCKER_HOST": dockerd.url}
    async with development(tmp_path / ".hubflow", "docker", throwaway=True, settings=settings) as dev:
        assert (dev.runtime_kind, dev.bridge_address) == ("docker", dockerd.gateway)
        public = dev.environment["HUBFLOW_PUBLIC_URL"]
        assert public.startswith(f"http://{dockerd.gateway}:")
        here = Place(dev, tmp_path)
        await here.apply(IN_CONTAINER.replace("URL", public))
        result = await here.run("run", "start", "boxed", "--logs")
        assert result.code == 0, result.out + result.err
        assert '"status":"ok"' in result.out
        assert (await here.run("artifact", "get", "@latest", "out", "-x")).code == 0
        assert [path.read_text() for path in tmp_path.glob("**/file")] == ["from a container\n"]


async def test_a_component_is_inspected_and_run_without_a_server(dockerd, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", dockerd.url)
    here = Place(None, tmp_path)
    shown = await here.run("component", "inspect", "hubflow-test/labelled:latest", "--local", "-o", "json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["component"]["description"] == "prints its input"
    ran = await here.run("component", "run", "hubflow-test/labelled:latest", "-o", "json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["outputs"] == {"SAID": "hello"}
    unknown = await here.run("component", "inspect", "hubflow-test/unknown:latest", "--local")
    assert unknown.code == UNREACHABLE


async def test_a_component_is_inspected_in_its_registry(registry, tmp_path):
    here = Place(None, tmp_path)
    result = await here.run("component", "inspect", f"{registry.host}/none/there:1")
    assert result.code == UNREACHABLE
    assert "not known to its registry" in result.err


async def test_services_in_processes_of_their_own(amqp_url, tmp_path):
    settings = {"HUBFLOW_AMQP_URL": amqp_url}
    opened = development(tmp_path / ".hubflow", "process", separate=True, throwaway=True, settings=settings)
    async with opened as dev:
        here = Place(dev, tmp_path)
        await here.apply(GREET)
        result = await here.run("run", "start", "greet", "--logs")
        assert result.code == 0, result.out + result.err
        assert "say | hello world" in result.out
