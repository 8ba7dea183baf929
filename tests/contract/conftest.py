"""Fixtures of the runtime contract that more than one file needs."""

from __future__ import annotations

import os
import uuid

import pytest

from tests.contract.runtime_places import Place, Watcher, build_wrapper, clean, clean_kubernetes, load_images
from tests.servers import missing
from tests.servers.kubernetes import missing as missing_kubernetes


@pytest.fixture(scope="session")
def wrapper(tmp_path_factory):
    return build_wrapper(tmp_path_factory.mktemp("wrapper"))


@pytest.fixture(scope="session")
def cluster(request):
    """Asked for by name only here, so that the others need no cluster."""
    if reason := missing_kubernetes():
        pytest.skip(f"kubernetes: {reason}")
    return request.getfixturevalue("kubernetes")


@pytest.fixture(scope="session")
async def kubernetes_place(cluster):
    place = Place("kubernetes", str(cluster.kubeconfig), cluster.images, f"test-{uuid.uuid4().hex[:8]}")
    yield place
    await clean_kubernetes(place)


@pytest.fixture(scope="session")
def docker_host(request):
    """An engine that somebody names, or one of our own; asked for by name only here, so that processes need none."""
    given = os.environ.get("HUBFLOW_TEST_DOCKER_HOST")
    if not given and (reason := missing("dockerd", "containerd", "runc")):
        pytest.skip(f"dockerd: {reason}")
    return given or request.getfixturevalue("dockerd").url


@pytest.fixture(scope="session")
async def docker_place(docker_host, wrapper):
    await load_images(docker_host)
    installation = f"test-{uuid.uuid4().hex[:8]}"
    yield Place("docker", docker_host, str(wrapper), installation)
    await clean(docker_host, installation)


# Of the `place` that each suite has.


@pytest.fixture
async def runtime(place):
    async with place.opened() as opened:
        yield opened


@pytest.fixture
async def watcher(runtime):
    watching = Watcher(runtime)
    yield watching
    await watching.close()
