"""What executor, status watcher and log collector may rely on, whatever runtime they are given.

All parts are real: the wrapper's binary, operating system processes that are killed with -9, a Docker engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shared.errors import ConfigurationError, InUseError, PermanentError, TemporaryError
from shared.oci import open_registry_client, parse_reference
from shared.runtime import docker_body as body
from shared.runtime.engine import EngineError
from shared.runtime.protocol import Phase, Resources, ServiceSpec
from shared.runtime.select import RuntimeConfig, open_runtime
from tests.cluster.images import job_images
from tests.contract.runtime_places import (
    BARE_IMAGE,
    IMAGE,
    Place,
    Watcher,
    new_name,
    read,
    spec,
)
from tests.servers.pushing import push_image
from tests.servers.registry import started_registry

KILLS = {"process": 12, "docker": 6, "kubernetes": 4}


_ON_DOCKER = pytest.param("docker", marks=[pytest.mark.servers, pytest.mark.xdist_group("dockerd")])
_ON_KUBERNETES = pytest.param("kubernetes", marks=[pytest.mark.servers, pytest.mark.xdist_group("kubernetes")])


@pytest.fixture(params=["process", _ON_DOCKER, _ON_KUBERNETES])
def place(request, wrapper, tmp_path):
    if request.param != "process":
        return request.getfixturevalue(f"{request.param}_place")
    return Place("process", str(tmp_path / "root"), str(wrapper), "")


async def line(process):
    return (await asyncio.to_thread(process.stdout.readline)).strip()


# the ordinary way


async def test_a_job_runs_and_its_end_is_told_with_outputs(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "echo hello; echo ARTIFACT=dist.tgz >> $HUBFLOW_OUTPUT", env={"A": "b"}))
    end = await watcher.until(name, Phase.FINISHED)
    assert end.exit_code == 0
    assert end.reason == ""
    assert end.labels == {"tenant": "t1", "run": "r1", "job": "j1"}
    assert end.result["outcome"] == "exited"
    assert end.result["outputs"]["ARTIFACT"] == "dist.tgz"
    assert end.started_at <= end.finished_at
    assert await read(runtime, name) == b"hello\n"
    assert [seen.name for seen in await runtime.list() if seen.phase is Phase.FINISHED and seen.result].count(name) == 1
    assert await runtime.inspect(name) == end
    await runtime.remove(name)


async def test_a_failure_keeps_its_exit_code(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "exit 3"))
    assert (await watcher.until(name, Phase.FINISHED)).exit_code == 3


async def test_a_missing_program_is_told_as_the_wrapper_tells_it(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "", command=["no-such-program"]))
    end = await watcher.until(name, Phase.FINISHED)
    assert end.result["outcome"] == "start_failed"
    assert "no-such-program" in end.message


async def test_running_is_told_while_it_runs(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "sleep 60"))
    await watcher.until(name, Phase.RUNNING)
    assert (await runtime.inspect(name)).phase is Phase.RUNNING
    await runtime.remove(name)


async def test_large_outputs_come_whole(place, runtime, watcher):
    if place.kind == "kubernetes":
        pytest.skip("a termination message has 4096 bytes; what is larger goes to object storage: test_kubernetes.py")
    name = new_name()
    script = "for i in 1 2 3 4; do printf \"K$i=\"; seq 1 9000 | tr '\\n' ,; echo; done > $HUBFLOW_OUTPUT"
    await runtime.start(spec(name, script, message_limit=4096))
    outputs = (await watcher.until(name, Phase.FINISHED)).result["outputs"]
    assert outputs["K4"] == "".join(f"{number}," for number in range(1, 9001))


async def test_jobs_do_not_see_the_environment_of_the_service(runtime, monkeypatch):
    monkeypatch.setenv("HUBFLOW_TEST_SECRET", "do-not-show")
    name = new_name()
    await runtime.start(spec(name, "env; echo over"))
    shown = await read(runtime, name, follow=True)
    assert shown.endswith(b"over\n")
    assert b"do-not-show" not in shown


async def test_jobs_of_a_run_share_a_directory(place, runtime, watcher):
    first, second, shared = new_name(), new_name(), f"run-{uuid.uuid4().hex}"
    await runtime.start(spec(first, "echo from-first > $WORKFLOW_CACHE/file", shared=shared))
    await watcher.until(first, Phase.FINISHED)
    await runtime.start(spec(second, "cat $WORKFLOW_CACHE/file", shared=shared))
    assert await read(runtime, second, follow=True) == b"from-first\n"
    for name in (first, second):
        await runtime.remove(name)
    await runtime.remove_shared_directory(shared)
    await runtime.remove_shared_directory(shared)
    await runtime.start(spec(third := new_name(), "ls $WORKFLOW_CACHE", shared=shared))
    assert await read(runtime, third, follow=True) == b""
    await runtime.remove(third)
    await runtime.remove_shared_directory(shared)


async def test_unknown_options_are_refused_by_name(runtime):
    with pytest.raises(PermanentError, match="nodeSelectorX") as refused:
        await runtime.start(spec(new_name(), "true", options={"nodeSelectorX": {}}))
    assert refused.value.reason == "Unsupported"


async def test_unknown_names_are_no_error(runtime):
    name = new_name()
    assert await runtime.inspect(name) is None
    await runtime.stop(name, 1)
    await runtime.remove(name)
    with pytest.raises(KeyError):
        await read(runtime, name)
    with pytest.raises(KeyError):
        await read(runtime, name, follow=True)


async def test_t50_names_of_any_length_are_cut_and_stay_unique(runtime, watcher):
    names = [new_name("büro-" + "x" * 200 + end) for end in "ab"]
    assert len(set(names)) == 2
    assert all(len(name) <= 63 for name in names)
    for name in names:
        await runtime.start(spec(name, "true"))
    for name in names:
        await watcher.until(name, Phase.FINISHED)


# once and only once


async def test_t23_twenty_starts_from_two_processes_are_one_container(place, runtime, watcher):
    name, shared = new_name(), f"run-{uuid.uuid4().hex}"
    script = "echo x >> $WORKFLOW_CACHE/witness; cat $WORKFLOW_CACHE/witness"
    others = [place.other_process("start", name, 10, script, shared) for _ in range(2)]
    for other in others:
        assert await line(other) == "ready"
    for other in others:
        other.stdin.write("go\n")
        other.stdin.flush()
    for other in others:
        assert "done" in await asyncio.to_thread(other.stdout.read)
        other.wait()
    assert await read(runtime, name, follow=True) == b"x\n"
    assert len({seen.uid for seen in watcher.of(name) if seen.phase is not Phase.PENDING}) == 1
    assert [seen.name for seen in await runtime.list()].count(name) == 1


async def test_t24_a_starter_killed_at_any_moment_leaves_one_container(place, runtime, watcher):
    window = {"process": 0.02, "docker": 0.8, "kubernetes": 0.6}[place.kind]
    ran = []
    kills = KILLS[place.kind]
    for number in range(4 * kills):
        if number % kills == 0 and number:
            if any(ran):
                break
            window *= 2  # on a slow machine no kill came late enough to leave anything
        name, shared = new_name(), f"run-{uuid.uuid4().hex}"
        script = "echo x >> $WORKFLOW_CACHE/witness; sleep 0.1; cat $WORKFLOW_CACHE/witness"
        other = place.other_process("start", name, 1, script, shared)
        assert await line(other) == "ready"
        other.stdin.write("go\n")
        other.stdin.flush()
        await asyncio.sleep(window * (number % kills + random.random()) / kills)
        other.send_signal(signal.SIGKILL)
        other.wait()
        ran.append(await runtime.inspect(name) is not None)
        await runtime.start(spec(name, script, shared=shared))
        assert await read(runtime, name, follow=True) == b"x\n", (number, ran)
        assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
        assert Phase.GONE not in [seen.phase for seen in watcher.of(name)]
    assert any(ran), "no kill came late enough to leave anything"


async def test_a_start_that_was_left_half_done_is_finished_once(place, runtime, watcher):
    name = new_name()
    wanted = spec(name, "echo once")
    await place.half_start(runtime, wanted)
    await watcher.until(name, Phase.PENDING)
    await asyncio.gather(*(runtime.start(wanted) for _ in range(5)))
    assert await read(runtime, name, follow=True) == b"once\n"
    await watcher.until(name, Phase.FINISHED)


async def test_starting_what_has_finished_does_nothing(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "echo first"))
    end = await watcher.until(name, Phase.FINISHED)
    await runtime.start(spec(name, "echo second"))
    assert await read(runtime, name) == b"first\n"
    assert (await runtime.inspect(name)).uid == end.uid


# stopping


async def test_t31_a_running_job_is_told_to_end(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "trap 'echo tidying; exit 9' TERM; echo up; while true; do sleep 0.05; done"))
    async for _ in runtime.logs(name, follow=True):
        break
    await runtime.stop(name, 10)
    end = await watcher.until(name, Phase.FINISHED)
    assert end.result["outcome"] == "stopped"
    assert end.exit_code == 9
    assert (await read(runtime, name)).endswith(b"tidying\n")


async def test_t31_a_job_that_does_not_listen_is_killed_after_its_time(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "trap '' TERM; echo up; while true; do sleep 1; done", grace_s=600))
    async for _ in runtime.logs(name, follow=True):
        break
    await runtime.stop(name, 1)
    end = await watcher.until(name, Phase.FINISHED)
    assert end.reason == "Cancelled"
    assert end.result is None
    await runtime.stop(name, 1)


async def test_t31_the_kill_comes_even_if_the_stopper_dies(place, runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "trap '' TERM; echo up; while true; do sleep 1; done", grace_s=600))
    async for _ in runtime.logs(name, follow=True):
        break
    stopper = place.other_process("stop", name, 1)
    await asyncio.to_thread(stopper.wait)
    assert (await watcher.until(name, Phase.FINISHED)).reason == "Cancelled"


async def test_t31_what_has_not_started_never_will(place, runtime, watcher):
    name = new_name()
    wanted = spec(name, "echo must not run")
    await place.half_start(runtime, wanted)
    await runtime.stop(name, 5)
    end = await watcher.until(name, Phase.FINISHED)
    assert end.reason == "Cancelled"
    assert end.labels["run"] == "r1"
    await runtime.start(wanted)
    assert (await runtime.inspect(name)).reason == "Cancelled"
    assert await read(runtime, name, follow=True) == b""
    await runtime.remove(name)


async def test_t31_stop_and_start_at_the_same_time_end_stopped(runtime, watcher):
    names = [new_name() for _ in range(6)]
    for name in names:
        start = asyncio.create_task(runtime.start(spec(name, "sleep 60")))
        await watcher.until(name)
        await runtime.stop(name, 5)
        await start
    for name in names:
        end = await watcher.until(name, Phase.FINISHED)
        assert end.reason == "Cancelled" or end.result["outcome"] == "stopped"


# watching


async def test_t02_a_restarted_watch_tells_all(place):
    ended, running = [new_name() for _ in range(5)], new_name()
    async with place.opened() as starter:
        for name in ended:
            await starter.start(spec(name, "echo A=1 >> $HUBFLOW_OUTPUT"))
        await starter.start(spec(running, "sleep 60"))
        for name in ended:
            await read(starter, name, follow=True)
    async with place.opened() as runtime:
        watcher = Watcher(runtime)
        for name in ended:
            assert (await watcher.until(name, Phase.FINISHED)).result["outputs"] == {"A": "1"}
        await watcher.until(running, Phase.RUNNING)
        await watcher.close()
        again = Watcher(runtime)
        for name in ended:
            await again.until(name, Phase.FINISHED)
        await again.close()
        await runtime.remove(running)


async def test_t19_each_of_two_watchers_tells_each_end_once(place, runtime, watcher):
    names = [new_name() for _ in range(5)]
    async with place.opened() as second:
        other = Watcher(second)
        for name in names:
            await runtime.start(spec(name, "true"))
        for name in names:
            await watcher.until(name, Phase.FINISHED)
            await other.until(name, Phase.FINISHED)
        for told in (watcher, other):
            assert all([seen.phase for seen in told.of(name)].count(Phase.FINISHED) == 1 for name in names)
        await other.close()


async def test_t05_a_container_removed_by_hand_is_gone(place, runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "sleep 60"))
    await watcher.until(name, Phase.RUNNING)
    await place.remove_by_hand(name)
    told = await watcher.until(name, Phase.GONE)
    assert told.reason == "ContainerGone"
    assert told.labels["job"] == "j1"


async def test_who_starts_again_what_was_removed_by_hand_starts_nothing(place, runtime, watcher):
    """The executor that had started it died before it could note that; nobody else knows."""
    if place.kind != "docker":
        pytest.skip("a pod stays until its outcome is recorded; plain processes keep no history")
    name = new_name()
    await runtime.start(spec(name, "sleep 60"))
    await watcher.until(name, Phase.RUNNING)
    await place.remove_by_hand(name)
    await runtime.start(dataclasses.replace(spec(name, "sleep 60"), again=True))
    told = await runtime.inspect(name)
    assert (told.phase, told.reason) == (Phase.FINISHED, "ContainerGone")
    assert told.started_at is not None
    await runtime.remove(name)
    assert await runtime.inspect(name) is None


async def test_starting_again_what_never_started_starts_it(runtime, watcher):
    name = new_name()
    await runtime.start(dataclasses.replace(spec(name, "true"), again=True))
    assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
    await runtime.remove(name)


async def test_removing_a_finished_container_is_no_news(runtime, watcher):
    name, after = new_name(), new_name()
    await runtime.start(spec(name, "true"))
    await watcher.until(name, Phase.FINISHED)
    await runtime.remove(name)
    await runtime.start(spec(after, "true"))
    await watcher.until(after, Phase.FINISHED)
    assert watcher.of(name)[-1].phase is Phase.FINISHED


async def test_a_murdered_wrapper_is_not_the_users_failure(place, runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "echo up; sleep 60"))
    async for _ in runtime.logs(name, follow=True):
        break
    await place.kill_wrapper(name)
    end = await watcher.until(name, Phase.FINISHED, timeout=5 if place.kind != "kubernetes" else 15)
    assert end.reason == "WrapperFailed"
    assert end.exit_code == 137


# logs


async def test_t53_ten_megabytes_in_a_second_come_byte_for_byte(place, runtime, watcher):
    name = new_name()
    script = "head -c 9700000 /dev/urandom > data; cat data; seq 1 50000; printf 'no newline at the end'"
    await runtime.start(spec(name, script))
    followed = await read(runtime, name, follow=True)
    end = await watcher.until(name, Phase.FINISHED)
    whole = await read(runtime, name)
    numbers = b"".join(b"%d\n" % number for number in range(1, 50001))
    printed = 9700000 + len(numbers) + 21
    if place.kind == "kubernetes":  # containerd drops a carriage return before a line's end: see docs/kubernetes.md
        printed -= end.result["log_crlf"]
    assert len(whole) == end.log_bytes == printed
    assert whole.endswith(numbers + b"no newline at the end")
    assert followed == whole


async def test_bytes_that_are_no_text_stay_as_they_are(place, runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, r"printf '\377\000\r\n\n\033[31m'; printf 'x'; printf 'error\n' >&2; printf y"))
    line_end = b"\n" if place.kind == "kubernetes" else b"\r\n"  # containerd drops it: see docs/kubernetes.md
    log = await read(runtime, name, follow=True)
    assert log == b"\xff\x00" + line_end + b"\n\x1b[31mxerror\ny"
    assert (await watcher.until(name, Phase.FINISHED)).log_bytes == len(log)


async def test_t55_a_collector_goes_on_at_any_byte(place, runtime):
    name = new_name()
    await runtime.start(spec(name, "for i in 1 2 3 4 5 6 7 8; do seq 1 3000; sleep 0.1; done"))
    collected = bytearray()
    for limit in (1, 20_000, 40_000, 10**9):
        async with place.opened() as collector:
            async for chunk in collector.logs(name, len(collected), follow=True):
                collected += chunk
                if len(collected) >= limit:
                    break
    expected = b"".join(b"%d\n" % number for number in range(1, 3001)) * 8
    assert bytes(collected) == expected
    assert await read(runtime, name, 12_345) == expected[12_345:]
    assert await read(runtime, name, len(expected)) == b""
    assert await read(runtime, name, len(expected) + 5) == b""


async def test_output_is_followed_as_it_comes(place, runtime):
    name = new_name()
    await runtime.start(spec(name, "echo first; sleep 60"))
    async with asyncio.timeout(5 if place.kind != "kubernetes" else 30):
        async for chunk in runtime.logs(name, follow=True):
            assert chunk == b"first\n"
            break
    await runtime.remove(name)


# leaving nothing


async def test_removal_leaves_nothing(place, runtime, watcher):
    names = [new_name() for _ in range(3)]
    await runtime.start(spec(names[0], "echo over; touch a b c"))
    await watcher.until(names[0], Phase.FINISHED)
    await runtime.start(spec(names[1], "sleep 60"))
    await watcher.until(names[1], Phase.RUNNING)
    await place.half_start(runtime, spec(names[2], "true"))
    for name in names:
        assert await place.traces(name)
        await runtime.remove(name)
        assert await place.traces(name) == []
        assert await runtime.inspect(name) is None


async def test_a_name_can_be_used_again_after_removal(runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "echo one"))
    first = await watcher.until(name, Phase.FINISHED)
    await runtime.remove(name)
    await runtime.start(spec(name, "echo two"))
    assert await read(runtime, name, follow=True) == b"two\n"
    assert (await runtime.inspect(name)).uid != first.uid


# plain processes only


@pytest.fixture
def process_place(wrapper, tmp_path):
    return Place("process", str(tmp_path / "root"), str(wrapper), "")


async def test_processes_refuse_the_command_of_an_image(process_place):
    wanted = spec(new_name(), "true", image="registry.example/tool:1")
    async with process_place.opened() as runtime:
        await runtime.start(wanted)
        with pytest.raises(PermanentError) as refused:
            await runtime.start(type(wanted)(**{**_fields(wanted), "name": new_name(), "script": False}))
    assert refused.value.reason == "Unsupported"


def _fields(wanted):
    return {name: getattr(wanted, name) for name in type(wanted).__dataclass_fields__}


async def test_jobs_outlive_the_service_that_started_them(process_place):
    name = new_name()
    other = process_place.other_process("start", name, 1, "echo up; sleep 1; echo still", "")
    await line(other)
    other.stdin.write("go\n")
    other.stdin.flush()
    assert await line(other) == "done"
    other.kill()
    other.wait()
    async with process_place.opened() as runtime:
        assert await read(runtime, name, follow=True) == b"up\nstill\n"
        assert (await runtime.inspect(name)).exit_code == 0


async def test_what_daemonizes_is_killed_after_its_wrapper_was(process_place):
    name = new_name()
    async with process_place.opened() as runtime:
        await runtime.start(spec(name, "setsid sleep 345 & echo $!; sleep 60"))
        async for chunk in runtime.logs(name, follow=True):
            stray = int(chunk)
            break
        await process_place.kill_wrapper(name)
        watcher = Watcher(runtime)
        await watcher.until(name, Phase.FINISHED)
        async with asyncio.timeout(5):
            while _lives(stray):
                await asyncio.sleep(0.05)
        assert not _lives(stray)
        await watcher.close()


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_no_zombies_stay(process_place):
    async with process_place.opened() as runtime:
        names = [new_name() for _ in range(5)]
        for name in names:
            await runtime.start(spec(name, "true"))
        async with asyncio.timeout(5):
            while runtime._attended:
                await asyncio.sleep(0.01)
        wrappers = [
            json.loads(Path(process_place.where, "containers", name, "pid").read_text())["pid"] for name in names
        ]
        assert [pid for pid in wrappers if Path(f"/proc/{pid}").exists()] == []


async def test_the_job_document_does_not_outlast_the_start(process_place):
    name = new_name()
    async with process_place.opened() as runtime:
        await runtime.start(spec(name, "echo up; sleep 60", env={"TOKEN": "very-secret"}))
        async for _ in runtime.logs(name, follow=True):
            break
        files = process_place.files()
        assert files
        assert b"very-secret" not in b"".join(files)
        await runtime.remove(name)


# Docker only


@pytest.fixture
async def docker(docker_place):
    async with docker_place.opened() as opened:
        yield opened


@pytest.fixture
async def docker_watcher(docker):
    watching = Watcher(docker)
    yield watching
    await watching.close()


@pytest.mark.servers
async def test_t08_too_much_memory_is_told_with_the_limit(docker, docker_watcher):
    name = new_name()
    await docker.start(spec(name, "tail /dev/zero", resources=Resources(memory_bytes=32 << 20)))
    end = await docker_watcher.until(name, Phase.FINISHED)
    assert end.reason == "OOMKilled"
    assert name in end.message
    assert "32 MiB" in end.message


@pytest.mark.servers
async def test_t09_an_image_that_does_not_exist_is_named(docker, docker_watcher, bare_registry):
    name, image = new_name(), f"{bare_registry.address}/nowhere/nothing:7"
    await docker.start(spec(name, "true", image=image))
    end = await docker_watcher.until(name, Phase.FINISHED)
    assert end.reason == "ImagePull"
    assert image in end.message
    assert end.labels["run"] == "r1"


@pytest.mark.servers
async def test_an_image_that_one_tenant_has_pulled_is_no_other_ones_where_the_registry_is_always_asked(
    docker_place, docker, wrapper, tmp_path
):
    auth = {"username": "u", "password": "word"}
    async with (
        started_registry(tmp_path, users={"u": "word"}) as closed,
        open_registry_client() as client,
    ):
        where = {"docker_host": docker_place.where, "installation": docker_place.installation, "default_image": IMAGE}
        asking = await open_runtime(_config("docker", wrapper, tmp_path, pull="always", **where))
        image = f"{closed.host}/private/tool:1"
        await push_image(client, parse_reference(image), *job_images()[0].pushable(), auth)
        own, allowed = new_name(), new_name()
        await docker.start(spec(own, "echo own", image=image, registry_auth=auth))
        assert await read(docker, own, follow=True) == b"own\n"
        service = ServiceSpec("db", image, ("sleep", "60"))
        for more in ({"image": image}, {"services": (service,)}):
            refused = new_name()
            await asking.start(spec(refused, "echo never", **more))
            assert (await docker.inspect(refused)).reason == "ImagePull"
        with_account = dataclasses.replace(service, registry_auth=auth)
        await asking.start(spec(allowed, "echo yes", image=image, registry_auth=auth, services=(with_account,)))
        assert await read(docker, allowed, follow=True) == b"yes\n"
        await asking.close()


@pytest.mark.servers
async def test_t31_a_job_is_stopped_while_its_image_is_pulled(docker_place, docker, docker_watcher, bare_registry):
    name, image = new_name(), f"{bare_registry.address}/slow/image:1"
    start = asyncio.create_task(docker.start(spec(name, "true", image=image)))
    await docker_watcher.until(name, Phase.PENDING)
    async with asyncio.timeout(10):
        await bare_registry.asked.wait()
    async with docker_place.opened() as another_service:
        await another_service.stop(name, 5)
    assert (await docker_watcher.until(name, Phase.FINISHED)).reason == "Cancelled"
    bare_registry.release.set()
    await start
    assert (await docker.inspect(name)).reason == "Cancelled"


@pytest.mark.servers
async def test_a_bare_image_with_a_strange_user_and_a_read_only_root_works(docker, docker_watcher):
    for options in ({}, {"read_only_root": True}):
        name, shared = new_name(), f"run-{uuid.uuid4().hex}"
        script = (
            "echo A=1 >> $HUBFLOW_OUTPUT; echo y > /workflow_cache/file; read line < /workflow-cache/file; echo $line"
        )
        wanted = spec(name, script, image=BARE_IMAGE, shared=shared, options=options, command=["/bin/sh", "-c", script])
        await docker.start(wanted)
        end = await docker_watcher.until(name, Phase.FINISHED)
        assert end.exit_code == 0, end
        assert end.result["outputs"] == {"A": "1"}
        assert await read(docker, name) == b"y\n"
        await docker.remove(name)
        await docker.remove_shared_directory(shared)


@pytest.mark.servers
async def test_a_shared_directory_whose_containers_are_there_is_in_use(docker, docker_watcher):
    name, shared = new_name(), f"run-{uuid.uuid4().hex}"
    await docker.start(spec(name, "true", shared=shared))
    await docker_watcher.until(name, Phase.FINISHED)
    with pytest.raises(InUseError, match=shared):
        await docker.remove_shared_directory(shared)
    await docker.remove(name)
    await docker.remove_shared_directory(shared)


@pytest.mark.servers
async def test_an_images_own_command_and_environment_count(docker, docker_watcher):
    own, env = new_name(), new_name()
    wanted = spec(own, "")
    await docker.start(type(wanted)(**{**_fields(wanted), "document": {**wanted.document, "command": []}}))
    assert await read(docker, own, follow=True) == b"from the image\n"
    await docker.start(spec(env, "echo $FROM_IMAGE"))
    assert await read(docker, env, follow=True) == b"yes\n"


@pytest.mark.servers
async def test_secrets_are_not_in_what_the_engine_tells(docker_place, docker, docker_watcher):
    name = new_name()
    look = "cat /proc/1/environ && echo seen; env; echo looked; sleep 60"
    await docker.start(spec(name, look, env={"TOKEN": "very-secret"}))
    await docker_watcher.until(name, Phase.RUNNING)
    told = json.dumps(await docker_place.engine("GET", f"/containers/{name}/json"))
    assert body.SEALED in told
    assert "very-secret" not in told
    words = b""
    async with contextlib.aclosing(docker.logs(name, follow=True)) as output:
        while b"looked" not in words:
            words += await anext(output)
    assert b"TOKEN=very-secret" in words
    assert body.SEALED.encode() not in words
    assert b"seen" not in words  # the job cannot read the wrapper's environment
    await docker.remove(name)


@pytest.mark.servers
async def test_job_documents_are_copied_in_where_they_are_too_large_or_there_is_no_key(docker_place, docker_watcher):
    large = {"LARGE": "x" * body.SEALED_LIMIT}
    for key, env in ((docker_place.key, large), (None, {"SMALL": "y"})):
        async with dataclasses.replace(docker_place, key=key).opened() as docker:
            name = new_name()
            await docker.start(spec(name, "echo ${#LARGE} $SMALL; echo '[JOB_OUT] A = 1'", env=env))
            end = await docker_watcher.until(name, Phase.FINISHED)
            assert (end.exit_code, end.result["outputs"]) == (0, {"A": "1"})
            assert (await read(docker, name)).split()[0] == str(len(env.get("LARGE", ""))).encode()
            told = await docker_place.engine("GET", f"/containers/{name}/json")
            assert not any(each.startswith(body.SEALED) for each in told["Config"]["Env"])
            await docker.remove(name)


@pytest.mark.servers
async def test_a_pruned_wrapper_is_installed_again(docker_place, wrapper, tmp_path):
    other = tmp_path / "hubflow-wrapper"
    other.write_bytes(wrapper.read_bytes() + b"of its own")  # so that it has a volume that no container of others uses
    other.chmod(0o755)
    place = dataclasses.replace(docker_place, wrapper=str(other), installation=f"{docker_place.installation}-pruned")
    async with place.opened() as docker:
        watcher = Watcher(docker)
        first, second = new_name(), new_name()
        await docker.start(spec(first, "true"))
        await watcher.until(first, Phase.FINISHED)
        await docker.remove(first)
        await docker_place.engine("DELETE", f"/volumes/{(await docker._starter.ready()).volume}")
        await docker.start(spec(second, "true"))
        assert (await watcher.until(second, Phase.FINISHED)).exit_code == 0
        await docker.remove(second)
        await watcher.close()


@pytest.mark.servers
async def test_a_start_or_stop_that_meets_the_removal_of_a_half_done_one_is_not_fooled(docker, docker_watcher):
    """The engine shows a container that is being removed for a while: one that never started has not been started."""
    starter = docker._starter
    for milliseconds in range(0, 20, 2):
        name = new_name()
        wanted = spec(name, "echo up; exec sleep 60" if milliseconds % 4 else "echo up")
        left_behind = await starter._create(wanted, IMAGE)
        assert left_behind is not None

        async def remove(identity: str = left_behind) -> None:
            assert await starter.delete_unstarted(identity)

        async def start(wanted: Any = wanted, seconds: float = milliseconds / 1000) -> None:
            await asyncio.sleep(seconds)
            await docker.start(wanted)

        await asyncio.gather(remove(), start())
        assert (await docker.inspect(name)).phase in {Phase.RUNNING, Phase.FINISHED}
        if milliseconds % 4:
            await docker.stop(name, 1.0)
        told = await docker_watcher.until(name, Phase.FINISHED)
        assert told.result is not None
        assert await read(docker, name, follow=True) == b"up\n"
        await docker.remove(name)


@pytest.mark.servers
async def test_a_container_in_the_last_moment_of_its_removal_has_not_ended_by_itself(
    docker_place, docker, docker_watcher
):
    """An engine calls it `dead` then; here that lasts, since one of its files cannot be deleted."""
    name = new_name()
    await docker.start(spec(name, "touch stays; echo ready; sleep 60"))
    await docker_watcher.until(name, Phase.RUNNING)
    async with contextlib.aclosing(docker.logs(name, follow=True)) as output:
        assert b"ready" in await anext(output)
    told = await docker_place.engine("GET", f"/containers/{name}/json")
    [stays] = Path(told["GraphDriver"]["Data"]["UpperDir"]).rglob("stays")
    subprocess.run(["chattr", "+i", stays], check=True)
    try:
        with pytest.raises(EngineError):
            await docker_place.engine("DELETE", f"/containers/{name}", query={"force": "1"})
        assert (await docker_place.engine("GET", f"/containers/{name}/json"))["State"]["Status"] == "dead"
        assert await docker.inspect(name) is None
    finally:
        subprocess.run(["chattr", "-i", stays], check=True)
        await docker.remove(name)


@pytest.mark.servers
async def test_the_log_of_a_start_that_is_taken_over_is_whole(docker, docker_watcher, monkeypatch):
    starter, waits, missed = docker._starter, asyncio.Event(), asyncio.Event()
    changed, find = starter.changed, starter.find

    async def waiting(identity, timeout):
        waits.set()
        return await changed(identity, timeout)

    async def looking(name):
        found = await find(name)
        if found is None:
            missed.set()
        return found

    wanted = spec(new_name(), "echo hello")
    left_behind = await starter._create(wanted, IMAGE)
    monkeypatch.setattr(starter, "changed", waiting)
    async with asyncio.timeout(30):
        log = asyncio.create_task(read(docker, wanted.name, follow=True))
        await waits.wait()
        monkeypatch.setattr(starter, "find", looking)
        assert await starter.delete_unstarted(left_behind)
        await missed.wait()
        await docker.start(wanted)
        assert await log == b"hello\n"


@pytest.mark.servers
async def test_an_engine_that_is_away_is_temporary(docker_place, wrapper, tmp_path):
    away = Place("docker", f"unix://{tmp_path}/none.sock", str(wrapper), "none")
    async with away.opened() as runtime:
        for attempt in (runtime.ping, runtime.list, lambda: runtime.start(spec(new_name(), "true"))):
            with pytest.raises(TemporaryError, match=r"none\.sock"):
                await attempt()
        with pytest.raises(TemporaryError):
            await anext(runtime.watch())


class Registry:
    """A registry that has no image; asked for slow/image it takes its time to say so."""

    def __init__(self):
        self.address = ""
        self.asked, self.release = asyncio.Event(), asyncio.Event()

    async def answer(self, request):
        if request.path == "/v2/":
            return web.json_response({})
        if "slow/image" in request.path:
            self.asked.set()
            await self.release.wait()
        return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}, status=404)


@pytest.fixture
async def bare_registry():
    serving = Registry()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serving.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    serving.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield serving
    serving.release.set()
    await runner.cleanup()


# choosing


def _config(kind, wrapper, tmp_path, **more):
    return RuntimeConfig(kind=kind, wrapper_path=wrapper, process_root=tmp_path / "root", **more)


async def test_auto_takes_processes_where_no_engine_answers(wrapper, tmp_path):
    runtime = await open_runtime(_config("auto", wrapper, tmp_path, docker_host=f"unix://{tmp_path}/none.sock"))
    assert runtime.name == "process"
    await runtime.ping()
    await runtime.close()


@pytest.mark.servers
async def test_auto_takes_docker_where_it_answers(docker_place, wrapper, tmp_path):
    runtime = await open_runtime(_config("auto", wrapper, tmp_path, docker_host=docker_place.where))
    assert runtime.name == "docker"
    await runtime.ping()
    await runtime.close()


async def test_a_runtime_that_is_not_there_is_a_configuration_error(wrapper, tmp_path):
    with pytest.raises(ConfigurationError, match="podman"):
        await open_runtime(_config("podman", wrapper, tmp_path))


async def test_kubernetes_wants_to_know_where_its_wrapper_is(wrapper, tmp_path):
    with pytest.raises(ConfigurationError, match="HUBFLOW_KUBERNETES_WRAPPER_IMAGE"):
        await open_runtime(_config("kubernetes", wrapper, tmp_path))


async def test_a_missing_wrapper_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigurationError, match="make wrapper"):
        await open_runtime(_config("process", tmp_path / "none", tmp_path))
