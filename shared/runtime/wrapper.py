"""Finding the command wrapper's binary for a processor."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigurationError

_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def binary_for(path: Path, machine: str) -> Path:
    """`path` itself, or if it is a folder the file in it for processor `machine` (as `uname -m` or Go name it).

    Raises ConfigurationError if the folder has none.
    """
    if not path.is_dir():
        return path
    binary = path / f"hubflow-wrapper-linux-{_GO_NAMES.get(machine, machine)}"
    if not binary.is_file():
        raise ConfigurationError(f"no command wrapper for processor {machine!r}: {binary} is missing")
    return binary
