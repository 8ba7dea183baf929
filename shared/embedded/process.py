"""One server program of ours: started, found again after a crash of ours, and ended. Linux only (reads /proc).

What is running is noted in a small JSON file in the state folder. A process found by that note is ours only if its start
time, and a word of its command line, are the ones noted: a pid may belong to somebody else by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import PermanentError, TemporaryError

LAUNCHER = Path(__file__).with_name("launcher.py")
_PORTS = range(18_000, 32_000)
_LOG_LIMIT_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server: absolute program, arguments, and what the launcher prepares (see launcher.py)."""

    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    die_with_parent: int = 0
    """Signal that it gets when this process is gone, 0: it lives on and is found again."""
    not_root: bool = False
    own: Sequence[Path] = ()

    def arguments(self) -> list[str]:
        options = ["--oom-first"]
        if self.die_with_parent:
            options += ["--die-with-parent", str(self.die_with_parent), "--parent", str(os.getpid())]
        if self.not_root:
            options.append("--not-root")
        for folder in self.own:
            options += ["--own", str(folder)]
        return [sys.executable, "-I", "-S", str(LAUNCHER), *options, "--", *self.command]


@dataclass(slots=True)
class Server:
    """A running server. `note` (JSON-able) is kept beside the pid and handed back by `find`."""

    pid: int
    started: int
    note: dict[str, Any] = field(default_factory=dict)
    child: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, launch: Launch, note: dict[str, Any] | None = None) -> Server:
        """Raises PermanentError (reason NotExecutable) if the program is not there or cannot run."""
        program = Path(launch.command[0])
        if not os.access(program, os.X_OK):
            raise PermanentError(
                f"{program} is not there or not executable: install the wheels of requirements/runtime.txt again, "
                "and keep the virtual environment off file systems mounted with noexec",
                reason="NotExecutable",
            )
        with _open_log(launch.log) as log:
            child = subprocess.Popen(
                launch.arguments(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=launch.directory,
                env=dict(launch.environment) if launch.environment is not None else None,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end them in order
            )
        return cls(child.pid, _start_ticks(child.pid) or 0, note or {}, child)

    @classmethod
    def of(cls, pid: int) -> Server | None:
        """The process that has this pid now; None if there is none, or only a zombie."""
        started = _start_ticks(pid)
        return None if started is None else cls(pid, started)

    @classmethod
    def find(cls, record: Path, word: str) -> Server | None:
        """The server noted in `record`, if it still runs and its command line holds `word`; else None."""
        try:
            noted = json.loads(record.read_text())
            server = cls(int(noted["pid"]), int(noted["started"]), dict(noted["note"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return server if server.alive() and word in _command_line(server.pid) else None

    def write(self, record: Path) -> None:
        """Note it, atomically, so that a later process can find it."""
        temporary = record.with_suffix(".new")
        temporary.write_text(json.dumps({"pid": self.pid, "started": self.started, "note": self.note}))
        temporary.replace(record)

    def alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return self.started != 0 and _start_ticks(self.pid) == self.started

    def signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it is gone."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def ended(self, timeout: float) -> bool:
        """Wait until it has ended, at most `timeout` seconds."""
        return await holds(lambda: not self.alive(), timeout)

    async def end(self, number: int, *, patience: float) -> None:
        """Ask with signal `number`; after `patience` seconds KILL its whole session."""
        self.signal(number)
        if await self.ended(patience):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.ended(10)


async def holds(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until `condition` is true, looking every few milliseconds (growing); False after `timeout` seconds."""
    pause = 0.002
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.05)
    return True


async def becomes_ready(server: Server, ready: Callable[[], Awaitable[bool]], *, timeout: float) -> bool:
    """Wait until `ready()`; False if the server ended or `timeout` seconds went by before."""
    deadline = asyncio.get_running_loop().time() + timeout
    pause = 0.005
    while not await ready():
        if not server.alive() or asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(pause * 1.2, 0.05)
    return True


@contextlib.contextmanager
def sole_owner(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` for this process. Raises TemporaryError while another process that lives holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise TemporaryError(
                f"The {what} in {folder} is in use by the Hubflow process {owner}: stop that one first "
                "(`hubflow dev --stop`), or choose another state folder"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def free_ports(number: int, wanted: Sequence[int] = (), host: str = "127.0.0.1") -> list[int]:
    """`number` free TCP ports; each of `wanted` is kept in its place if it is still free, so that addresses stay the same.

    They lie below the range from which the kernel takes ports for outgoing connections: nobody gets one by accident
    between our look and the server's start, or while the server is down.
    """
    ports: list[int] = []
    for place in range(number):
        port = wanted[place] if place < len(wanted) else 0
        while not port or port in ports or not port_is_free(port, host):
            port = secrets.choice(_PORTS)
        ports.append(port)
    return ports


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Could a server listen there now?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def check_disk(folder: Path, need_bytes: int) -> None:
    """Raise TemporaryError where less than `need_bytes` are free: servers fail in obscure ways on a full disk."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise TemporaryError(
            f"Only {free // 2**20} MiB are free where {folder} is, {need_bytes // 2**20} MiB are needed: "
            "make room, or choose another state folder"
        )


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _open_log(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path.open("ab")


def _start_ticks(pid: int) -> int | None:
    """When the process started (clock ticks since boot), None if there is none or it is a zombie.

    While a program with threads ends, its first thread is a zombie before the others have let go of files and ports.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        over = fields[0] in "ZX" and len(list(Path(f"/proc/{pid}/task").iterdir())) < 2
    except OSError:
        return None
    return None if over else int(fields[19])


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
