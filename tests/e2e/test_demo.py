"""`hubflow demo` from its start to its end, as people and CI run it: on plain processes, and on a real dockerd."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.servers.dockerd import Dockerd

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0
"""What the first time may take on a fresh machine."""


async def start(state: Path, *options: str, environment: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HUBFLOW_", "DOCKER_"))}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "demo", f"--state={state}", *options, cwd=ROOT,
        env={**kept, "PYTHONUNBUFFERED": "1", **(environment or {})}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True, limit=1 << 20,
    )  # fmt: skip


async def finish(process: asyncio.subprocess.Process) -> str:
    """Everything it prints. Ended if it takes too long."""
    try:
        async with asyncio.timeout(LIMIT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode()


def left_running(state: Path) -> list[str]:
    """Command lines of processes that have the state folder in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(state) in words:
            found.append(words)
    return found


async def test_on_processes_twice(tmp_path: Path) -> None:
    state = tmp_path / "demo"
    for time_around in (1, 2):
        began = time.monotonic()
        process = await start(state, "--runtime=process")
        said = await finish(process)
        assert process.returncode == 0, said
        assert "✖" not in said
        assert "NO CONTAINERS" in said
        assert "all checks held" in said
        if time_around == 2:
            assert time.monotonic() - began < 60, said
    assert left_running(state) == []


async def test_on_docker_with_an_image_of_its_own(tmp_path: Path, dockerd: Dockerd) -> None:
    environment = {"DOCKER_HOST": dockerd.url}
    process = await start(tmp_path / "demo", environment=environment)
    said = await finish(process)
    assert process.returncode == 0, said
    assert "✖" not in said
    assert "NO CONTAINERS" not in said
    assert "jobs are containers of hubflow-demo/toolbox" in said
    assert left_running(tmp_path / "demo") == []


async def test_interrupted_it_leaves_nothing_behind(tmp_path: Path) -> None:
    state = tmp_path / "demo"
    process = await start(state, "--runtime=process")
    assert process.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not re.search(r"^\S* *lint", said, re.MULTILINE):
                line = await process.stdout.readline()
                assert line, said
                said += line.decode()
        process.send_signal(signal.SIGINT)
    finally:
        said += await finish(process)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert left_running(state) == []


async def test_an_image_that_is_not_there_is_told_clearly(tmp_path: Path, dockerd: Dockerd) -> None:
    process = await start(tmp_path / "demo", "--image=no/such:image", environment={"DOCKER_HOST": dockerd.url})
    said = await finish(process)
    assert process.returncode == 1
    assert "the engine has no image 'no/such:image'" in said
    assert "Traceback" not in said
