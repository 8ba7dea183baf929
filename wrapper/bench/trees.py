"""The two trees that bench.py sends around: a gigabyte of what builds make, and the many small files of a package cache."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MIB = 1 << 20


def make_artifact(where: Path, size: int) -> None:
    """Files such as builds make: programs and libraries of this machine, cut into a few large ones."""
    where.mkdir()
    sources = sorted(p for p in Path("/usr/lib").rglob("*.so*") if p.is_file() and not p.is_symlink())
    sources += sorted(p for p in Path("/usr/bin").iterdir() if p.is_file() and not p.is_symlink())
    written, number = 0, 0
    while written < size:
        with (where / f"part-{number:03}").open("wb") as out:
            while out.tell() < 64 * MIB and written + out.tell() < size:
                source = sources[(number * 7919 + out.tell()) % len(sources)].read_bytes()
                out.write(source[: size - written - out.tell()])
            written += out.tell()
        number += 1


def make_cache(where: Path, files: int) -> None:
    """Small files in many directories, such as package managers leave: texts of Python's library, cut and varied."""
    where.mkdir()
    sources = [p.read_bytes() for p in sorted(Path(os.__file__).parent.rglob("*.py"))[:800]]
    for number in range(files):
        directory = where / f"pkg-{number // 200:04}/lib/v{number // 20 % 10}"
        directory.mkdir(parents=True, exist_ok=True)
        source = sources[number % len(sources)]
        at = number * 131 % max(1, len(source) - 4000)
        (directory / f"file{number}.py").write_bytes(source[at : at + 1000 + number * 37 % 7000])


def digest(where: Path) -> str:
    """One checksum of all names and contents."""
    script = "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    return subprocess.run(script, cwd=where, shell=True, check=True, capture_output=True, text=True).stdout
