"""Services beside a container: the same on Docker and Kubernetes, and refused by plain processes."""

from __future__ import annotations

import asyncio
import json
import random
import uuid

import pytest

from shared.errors import PermanentError
from shared.runtime import docker_body, docker_services, docker_watch
from shared.runtime.protocol import Phase, ServiceSpec
from tests.contract.runtime_places import IMAGE, Place, Watcher, new_name, read, spec

HELD = 'trap "" TERM; while :; do sleep 1; done'
"""A service that never ends, and takes no notice of being told to."""

_ON_DOCKER = pytest.param("docker", marks=[pytest.mark.servers, pytest.mark.xdist_group("dockerd")])
_ON_KUBERNETES = pytest.param("kubernetes", marks=[pytest.mark.servers, pytest.mark.xdist_group("kubernetes")])


@pytest.fixture(params=[_ON_DOCKER, _ON_KUBERNETES])
def place(request):
    return request.getfixturevalue(f"{request.param}_place")


def service(place: Place, script: str, name: str = "db", **more) -> ServiceSpec:
    image = IMAGE if place.kind == "docker" else f"{place.wrapper}/job:1"
    return ServiceSpec(name, image, ("sh", "-c", script), **more)


def web(place: Place, port: int, *, before: str = "", **more) -> ServiceSpec:
    """Serves its own variable TOLD at this port."""
    script = f'{before} mkdir /www; echo "$TOLD" > /www/told; exec busybox httpd -f -p {port} -h /www'
    return service(place, script, more.pop("name", "db"), port=port, **more)


async def test_a_job_begins_when_its_service_takes_connections_and_reaches_it(place, runtime, watcher):
    name = new_name()
    ready_late = web(place, 5432, before="sleep 2;", env={"TOLD": "it is=me"})
    script = "busybox wget -qO- http://127.0.0.1:5432/told; cat /etc/hosts"
    await runtime.start(spec(name, script, services=(ready_late,)))
    end = await watcher.until(name, Phase.FINISHED)
    assert (end.exit_code, end.reason) == (0, "")
    printed = (await read(runtime, name)).decode()
    assert printed.startswith("it is=me\n")
    assert any(line.split()[:2] == ["127.0.0.1", "db"] for line in printed.splitlines() if line.split())
    await runtime.remove(name)
    await place.until_gone(name)


async def test_services_start_in_order_and_ready_by_a_command(place, runtime, watcher):
    name = new_name()
    slow = service(place, f"sleep 1.5; echo yes > /ready; {HELD}", "first", check=("sh", "-c", "[ -e /ready ]"))
    second = web(place, 8081, name="second", env={"TOLD": "two"})
    third = web(place, 8082, name="third", env={"TOLD": "three"})
    script = "busybox wget -qO- http://127.0.0.1:8081/told; busybox wget -qO- http://127.0.0.1:8082/told"
    await runtime.start(spec(name, script, services=(slow, second, third)))
    assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
    assert await read(runtime, name) == b"two\nthree\n"
    await runtime.remove(name)


async def test_t14_a_service_that_never_ends_does_not_hold_the_job(place, runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "echo done", grace_s=1, services=(service(place, HELD),)))
    end = await watcher.until(name, Phase.FINISHED)
    assert end.exit_code == 0
    if place.kind == "docker":  # on Kubernetes kubelet does it, in its own time

        async def services() -> list:
            filters = json.dumps({"label": [f"{docker_body.SERVICE_OF}={name}"]})
            return await place.engine("GET", "/containers/json", query={"all": "1", "filters": filters})

        async with asyncio.timeout(20):
            while await services():
                await asyncio.sleep(0.05)
    await runtime.remove(name)
    await place.until_gone(name)


@pytest.mark.parametrize(
    ("script", "more", "words"),
    [
        ("echo no room for the data; sleep 1; exit 3", {"port": 9}, ("db", "3", "no room for the data")),
        (HELD, {"port": 9, "ready_seconds": 2.0}, ("db", "ready")),
        (HELD, {"check": ("sh", "-c", "exit 1"), "ready_seconds": 2.0}, ("db", "ready")),
    ],
    ids=["ends", "no-port", "no-command"],
)
async def test_a_service_that_does_not_become_ready_fails_the_job_by_name(place, runtime, watcher, script, more, words):
    name = new_name()
    await runtime.start(spec(name, "echo never", grace_s=1, services=(service(place, script, **more),)))
    end = await watcher.until(name, Phase.FINISHED, timeout=60)
    assert end.reason == "StartFailed"
    assert all(word in end.message for word in words), end.message
    assert end.result is None
    await runtime.remove(name)
    await place.until_gone(name)


async def test_t09_a_services_image_that_does_not_exist_is_named(place, runtime, watcher):
    name = new_name()
    await runtime.start(spec(name, "echo never", services=(ServiceSpec("db", "hub.test/UPPER/case:1"),)))
    end = await watcher.until(name, Phase.FINISHED, timeout=60)
    assert end.reason == "ImagePull"
    assert "UPPER/case" in end.message
    await runtime.remove(name)
    await place.until_gone(name)


async def test_stopped_while_services_become_ready_it_never_begins(place, runtime, watcher):
    name = new_name()
    wanted = spec(name, "echo never", grace_s=1, services=(service(place, HELD, port=9),))
    starting = asyncio.create_task(runtime.start(wanted))
    await watcher.until(name, Phase.PENDING)
    await runtime.stop(name, 2)
    end = await watcher.until(name, Phase.FINISHED, timeout=60)
    assert end.reason == "Cancelled"
    await starting
    assert await read(runtime, name) == b""
    await runtime.remove(name)
    await place.until_gone(name)


async def test_t37_starters_that_are_killed_leave_one_job_with_its_services(place, runtime, watcher):
    name = new_name()
    served = web(place, 7000, before="sleep 0.3;", env={"TOLD": "once"})
    wanted = spec(name, "busybox wget -qO- http://127.0.0.1:7000/told", services=(served,))
    for delay in (0.0, 0.05, 0.2, 0.4, random.uniform(0, 1.5)):
        async with place.opened() as dying:
            starting = asyncio.create_task(dying.start(wanted))
            await asyncio.sleep(delay)  # the moment of the murder
            starting.cancel()
            await asyncio.wait([starting])
    async with asyncio.timeout(60):
        await asyncio.gather(runtime.start(wanted), runtime.start(wanted))
    assert (await watcher.until(name, Phase.FINISHED)).exit_code == 0
    assert await read(runtime, name) == b"once\n"
    assert len({seen.uid for seen in watcher.of(name) if seen.phase is Phase.RUNNING}) <= 1
    await runtime.remove(name)
    await place.until_gone(name)


async def test_plain_processes_refuse_services(tmp_path, wrapper):
    place = Place("process", str(tmp_path / "root"), str(wrapper), "")
    async with place.opened() as processes:
        with pytest.raises(PermanentError, match=r"db.*Docker or Kubernetes") as refused:
            await processes.start(spec(new_name(), "true", services=(ServiceSpec("db", "postgres:16"),)))
        assert refused.value.reason == "Unsupported"


# Docker only


@pytest.mark.servers
@pytest.mark.xdist_group("dockerd")
async def test_services_without_their_container_are_removed_after_a_while(docker_place, monkeypatch):
    monkeypatch.setattr(docker_services, "LEFT_BEHIND", 0.5)
    monkeypatch.setattr(docker_watch, "LIST_EVERY", 0.2)
    name = new_name()
    async with docker_place.opened() as runtime:
        await runtime.start(spec(name, "sleep 60", services=(service(docker_place, HELD),)))
        await docker_place.remove_by_hand(name)
        assert len(await docker_place.traces(name)) == 2
        watching = Watcher(runtime)
        await docker_place.until_gone(name)
        await watching.close()


# Kubernetes only


@pytest.mark.servers
@pytest.mark.xdist_group("kubernetes")
async def test_variables_of_services_stand_in_the_secret_only(kubernetes_place):
    place, name, value = kubernetes_place, new_name(), uuid.uuid4().hex
    async with place.opened() as runtime:
        watching = Watcher(runtime)
        await runtime.start(spec(name, "sleep 60", services=(service(place, HELD, env={"PASSWORD": value}),)))
        await watching.until(name, Phase.RUNNING)
        pod = await place.cluster("GET", place.pod_path(name))
        assert value not in json.dumps(pod)
        await watching.close()
        await runtime.remove(name)
