"""Looking closely at what a run has left: its artifact, its events, its times."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli import tree
from cli.api import Api
from cli.demo.checks import Checks
from cli.output import moment


def seconds(start: Any, end: Any) -> float:
    """Between two times of the API; 0 if one is missing."""
    first, last = moment(start), moment(end)
    return (last - first).total_seconds() if first and last else 0.0


async def artifact(api: Api, checks: Checks, run: str, outputs: Mapping[str, str], work: Path) -> None:
    """Fetch the artifact as `hubflow artifact get` does, and compare it with what was to be built from `work`."""
    raise NotImplementedError


def _same_source(program: bytes, work: Path) -> list[str]:
    """Files of the project that are missing in the built program, or different there."""
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        built = {name: archive.read(name) for name in archive.namelist()}
    source = {path.relative_to(work / "src").as_posix(): path.read_bytes() for path in (work / "src").rglob("*.py")}
    return sorted(name for name, content in source.items() if built.get(name) != content)


async def events(api: Api, checks: Checks, runs: Sequence[tree.Run]) -> None:
    """Every run's events: from its creation to its end, without a gap."""
    for run in runs:
        page = await asyncio.to_thread(lambda number=run["number"]: api.get("runs", str(number), "events"))
        found = page["items"]
        gapless = [event["seq"] for event in found] == list(range(1, len(found) + 1))
        ends = [event["type"] for event in (found[0], found[-1])] if found else []
        checks.that(
            f"run {run['number']} has told {len(found)} events without a gap, from its creation to its end",
            gapless and ends == ["run.created", "run.finished"], ends,
        )  # fmt: skip
