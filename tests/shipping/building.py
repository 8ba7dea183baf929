"""The images of the Dockerfile, built from the files that git knows, and those that the demo's manifests name."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.servers import base_images
from tests.servers.dockerd import Dockerd
from tests.servers.images import architecture

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"hubflow:{VERSION}"
WRAPPER_IMAGE = f"hubflow-wrapper:{VERSION}"
_SERVERS = (base_images.POSTGRES, base_images.RABBITMQ, base_images.SEAWEEDFS, base_images.ALPINE)


@dataclass(frozen=True)
class Shipped:
    """What was built, on an engine and as an archive for others."""

    engine: Dockerd
    archive: Path

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Output of the docker command on the engine."""
        return docker(self.engine, *arguments, check=check)


def missing() -> str:
    """Why nothing can be built here ("" if it can)."""
    if shutil.which("docker") is None:
        return "not installed: docker (as root on Debian, `make test` installs it)"
    lacking = sorted({name for base in base_images.all_bases() for name in base_images.missing_for(base)})
    return f"not installed: {', '.join(lacking)} (as root on Debian, `make test` installs them)" if lacking else ""


def shipped(engine: Dockerd, folder: Path) -> Shipped:
    """All images. Workers of one test run build once: the first, while the others wait for its archive."""
    archive = folder / "shipped.tar"
    with (folder / "shipped.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            docker(engine, "load", "--quiet", "--input", str(archive))
        else:
            for base in base_images.all_bases():
                base_images.load(engine.url, base)
            context = _context(folder / "context")
            build(engine, context, IMAGE)
            build(engine, context, WRAPPER_IMAGE, "--target=wrapper")
            fresh = archive.with_suffix(".new")
            docker(engine, "save", "--output", str(fresh), IMAGE, WRAPPER_IMAGE, base_images.PYTHON, *_SERVERS)
            fresh.rename(archive)
    return Shipped(engine, archive)


def build(engine: Dockerd, context: Path, name: str, *options: str) -> None:
    """`docker build` with the builder that every engine has; steps reach the package registries as this machine does."""
    own = [f"--build-arg=PYTHON={base_images.PYTHON}", f"--build-arg=PROCESSORS={architecture()}"]
    docker(engine, "build", "--quiet", "--network=host", *own, *options, "--tag", name, str(context))


def docker(engine: Dockerd, *arguments: str, check: bool = True) -> str:
    """Output of the docker command; an AssertionError with all it said if it fails."""
    done = subprocess.run(
        ["docker", "--host", engine.url, *arguments],
        env={**os.environ, "DOCKER_BUILDKIT": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, (
        f"docker {' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done.stdout + done.stderr


def _context(folder: Path) -> Path:
    """As a clean clone has it: nothing that was built or installed here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():  # removed ones are listed until they are committed
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return folder
