"""The cluster itself: its programs started and ended in order, one by one where a test wants that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from shared.embedded.process import Launch, Server, tail
from tests.cluster import NODE, NODE_ADDRESS, certificates, programs, settings
from tests.cluster.machine import RECORD, BusyError, folder_of_running
from tests.servers.images import BUSYBOX, File, Image, write_archive

NODE_BRIDGE = "hubnode0"
PAUSE = Image(
    settings.PAUSE_IMAGE,
    [[("sleep", File(BUSYBOX.read_bytes() if BUSYBOX.exists() else b""))]],
    entrypoint=["/sleep", "2147483647"],
)
"""What keeps a pod's network open; any program that does nothing will do, and none can be pulled."""
READY = "ready"
"""A file that is there once all of the cluster is."""
_CGROUPS = Path("/sys/fs/cgroup")
_START = 180.0


class Cluster:
    """The cluster in `folder`, running or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        self.socket = folder / "containerd.sock"
        self._commands = settings.commands(folder, programs.folder())

    async def up(self) -> None:
        """Start all of it, in 3 to 8 s; nothing happens if it is up. Raises BusyError, RuntimeError."""
        other = folder_of_running()
        if other is not None and Cluster(other).is_up():
            if other == self.folder:
                return
            raise BusyError(
                f"the cluster in {other} is up on this machine, which has room for one: "
                f"use it (HUBFLOW_TEST_KUBECONFIG={other}/admin.kubeconfig), or end it (`make cluster-down` there)"
            )
        await self.down()
        self.folder.mkdir(parents=True, exist_ok=True)
        certificates.issue(self.folder)
        settings.write(self.folder)
        _make_bridge()
        RECORD.write_text(str(self.folder))
        for name in ("etcd", "kube-apiserver"):
            await self.start(name)
        for name in ("kube-controller-manager", "kube-scheduler", "containerd"):
            await self.start(name)
        await self.load(write_archive(self.folder / "pause.tar", [PAUSE]))
        for name in ("kubelet", "kube-proxy", "coredns", "kwok"):
            await self.start(name)
        await self._await("the node", lambda: '"True"' in self._node_ready())
        (self.folder / READY).touch()

    def is_up(self) -> bool:
        """Do all of its programs run?"""
        return all(self._find(name) is not None for name in self._commands)

    async def down(self) -> None:
        """End all of it and forget its state, but for the logs."""
        for name in reversed(self._commands):
            # containerd last: it is asked to end the containers.
            if name not in {"containerd", "etcd", "kube-apiserver"}:
                await self.end(name)
        await asyncio.to_thread(self._end_containers)
        for name in ("kube-apiserver", "etcd", "containerd"):
            await self.end(name)
        await asyncio.to_thread(self._clean_up)

    async def start(self, name: str) -> None:
        """Start one program and wait until it answers, where it does."""
        log = self.folder / "logs" / f"{name}.log"
        server = Server.start(Launch(self._commands[name], log, directory=self.folder))
        (self.folder / "pids").mkdir(exist_ok=True)
        server.write(self._record(name))
        ready: dict[str, Callable[[], bool]] = {
            "kube-apiserver": lambda: self.get("/readyz") == "ok",
            "containerd": lambda: self._ctr("version").returncode == 0,
            "kubelet": lambda: _answers("http://127.0.0.1:10248/healthz"),
        }
        if name in ready:
            await self._await(name, ready[name])

    async def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """End one program by a signal, SIGKILL if it takes too long."""
        if (server := self._find(name)) is not None:
            await server.end(number, patience=10)
        self._record(name).unlink(missing_ok=True)

    async def restart(self, name: str) -> None:
        """kill -9, and start again on the same data."""
        await self.end(name, signal.SIGKILL)
        await self.start(name)

    async def load(self, archive: Path) -> None:
        """Put the images of a docker-archive on the node."""
        done = await asyncio.to_thread(self._ctr, "images", "import", "--local", str(archive))
        if done.returncode != 0:
            done = await asyncio.to_thread(self._ctr, "images", "import", str(archive))
        if done.returncode != 0:
            raise RuntimeError(f"images cannot be imported: {done.stderr}")

    def get(self, path: str) -> str:
        """GET from the API server as its administrator; "" if that fails."""
        pki = self.folder / "pki"
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        try:
            with urllib.request.urlopen(f"https://{NODE_ADDRESS}:6443{path}", context=context, timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    def _node_ready(self) -> str:
        # Only the part that tells of readiness.
        return self.get(f"/api/v1/nodes/{NODE}").rpartition('"type":"Ready"')[2][:200]

    def _find(self, name: str) -> Server | None:
        return Server.find(self._record(name), Path(self._commands[name][0]).name)

    def _record(self, name: str) -> Path:
        return self.folder / "pids" / name

    async def _await(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + _START
        while not await asyncio.to_thread(ready):
            if asyncio.get_running_loop().time() > deadline:
                logs = self.folder / "logs"
                raise RuntimeError(f"{what} is not ready after {_START:g} s; see {logs}\n{tail(logs / f'{what}.log')}")
            await asyncio.sleep(0.1)

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(programs.containerd().with_name("ctr")), "-a", str(self.socket), "-n", "k8s.io", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _end_containers(self) -> None:
        """Containers outlive containerd, so they go first."""
        if self._find("containerd") is None:
            return
        for container in self._ctr("task", "ls", "-q").stdout.split():
            self._ctr("task", "rm", "-f", container)

    def _clean_up(self) -> None:
        subprocess.run([self._commands["kube-proxy"][0], "--cleanup"], capture_output=True, check=False)
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((each for each in mounted if each.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
        for bridge in (settings.POD_BRIDGE, NODE_BRIDGE):
            subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False)
        # Not `glob`: it fails where others (jobs) remove their control groups meanwhile.
        for folder in [Path(path) for path, _, _ in os.walk(_CGROUPS) if path.endswith("/kubepods")]:
            _remove_cgroups(folder)
        if self.folder.exists():
            for entry in self.folder.iterdir():
                if entry.name != "logs":
                    shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        if folder_of_running() in {None, self.folder}:
            RECORD.unlink(missing_ok=True)


def unavailable() -> str:
    """Why no cluster can be started here ("" if one can): for the reason of a skip."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    wanted = ("containerd", "ctr", "runc", "ip", "iptables", "conntrack", "/usr/lib/cni/bridge", str(BUSYBOX))
    absent = [each for each in wanted if shutil.which(each) is None and not Path(each).exists()]
    if absent:
        return f"not installed: {', '.join(absent)} (as root on Debian, `make test` installs them)"
    return ""


def not_built() -> str:
    """Why there are no programs ("" if there are): for the reason of a skip."""
    wanted = [*(programs.folder() / name for name in ("kubernetes", "kwok", "coredns")), programs.containerd()]
    if all(each.exists() for each in wanted):
        return ""
    return "not built yet: `make cluster` does it from Go modules, in 10 minutes"


def _make_bridge() -> None:
    run = ["ip", "link", "add", NODE_BRIDGE, "type", "bridge"]
    subprocess.run(run, check=True, capture_output=True)
    subprocess.run(["ip", "address", "add", f"{NODE_ADDRESS}/32", "dev", NODE_BRIDGE], check=True)
    subprocess.run(["ip", "link", "set", NODE_BRIDGE, "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _remove_cgroups(folder: Path) -> None:
    """Those that nobody is in any more."""
    for each in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            each.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
