"""How many files services may open, and their jobs."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.executor.handlers import on_job_ready
from services.status_watcher.handlers import tell, watch
from shared import open_files
from shared.embedded import S3Address
from tests.integration.jobs import ROOT, House, opened_house, tasks_of, until
from tests.integration.test_executor import executor_of
from tests.integration.test_status_watcher import watcher_of

FEW = 200


@pytest.fixture
async def house(database: str, s3: S3Address, tmp_path: Path) -> AsyncIterator[House]:
    async with opened_house(database, s3, tmp_path) as opened:
        yield opened


async def test_a_service_may_open_as_many_as_the_system_lets_it(house: House) -> None:
    serve = f"ulimit -Sn {FEW}; exec {sys.executable} -m cli.main serve status_watcher"
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", serve, cwd=ROOT, env=house.environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:

        async def serves() -> bool:
            return bool(await house.database.fetchval("SELECT count(*) FROM watcher_shares WHERE holder <> ''"))

        await until(serves)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    finally:
        process.kill()
        await process.wait()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(soft) == int(hard) > FEW


async def test_a_job_may_open_as_many_as_its_service_was_given(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that uses select() breaks with more than 1024."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(open_files, "_GIVEN", FEW)
    run = await house.run(
        "name: w\nstages: [{name: s, jobs: {j: {script: 'echo \"[JOB_OUT] N = $(ulimit -Sn)\"', outputs: [N]}}}]\n"
    )
    ready = await house.ready(run, "j")
    context = watcher_of(house)
    try:
        open_files.allow_all()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with tasks_of(watch(context), tell(context)):
            await on_job_ready(ready, executor_of(house))
            outcome = await house.finished(ready)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert outcome["outputs"] == {"N": str(FEW)}
