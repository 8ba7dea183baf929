"""The wrapper's whole life inside real containers: wrapper/containers_test.go, with the dockerd of these tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.servers.dockerd import Dockerd

ROOT = Path(__file__).parents[2]


async def test_wrapper_in_containers(dockerd: Dockerd) -> None:
    if shutil.which("docker") is None:
        pytest.skip("needs the command docker (Debian: docker.io)")
    go = subprocess.run([ROOT / "scripts/go.sh"], capture_output=True, text=True, check=True).stdout.strip()
    command = [go, "test", "-count=1", "-run", "^TestContainers$", "-v", "."]
    environment = {
        **os.environ,
        "GOTOOLCHAIN": "local",
        "HUBFLOW_TEST_CONTAINERS": "1",
        "DOCKER_HOST": dockerd.url,
        "PATH": f"{Path(go).parent}:{os.environ['PATH']}",
    }
    tests = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT / "wrapper", env=environment, capture_output=True, text=True, check=False
    )
    assert tests.returncode == 0, tests.stdout[-8000:] + tests.stderr[-2000:]
    assert "--- PASS: TestContainers/scratch" in tests.stdout, "the tests were left out:\n" + tests.stdout
