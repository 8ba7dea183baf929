"""An environment of its own for each peer, below build/peers: what is pinned in requirements/peers, installed with hashes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PINNED = Path("requirements/peers")
BUILD = Path("build/peers")
_PATIENCE_SECONDS = 900


class NotInstallableError(Exception):
    """The message says why, in one line."""


def installed(name: str) -> Path:
    """The peer's environment, made now if it is not there or older than what is pinned."""
    folder = (BUILD / name).absolute()
    pins = [PINNED / f"{name}.txt", *(PINNED / f"{name}-server").glob("*.json")]
    stamp = folder / "installed"
    if stamp.exists() and all(pin.stat().st_mtime <= stamp.stat().st_mtime for pin in pins):
        return folder
    print(f"installing {name} into {folder.relative_to(Path.cwd())}", file=sys.stderr)
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _call([*pip, "--require-hashes", "-r", str(pins[0])])
    if pins[1:]:
        _npm(pins[1:], folder / "server")
    stamp.touch()
    return folder


def program(folder: Path, pattern: str) -> Path:
    """The one program of a peer that the pattern finds."""
    for found in folder.glob(pattern):
        return found
    raise NotInstallableError(f"the packages have no {pattern} for this machine")


def _npm(pins: Sequence[Path], folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstallableError("its server is an npm package, and npm is not installed here")
    folder.mkdir()
    for pin in pins:
        shutil.copy(pin, folder)
    # The scripts of its packages only report the installation to their makers.
    _call([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder)])


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstallableError(f"`{command[0]}` took more than {_PATIENCE_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotInstallableError(said[-1] if said else f"`{command[0]}` ended with {done.returncode}")
