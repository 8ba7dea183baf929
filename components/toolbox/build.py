"""Makes the image `hubflow-demo/toolbox` from what this machine has: a shell, git and Python. Nothing is pulled.

    python3 components/toolbox/build.py --output toolbox.tar && docker load --input toolbox.tar

Copies busybox (or a shell with coreutils), git, the Python that runs this file with its standard library, and the shared
libraries that `ldd` names for them, into one layer of a docker archive. Standard library only; Linux only. Takes a
second or two. `hubflow demo` calls it with `--unless DIGEST`, so that nothing is made when the inputs are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "hubflow-demo/toolbox:latest"
DIGEST_LABEL = "io.hubflow.toolbox.digest"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
SHELLS = ("dash", "bash", "sh")
PROGRAMS = """
    basename cat chmod cp cut date dirname du echo env expr false find grep head hostname id ls mkdir mktemp mv printf
    pwd readlink rm rmdir sed seq sleep sort stat tail tar tee test touch tr true uname uniq wc which xargs
"""
"""What scripts expect beside the shell, where there is no busybox."""

UNWANTED_FOLDERS = frozenset({
    "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils", "pydoc_data",
    "site-packages", "dist-packages",
})  # fmt: skip
UNWANTED_FILES = re.compile(r"(_test|_xxtest|xxlimited|_tkinter|_ctypes_test).*\.so|.*\.(a|o|exe)|turtle\.py")
_PYC = re.compile(rf".*\.{sys.implementation.cache_tag}\.pyc")

COMPONENT = {
    "description": "A shell, git and Python: fetches code and runs a command",
    "input": [
        {"name": "CMD", "desc": "required, the shell command to run"},
        {"name": "GIT_CLONE_URL", "desc": "optional, where the code is; default: the repository of the push"},
        {"name": "GIT_REF", "desc": "optional, branch, tag or commit; default: what was pushed"},
    ],
    "output": [{"name": "GIT_COMMIT", "desc": "the commit that was checked out"}],
}


class UnableError(Exception):
    """The image cannot be made here; the text says why and what helps."""


@dataclass
class Tree:
    """What comes into the image: path inside (without a leading slash) -> file of this machine, or where a link leads."""

    files: dict[str, Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    programs: list[Path] = field(default_factory=list)

    def program(self, path: str | Path, name: str) -> None:
        """Add an executable as usr/bin/`name`."""
        real = Path(path).resolve()
        self.files[f"usr/bin/{name}"] = real
        self.programs.append(real)


def collect() -> Tree:
    """Find everything but shared libraries. Raises UnableError."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        raise UnableError(
            f"the toolbox is made of Linux programs, and this is {platform.system()} on {platform.machine()}"
        )
    tree = Tree()
    # Whatever directories the loader was built to look into, they lead to the same place.
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    tree.links |= {"lib": "usr/lib", "lib64": "usr/lib", "usr/lib64": "lib", f"usr/lib/{triplet}": ".",
                   "bin": "usr/bin", "sbin": "usr/bin", "usr/sbin": "bin"}  # fmt: skip
    _add_python(tree)
    _add_git(tree)
    _add_shell(tree)
    tree.files["usr/local/bin/toolbox"] = HERE / "component.sh"
    return tree


def add_libraries(tree: Tree) -> None:
    """The shared libraries of all that is in the tree. Raises UnableError."""
    modules = [path for name, path in tree.files.items() if name.endswith(".so")]
    for library in {*_libraries(tree.programs, strict=True), *_libraries(modules, strict=False)}:
        tree.files[f"usr/lib/{Path(library).name}"] = Path(library).resolve()


def _add_python(tree: Tree) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    tree.program(getattr(sys, "_base_executable", sys.executable), version)
    tree.links |= {"usr/bin/python3": version, "usr/bin/python": version}
    source = Path(sysconfig.get_path("stdlib"))
    for path in _standard_library(source):
        tree.files[f"usr/lib/{version}/{path.relative_to(source)}"] = path


def _standard_library(source: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(source):
        names[:] = [name for name in names if name not in UNWANTED_FOLDERS and not name.startswith("config-")]
        compiled = Path(folder).name == "__pycache__"
        for name in files:
            path = Path(folder, name)
            if not UNWANTED_FILES.fullmatch(name) and (not compiled or _PYC.fullmatch(name)) and path.is_file():
                yield path


def _add_git(tree: Tree) -> None:
    found = shutil.which("git")
    if found is None:
        raise UnableError("there is no git on the PATH: install it")
    # Cloning over git:// and from folders needs the main program only, under both of its names.
    home = subprocess.run([found, "--exec-path"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    inside = home.lstrip("/").replace("usr/lib64/", "usr/lib/")
    tree.links[f"{inside}/git"] = "/usr/bin/git"
    tree.program(found, "git")


def _add_shell(tree: Tree) -> None:
    busybox = shutil.which("busybox")
    if busybox is not None:
        applets = subprocess.run([busybox, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        for name in applets:
            if f"usr/bin/{name}" not in tree.files and name != "busybox":
                tree.links.setdefault(f"usr/bin/{name}", "busybox")
        tree.program(busybox, "busybox")
        return
    shell = next((path for name in SHELLS if (path := shutil.which(name))), None)
    if shell is None:
        raise UnableError("there is neither busybox nor a shell on the PATH: install busybox-static")
    tree.program(shell, "sh")
    for name in PROGRAMS.split():
        if path := shutil.which(name):
            tree.program(path, name)


def _libraries(paths: Iterable[Path], *, strict: bool) -> set[str]:
    """The shared libraries that the loader would load for these files, the loader among them."""
    listed = subprocess.run(["ldd", *map(str, paths)], capture_output=True, text=True, check=False).stdout
    missing = re.findall(r"^\s*(\S+) => not found", listed, re.MULTILINE)
    if strict and missing:
        raise UnableError(f"these libraries are not found on this machine: {', '.join(sorted(set(missing)))}")
    return set(re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", listed, re.MULTILINE))


def fingerprint(tree: Tree) -> str:
    """Changes when something in the tree does. (Libraries are left out, to be quick: the image has its own copies.)"""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name, path in sorted(tree.files.items()):
        status = path.stat()
        digest.update(f"{name}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    digest.update(json.dumps(sorted(tree.links.items())).encode())
    return digest.hexdigest()


def layer(tree: Tree) -> bytes:
    """The tree as a tar, owned by root, parents before children."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        folders = {parent.as_posix() for name in (*tree.files, *tree.links) for parent in Path(name).parents}
        for name in sorted({*folders, "tmp", "root", "etc", "proc", "sys", "dev", "run"} - {"."}):
            entry = _entry(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755)
            archive.addfile(entry)
        for name, leads_to in sorted(tree.links.items()):
            entry = _entry(name, tarfile.SYMTYPE, 0o777)
            entry.linkname = leads_to
            archive.addfile(entry)
        _add(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n")
        _add(archive, "etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        for name, path in sorted(tree.files.items()):
            status = path.stat()
            mode = 0o755 if status.st_mode & 0o111 else 0o644
            # Python believes its compiled files only if the source has the time that they noted.
            _add(archive, name, path.read_bytes(), mode, int(status.st_mtime))
    return target.getvalue()


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uname, entry.gname = kind, mode, "root", "root"
    return entry


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644, changed: int = 0) -> None:
    entry = _entry(name, tarfile.REGTYPE, mode)
    entry.size, entry.mtime = len(content), changed
    archive.addfile(entry, io.BytesIO(content))


def configuration(digest: str, diff_id: str) -> bytes:
    """The image's configuration: environment, command, and the label by which it is a component."""
    return json.dumps({
        "architecture": ARCHITECTURES[platform.machine()], "os": "linux",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": {
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "LANG=C.UTF-8", "GIT_TEMPLATE_DIR="],
            "Cmd": ["/usr/local/bin/toolbox"], "WorkingDir": "/root",
            "Labels": {"TencentHubComponent": json.dumps(COMPONENT), DIGEST_LABEL: digest},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "components/toolbox/build.py"}],
    }).encode()  # fmt: skip


def write(target: Path, tree: Tree, digest: str) -> None:
    """A docker archive with one image of one layer."""
    content = layer(tree)
    diff_id = hashlib.sha256(content).hexdigest()
    config = configuration(digest, f"sha256:{diff_id}")
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [NAME], "Layers": [f"{diff_id}/layer.tar"]}]
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    with tarfile.open(fresh, "w") as archive:
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        _add(archive, config_name, config)
        _add(archive, f"{diff_id}/layer.tar", content)
    fresh.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make the image hubflow-demo/toolbox from this machine's own programs."
    )
    parser.add_argument("--output", type=Path, required=True, help="docker archive to write")
    parser.add_argument("--unless", default="", metavar="DIGEST", help="write nothing if the inputs have this digest")
    options = parser.parse_args()
    try:
        tree = collect()
        digest = fingerprint(tree)
        made = digest != options.unless
        if made:
            add_libraries(tree)
            write(options.output, tree, digest)
    except (UnableError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the image cannot be made: {error}")
    print(json.dumps({"image": NAME, "digest": digest, "made": made, "files": len(tree.files)}))


if __name__ == "__main__":
    main()
