"""A rolling upgrade: replicas of the version before and of this one beside each other, and runs that go on (T95).

The version before is an earlier commit of this repository, unpacked beside it. Where there is no history (an export), there is
nothing to upgrade from, and the test says so.
"""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
from collections import Counter
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest

from shared.embedded import S3Address
from tests.e2e.system import FRONT, SERVICES, System, open_system
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.servers
REPOSITORY = Path(__file__).parents[2]
STEPS_BACK = 10
"""How many commits (of the main line of merges) lie between the two versions."""
PROCESSES = ("front", *(name for name in SERVICES if name not in FRONT))
WORKFLOW = """
name: upgraded
env: {WITNESS: %s}
stages:
- name: make
  jobs:
  - name: make
    script: |
      echo "$HUBFLOW_RUN make $HUBFLOW_ATTEMPT" >> "$WITNESS"
      sleep 2
      echo "[JOB_OUT] COUNT = 42"
    outputs: [COUNT]
  - name: keep
    script: mkdir -p dist && echo kept > dist/x.txt
    artifacts: [dist]
- name: ask
  type: pause
- name: take
  jobs:
  - name: take
    inputs: {COUNT: "${{ jobs.make.outputs.COUNT }}"}
    fetch: [dist]
    script: |
      echo "$HUBFLOW_RUN take $HUBFLOW_ATTEMPT" >> "$WITNESS"
      echo "count is $COUNT, $(cat dist/x.txt)"
"""


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"!!! NOT TESTED: no version to upgrade from: {done.stderr.decode().strip()}")
    return done.stdout


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of an earlier commit."""
    commits = git("rev-list", "--first-parent", f"--max-count={STEPS_BACK + 1}", "HEAD").decode().split()
    if len(commits) < 2:
        pytest.skip("!!! NOT TESTED: no version to upgrade from: this is the first commit")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=BytesIO(git("archive", commits[-1]))) as tar:
        # Python has filters since 3.11.4; what git itself has packed here needs none.
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


@pytest.fixture
async def system(tmp_path: Path, database: str, s3: S3Address, rabbitmq: RabbitMQ) -> AsyncIterator[System]:
    wrapper = str(REPOSITORY / "wrapper" / "bin")
    async with open_system(
        tmp_path, database, s3, await rabbitmq.new_vhost(), start=False, runtime_wrapper=wrapper
    ) as opened:
        yield opened


async def test_t95_runs_go_on_while_one_version_takes_the_place_of_the_other(system: System, before: Path) -> None:
    for name in PROCESSES:
        system.start(name, tree=before)
    await system.ready()
    workflow = await system.apply(WORKFLOW % (system.folder / "witness"))
    runs = [await system.start_run(workflow) for _ in range(3)]
    await system.wait(runs[0], until="paused")  # begun and paused by the version before
    for name in PROCESSES:
        if name == "front":  # one address, as behind one ingress: it is replaced; the others overlap
            system.stop(name)
            system.start(name)
            await system.ready()
            continue
        old = system.processes(name)
        system.start(name)
        await system.ready()
        runs.append(await system.start_run(workflow))  # handled by both versions
        await system.end(name, old)
    runs += [await system.start_run(workflow) for _ in range(2)]
    for run in runs:
        await system.wait(run, until="paused")
        await system.api("POST", f"/api/v1/runs/{run}/stages/ask/decision", {"action": "approve"})
    for run in runs:
        view = await system.wait(run)
        assert view["state"] == "succeeded", view
        assert await system.log_of(run, "take") == "count is 42, kept\n"
    counts = Counter((system.folder / "witness").read_text().splitlines())
    assert counts == Counter(f"{run} {job} 1" for run in runs for job in ("make", "take"))


async def test_t95_back_again_the_version_before_works_on_what_this_one_has_left(system: System, before: Path) -> None:
    """A roll-back: what the new version has written, the old one reads."""
    for name in PROCESSES:
        system.start(name)
    await system.ready()
    workflow = await system.apply(WORKFLOW % (system.folder / "witness"))
    runs = [await system.start_run(workflow) for _ in range(3)]
    await system.wait(runs[0], until="paused")
    await asyncio.gather(*(asyncio.to_thread(system.stop, name) for name in PROCESSES))
    for name in PROCESSES:
        system.start(name, tree=before)
    await system.ready()
    for run in runs:
        await system.wait(run, until="paused")
        await system.api("POST", f"/api/v1/runs/{run}/stages/ask/decision", {"action": "approve"})
        assert (await system.wait(run))["state"] == "succeeded"
