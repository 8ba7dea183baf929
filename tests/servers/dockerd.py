"""A real dockerd of its own: data, socket, containerd and bridge; it leaves the machine's firewall alone.

Containers reach this machine (an S3, a registry) at `Dockerd.gateway`, and nothing beyond: no address translation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import IO, Any

import aiohttp

from shared.embedded.process import holds, tail

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class Dockerd:
    """One engine. `url` is what DOCKER_HOST and aiodocker take."""

    def __init__(self, folder: Path, run: Path, bridge: str, gateway: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.gateway = gateway
        self.socket = run / "docker.sock"
        self.url = f"unix://{self.socket}"
        self._pid_file = run / "docker.pid"
        self._bridge = bridge
        self._run = run
        self._supervisor: subprocess.Popen[bytes] | None = None

    def pid(self) -> int:
        return int(self._pid_file.read_text())

    async def start(self, insecure_registries: Iterable[str] = ()) -> None:
        if self._supervisor is None:
            self._supervisor = self._supervise(insecure_registries)
        else:
            self._pid_file.unlink(missing_ok=True)  # of the one that was killed; dockerd trusts it too much
            pipe = _stdin(self._supervisor)
            pipe.write(b"start\n")
            pipe.flush()
        for _ in range(2000):
            if await self.ping():
                return
            await asyncio.sleep(0.02)
        raise RuntimeError(f"dockerd did not start:\n{tail(self.folder / 'dockerd.log', 40)}")

    async def kill(self) -> None:
        """kill -9 of dockerd (not of its containers); returns once it is gone."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        await holds(lambda: not Path(f"/proc/{pid}").exists(), 10)

    async def restart(self) -> None:
        """kill -9, and start again on the same data."""
        await self.kill()
        await self.start()

    async def ping(self) -> bool:
        try:
            return await self.api("GET", "/_ping") == "OK"
        except (aiohttp.ClientError, OSError):
            return False

    async def api(self, method: str, path: str, body: Any = None) -> Any:
        """Call the engine's API with a JSON body; returns JSON, or text where it is not. Raises aiohttp.ClientResponseError."""
        text = await self._call(method, path, None if body is None else json.dumps(body).encode())
        return json.loads(text) if text.startswith(("{", "[")) else text

    async def _call(self, method: str, path: str, data: bytes | IO[bytes] | None) -> str:
        kind = "application/json" if isinstance(data, bytes) else "application/x-tar"
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session,
            session.request(
                method, f"http://docker{path}", data=data, headers={"Content-Type": kind} if data else None
            ) as response,
        ):
            response.raise_for_status()
            return await response.text(errors="replace")

    async def load(self, archive: Path) -> None:
        """Load a docker-archive tar (see images.py)."""
        with archive.open("rb") as file:
            answer = await self._call("POST", "/images/load?quiet=1", file)
        if "errorDetail" in answer:
            raise RuntimeError(answer)

    async def close(self) -> None:
        """End the engine and every container, and remove the bridge and the data."""
        if self._supervisor is not None:
            _stdin(self._supervisor).close()
            await asyncio.to_thread(self._supervisor.wait, 60)
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _supervise(self, insecure_registries: Iterable[str]) -> subprocess.Popen[bytes]:
        subnet = self.gateway + "/24"
        # With an address of its own: a bridge without one takes that of a port, changes it as containers come and go, and
        # those that have resolved the old one lose their packets to this machine for minutes.
        address = ":".join(["02", *(f"{byte:02x}" for byte in secrets.token_bytes(5))])
        _ip("link", "add", self._bridge, "address", address, "type", "bridge")
        _ip("address", "add", subnet, "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        command = [
            shutil.which("dockerd") or "dockerd",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent=/{self._bridge}",
            f"--data-root={self.folder / 'data'}",
            f"--exec-root={self._run / 'exec'}",
            f"--host={self.url}",
            f"--pidfile={self._pid_file}",
            f"--bridge={self._bridge}",
            "--iptables=false",
            "--ip-masq=false",
            "--ip-forward=false",
            "--log-level=warn",
            "--shutdown-timeout=2",
            *(f"--insecure-registry={host}" for host in insecure_registries),
        ]
        arguments = [
            sys.executable,
            "-I",
            "-S",
            str(_SUPERVISOR),
            f"{self.folder}:{self._run}",
            self._bridge,
            "--",
            *command,
        ]
        with (self.folder / "dockerd.log").open("ab") as log:
            return subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd="/", start_new_session=True
            )


@contextlib.asynccontextmanager
async def started_dockerd(folder: Path, *, insecure_registries: Iterable[str] = ()) -> AsyncIterator[Dockerd]:
    """An engine with its data in `folder` (made); takes a second. 127.0.0.0/8 is always an allowed plain registry."""
    # Sockets have short names (108 bytes), and the folders of tests are deep.
    run = Path(tempfile.mkdtemp(prefix="hfd-"))
    bridge = f"hft{secrets.token_hex(4)}"
    engine = Dockerd(folder, run, bridge, _free_gateway())
    try:
        await engine.start(insecure_registries)
        yield engine
    finally:
        await asyncio.shield(engine.close())


def _free_gateway() -> str:
    """Gateway of a /24 that no route of this machine uses. Tests in parallel take different ones, by chance."""
    routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=True).stdout
    while True:
        prefix = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(255)}"
        if f"{prefix}." not in routes:
            return f"{prefix}.1"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
