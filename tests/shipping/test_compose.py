"""docker-compose.yml: the whole system on one engine, as it stands there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.embedded.process import free_ports, holds
from shared.vault import new_key, new_token
from tests.shipping.building import ROOT, Shipped
from tests.shipping.test_demo import WORKFLOW

pytestmark = pytest.mark.servers
SERVICES = ("console", "scheduler", "notifier", "executor", "status_watcher", "log_collector")
"""All but the registry, whose image nobody makes here."""


@pytest.fixture
def environment(shipped: Shipped) -> Iterator[dict[str, str]]:
    """Of a command that speaks with the running system."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("not installed: docker-compose (as root on Debian, `make test` installs it)")
    port, s3 = free_ports(2)
    token = new_token()
    settings = {
        **os.environ, "DOCKER_HOST": shipped.engine.url, "HUBFLOW_DOCKER_SOCKET": str(shipped.engine.socket),
        "HUBFLOW_HOST_ADDRESS": shipped.engine.gateway, "HUBFLOW_PORT": str(port), "HUBFLOW_S3_PORT": str(s3),
        "HUBFLOW_SECRET_KEY": new_key(), "HUBFLOW_CONSOLE_OPERATOR_TOKEN": token,
    }  # fmt: skip
    compose = [program, "--project-name=hubflow-test", "--file", str(ROOT / "docker-compose.yml")]
    try:
        subprocess.run([*compose, "up", "--detach", "--no-build", *SERVICES], env=settings, check=True)
        yield {
            **os.environ,
            "HUBFLOW_URL": f"http://127.0.0.1:{port}",
            "HUBFLOW_TOKEN": token,
            "HUBFLOW_TENANT": "acme",
        }
    finally:
        subprocess.run([*compose, "down", "--volumes"], env=settings, check=True)


async def test_a_workflow_succeeds(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "hello.yaml"
    file.write_text(WORKFLOW)
    command = [sys.executable, "-m", "cli.main"]

    def hubflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    # Its services have started, and may still be looking for their servers.
    assert await holds(lambda: hubflow("tenant", "create", "acme").returncode == 0, 120)
    assert hubflow("workflow", "apply", str(file)).returncode == 0
    run = hubflow("run", "start", "hello", "--wait", "--logs")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "hello world, kept" in run.stdout
