"""Looking closely at what a run has left: its artifact, its events, its times."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import tree
from cli.output import moment

if TYPE_CHECKING:
    from cli.demo.story import Scene


def seconds(start: Any, end: Any) -> float:
    """Between two times of the API; 0 if one is missing."""
    first, last = moment(start), moment(end)
    return (last - first).total_seconds() if first and last else 0.0


async def artifact(scene: Scene, run: str, outputs: Mapping[str, str]) -> None:
    """Fetch the artifact as users do, and compare it with what was to be built from the developer's clone."""
    with tempfile.TemporaryDirectory() as folder:
        told = await _hubflow(scene, "artifact", "get", run, "dist", "--unpack", f"--output={folder}")
        _compare(scene, Path(folder, "dist", outputs.get("FILE", "none")), outputs, told)


def _compare(scene: Scene, program: Path, outputs: Mapping[str, str], told: str) -> None:
    checks = scene.checks
    what = "`hubflow artifact get` fetches the artifact, with the built file in it"
    if not checks.that(what, program.is_file(), told):
        return
    digest = f"sha256:{hashlib.sha256(program.read_bytes()).hexdigest()}"
    checks.equal("it is what the job has built, by the digest in its output", digest, outputs.get("DIGEST"))
    differing = _same_source(program, scene.repository.work)
    checks.that("it holds the source that was pushed", not differing, differing)


async def _hubflow(scene: Scene, *words: str) -> str:
    """What a command of ours says to a user of this Hubflow."""
    environment = os.environ | {
        "HUBFLOW_URL": scene.dev.url, "HUBFLOW_TOKEN": scene.dev.token, "HUBFLOW_TENANT": scene.dev.tenant,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", *words, env=environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out.decode("utf-8", "replace").strip()


def _same_source(program: Path, work: Path) -> list[str]:
    """Files of the project that are missing in the built program, or different there."""
    with zipfile.ZipFile(program) as archive:
        built = {name: archive.read(name) for name in archive.namelist()}
    source = {path.relative_to(work / "src").as_posix(): path.read_bytes() for path in (work / "src").rglob("*.py")}
    return sorted(name for name, content in source.items() if built.get(name) != content)


async def events(scene: Scene, runs: Sequence[tree.Run]) -> None:
    """Every run's events: from its creation to its end, without a gap."""
    for run in runs:
        found = (await scene.ask("runs", str(run["number"]), "events"))["items"]
        gapless = [event["seq"] for event in found] == list(range(1, len(found) + 1))
        types = [event["type"] for event in found]
        # The log of the last job may be stored after the run's end.
        whole = types[:1] == ["run.created"] and types.count("run.finished") == 1
        whole = whole and all(kind == "job.log.stored" for kind in types[types.index("run.finished") + 1 :])
        scene.checks.that(
            f"run {run['number']} has told {len(found)} events without a gap, from its creation to its end",
            gapless and whole, types[-3:],
        )  # fmt: skip
