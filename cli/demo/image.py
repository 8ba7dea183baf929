"""The image that the demo's jobs run in: made from this machine's own files, or one that the user names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.failure import Failure
from shared.errors import HubflowError
from shared.runtime.engine import Engine, EngineError, json_lines

TOOLBOX = "hubflow-demo/toolbox:latest"
DIGEST_LABEL = "io.hubflow.toolbox.digest"
LOAD_TIMEOUT = 120.0
_HINT = "name an image with a shell, git and Python: `hubflow demo --image IMAGE`, or use `--runtime process`"


@dataclass(frozen=True, slots=True)
class Image:
    """`how` tells people where it came from."""

    name: str
    how: str


async def prepare_image(docker_host: str, builder: Path, folder: Path, wanted: str) -> Image:
    """The image for the jobs. `wanted`: the user's own, or "" for the toolbox, made if its inputs have changed.

    `builder`: components/toolbox/build.py. Raises Failure when it cannot be made or loaded.
    """
    async with _engine(docker_host) as engine:
        if wanted:
            await _inspect(engine, wanted)
            return Image(wanted, "yours")
        there = await _inspect(engine, TOOLBOX, required=False)
        labels = (there.get("Config") or {}).get("Labels") or {}
        archive = folder / "toolbox.tar"
        try:
            made = await _build(builder, archive, str(labels.get(DIGEST_LABEL, "")))
            if not made["made"]:
                return Image(TOOLBOX, "as last time")
            await _load(engine, archive)
            await _forget(engine, str(there.get("Id", "")))
        finally:
            archive.unlink(missing_ok=True)
    return Image(TOOLBOX, f"made from {made['files']} files of this machine")


@contextlib.asynccontextmanager
async def _engine(docker_host: str) -> AsyncIterator[Engine]:
    engine = Engine(docker_host)
    try:
        yield engine
    except (EngineError, HubflowError) as error:
        raise Failure(f"the container engine does not take the image: {error}", hint=_HINT) from None
    finally:
        await engine.close()


async def _inspect(engine: Engine, name: str, *, required: bool = True) -> dict[str, Any]:
    try:
        found: dict[str, Any] = await engine.call("GET", f"/images/{name}/json")
    except EngineError as error:
        if error.status != 404:
            raise
        if required:
            raise Failure(f"the engine has no image {name!r}", hint=f"`docker pull {name}`, then again") from None
        return {}
    return found


async def _build(builder: Path, archive: Path, digest: str) -> dict[str, Any]:
    """What build.py says: {"digest", "made", "files"}."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(builder), f"--output={archive}", f"--unless={digest}", stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    if process.returncode:
        raise Failure(error.decode("utf-8", "replace").strip(), hint=_HINT)
    told: dict[str, Any] = json.loads(out)
    return told


async def _load(engine: Engine, archive: Path) -> None:
    content = await asyncio.to_thread(archive.read_bytes)
    headers = {"Content-Type": "application/x-tar"}
    async with engine.request(
        "POST", "/images/load", query={"quiet": "1"}, data=content, headers=headers, timeout=LOAD_TIMEOUT
    ) as response:
        async for told in json_lines(response):
            if "error" in told:
                raise Failure(f"the container engine refused the image: {told['error']}", hint=_HINT)


async def _forget(engine: Engine, identity: str) -> None:
    """Remove the toolbox of last time, which has lost its name to the new one, unless a container still needs it."""
    if identity:
        with contextlib.suppress(EngineError):
            await engine.call("DELETE", f"/images/{identity}")
