"""Looking closely at what a run has left: its artifact, its events, its times."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import tree
from cli.output import moment

if TYPE_CHECKING:
    from cli.demo.story import Scene

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def seconds(start: Any, end: Any) -> float:
    """Between two times of the API; 0 if one is missing."""
    first, last = moment(start), moment(end)
    return (last - first).total_seconds() if first and last else 0.0


async def artifact(scene: Scene, run: str, outputs: Mapping[str, str]) -> None:
    """Fetch the artifact through the API, and compare it with what was to be built from the developer's clone."""
    checks, work = scene.checks, scene.repository.work
    listed = (await scene.ask("runs", run, "artifacts"))["items"]
    found = next((each for each in listed if (each["job"], each["name"]) == ("package", "dist")), None)
    if not checks.that("the run has kept the artifact `dist`", found is not None, listed):
        return
    content = await _fetch(scene, str((found or {})["url"]))
    digest = hashlib.sha256(content).hexdigest()
    checks.equal("the artifact can be fetched through the API, whole", digest, (found or {})["sha256"])
    files = _unpack(content)
    program = files.get(f"dist/{outputs.get('FILE')}", b"")
    checks.that("the built file is in it, with the digest that the job has told",
                f"sha256:{hashlib.sha256(program).hexdigest()}" == outputs.get("DIGEST"), sorted(files))  # fmt: skip
    differing = _same_source(program, work) if program else ["everything"]
    checks.that("the built file holds the source that was pushed", not differing, differing)


async def _fetch(scene: Scene, path: str) -> bytes:
    """Bytes behind an address of the API, which leads to the object store."""
    headers = {"Authorization": f"Bearer {scene.dev.token}", "Hubflow-Tenant": scene.dev.tenant}
    async with scene.http.get(scene.dev.url + path, headers=headers) as answer:
        return await answer.read()


def _unpack(archive: bytes) -> dict[str, bytes]:
    """Name -> content of the files of an artifact: a tar, packed with zstd or gzip."""
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    packed = archive.startswith(ZSTD_MAGIC)
    opened: Any = zstd.open(io.BytesIO(archive)) if packed else gzip.open(io.BytesIO(archive))
    with opened, tarfile.open(fileobj=opened, mode="r|") as tar:
        return {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry)) is not None}


def _same_source(program: bytes, work: Path) -> list[str]:
    """Files of the project that are missing in the built program, or different there."""
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        built = {name: archive.read(name) for name in archive.namelist()}
    source = {path.relative_to(work / "src").as_posix(): path.read_bytes() for path in (work / "src").rglob("*.py")}
    return sorted(name for name, content in source.items() if built.get(name) != content)


async def events(scene: Scene, runs: Sequence[tree.Run]) -> None:
    """Every run's events: from its creation to its end, without a gap."""
    for run in runs:
        found = (await scene.ask("runs", str(run["number"]), "events"))["items"]
        gapless = [event["seq"] for event in found] == list(range(1, len(found) + 1))
        ends = [event["type"] for event in (found[0], found[-1])] if found else []
        scene.checks.that(
            f"run {run['number']} has told {len(found)} events without a gap, from its creation to its end",
            gapless and ends == ["run.created", "run.finished"], ends,
        )  # fmt: skip
