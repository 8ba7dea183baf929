"""The cluster's programs, built from their Go modules into the user's cache: once for each set of versions.

On two cores: 5 minutes for Kubernetes and 2 each for KWOK and CoreDNS with an empty Go cache, less than one with a full
one. Kubernetes and etcd are one binary under several names (`kubernetes.go`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

KUBERNETES = "1.34.4"
KWOK = "0.8.0"
COREDNS = "1.12.4"
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")
"""What the one binary is called as."""
CONTAINERD = os.environ.get("HUBFLOW_CLUSTER_CONTAINERD", "")
"""Version of containerd, 2.1 or later, for a cluster with image volumes; "": Debian's, which has none."""
_ROOT = Path(__file__).resolve().parents[2]
_SOURCE = Path(__file__).with_name("kubernetes.go")


def folder() -> Path:
    """Where the programs of these versions are, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    source = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:8]
    return cache / "hubflow" / "kubernetes" / f"{KUBERNETES}-kwok-{KWOK}-coredns-{COREDNS}-{source}"


def containerd() -> Path:
    """The container runtime, built or Debian's."""
    return folder() / f"containerd-{CONTAINERD}" / "containerd" if CONTAINERD else Path("/usr/bin/containerd")


def build() -> Path:
    """The folder with all programs; those that are missing are built. Raises subprocess.CalledProcessError."""
    target = folder()
    target.mkdir(parents=True, exist_ok=True)
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, make in {"kubernetes": _kubernetes, "kwok": _kwok, "coredns": _coredns}.items():
            if not (target / name).exists():
                _say(f"building {name} into {target} (minutes)")
                with tempfile.TemporaryDirectory(dir=target) as work:
                    # In one step: who finds a program finds a whole one.
                    make(Path(work)).rename(target / name)
        if not containerd().exists():
            _say(f"building containerd {CONTAINERD} (minutes)")
            with tempfile.TemporaryDirectory(dir=target) as work:
                _containerd(Path(work)).rename(containerd().parent)
        for name in NAMES:
            if not (target / name).exists():
                (target / name).symlink_to("kubernetes")
    return target


def _kubernetes(work: Path) -> Path:
    shutil.copy(_SOURCE, work / "main.go")
    module = json.loads(_go(work, "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}"))["Dir"]
    required = json.loads(_go(work, "mod", "edit", "-json", f"{module}/go.mod"))["Require"]
    # Kubernetes calls its staging modules v0.0.0 and replaces them by folders; each is published as v0.<minor>.<patch>.
    staging = [each["Path"] for each in required if each["Version"] == "v0.0.0"]
    published = KUBERNETES.replace("1.", "v0.", 1)
    lines = ["module cluster", "go 1.24", f"require k8s.io/kubernetes v{KUBERNETES}"]
    lines += [f"replace {path} => {path} {published}" for path in staging]
    (work / "go.mod").write_text("\n".join(lines) + "\n")
    _go(work, "mod", "tidy")
    minor = KUBERNETES.split(".")[1]
    version = {"Version": f"v{KUBERNETES}", "Major": "1", "Minor": minor}.items()
    flags = " ".join(f"-X k8s.io/component-base/version.git{name}={value}" for name, value in version)
    _go(work, "build", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", "kubernetes", ".")
    return work / "kubernetes"


def _kwok(work: Path) -> Path:
    return _install(work, f"sigs.k8s.io/kwok/cmd/kwok@v{KWOK}")


def _coredns(work: Path) -> Path:
    return _install(work, f"github.com/coredns/coredns@v{COREDNS}")


def _containerd(work: Path) -> Path:
    """A folder, as containerd looks for its shim beside itself."""
    module = "github.com/containerd/containerd/v2"
    (work / "go.mod").write_text(f"module node\n\ngo 1.24\n\nrequire {module} v{CONTAINERD}\n")
    commands = [f"{module}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")]
    tools = "".join(f'import _ "{each}"\n' for each in commands)
    (work / "tools.go").write_text(f"//go:build tools\n\npackage node\n\n{tools}")
    _go(work, "mod", "tidy")
    (work / "bin").mkdir()
    _go(
        work,
        "build",
        "-trimpath",
        "-tags",
        "no_btrfs no_devmapper no_zfs",
        "-ldflags",
        "-s -w",
        "-o",
        "bin/",
        *commands,
    )
    return work / "bin"


def _install(work: Path, package: str) -> Path:
    _go(work, "install", "-ldflags", "-s -w", package, more={"GOBIN": str(work)})
    return next(path for path in work.iterdir() if path.is_file())


def _go(work: Path, *arguments: str, more: Mapping[str, str] | None = None) -> str:
    go = subprocess.run([_ROOT / "scripts/go.sh"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", **(more or {})}
    with (work / "log").open("w+") as log:
        try:
            done = subprocess.run(
                [go, *arguments], cwd=work, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=True
            )
        except subprocess.CalledProcessError:
            log.seek(0)
            _say(log.read()[-3000:])
            raise
    (work / "log").unlink()
    return done.stdout


def _say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)
