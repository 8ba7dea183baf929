"""Fixtures of the runtime contract that more than one file needs."""

from __future__ import annotations

import uuid

import pytest

from tests.contract.runtime_places import Place, build_wrapper, clean_kubernetes
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
