"""The system that is put to the test: real servers on disks of their own, two replicas of each service, proxies between.

Replicas are called by service and letter: ("scheduler", "a"). Each letter has a proxy of its own to the database, the broker,
the object storage and the cluster's API server, so that one half of the system can lose a server that the other still sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from shared.auth import SCOPES, token_hash
from shared.clock import new_id
from shared.db.database import open_database
from shared.db.migrate import migrate
from shared.embedded import S3Address, embedded_postgres, embedded_s3
from shared.embedded.postgres import tcp_dsn
from shared.embedded.process import Launch, Server, free_ports, tail
from shared.vault import new_key, new_token
from tests.chaos.pods import PodEngine
from tests.chaos.proxy import Proxy, opened_proxy
from tests.e2e.system import FRONT, SERVICES
from tests.servers.dockerd import Dockerd
from tests.servers.rabbitmq import RabbitMQ

NAMES = ("front", *(name for name in SERVICES if name not in FRONT))
LETTERS = ("a", "b")
EXPECTED_WORDS = "start again when it answers"
"""What a process says that gives up at its start, because a server does not answer: its supervisor's turn."""
SERVERS = ("database", "broker", "objects")
READY_WITHIN = 120.0
ROOMY_DISK = "8g"
SUPERVISOR_LOOKS = 2.0
_FAKETIME = Path("/usr/lib")


class Disk:
    """A file system of its own for one server, so that it can be full. Needs root; without it there is only a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY_DISK},mode=755", "hubflow-chaos", str(folder)]
        self.real = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self, spare: int) -> None:
        """Leave room for `spare` bytes more, or what the server has taken meanwhile."""
        for _ in range(20):
            usage = os.statvfs(self.folder)
            if self._resize(str((usage.f_blocks - usage.f_bfree) * usage.f_frsize + spare)):
                return
            spare += 1 << 16

    def clear(self) -> None:
        if not self._resize(ROOMY_DISK):
            raise RuntimeError(f"the disk {self.folder} cannot be given its room back")

    def close(self) -> None:
        if self.real:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    def _resize(self, size: str) -> bool:
        command = ["mount", "-o", f"remount,size={size}", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


class PostgreSQL:
    """The embedded server, in a form that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context: AbstractAsyncContextManager[str] | None = None

    async def start(self) -> None:
        self._context = embedded_postgres(self._folder, die_with_parent=True)
        await self._context.__aenter__()

    async def kill(self) -> None:
        """kill -9 of the server with all its processes."""
        server = Server.find(self._folder / "postgres" / "server.json", str(self._folder / "postgres" / "data"))
        if server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            await server.ended(20)
        await self.close()

    def alive(self) -> bool:
        return (
            Server.find(self._folder / "postgres" / "server.json", str(self._folder / "postgres" / "data")) is not None
        )

    async def close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            await context.__aexit__(None, None, None)

    @property
    def dsn(self) -> str:
        return tcp_dsn(self._folder)


@dataclass(slots=True)
class Replica:
    """One process of a service."""

    name: str
    letter: str
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    offset: int = 0
    """Seconds that its clock is ahead."""
    meant_down: bool = True
    """Somebody is at it: the supervisor leaves it alone."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, environment: Mapping[str, str], offset: int = 0) -> None:
        services = FRONT if self.name == "front" else (self.name,)
        self.offset = offset
        self.meant_down = False
        with self.log.open("ab") as log:
            log.write(f"--- started {time.strftime('%H:%M:%S')} clock {offset:+d} s\n".encode())
            log.flush()
            command = [sys.executable, "-m", "cli.main", "serve", *services]
            self.process = subprocess.Popen(
                Launch(command, self.log, die_with_parent=signal.SIGKILL).arguments(),
                env={**environment, **clock_environment(offset), "HUBFLOW_HTTP_PORT": str(self.port)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def signal(self, number: int) -> None:
        self.meant_down = self.meant_down or number in {signal.SIGKILL, signal.SIGTERM}
        if self.process is not None:
            self.process.send_signal(number)

    async def ended(self, seconds: float) -> int | None:
        """Its exit code, None if it has not ended by then."""
        process = self.process
        if process is None:
            return 0
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return process.returncode

    def last_words(self) -> str:
        code = self.process.returncode if self.process is not None else None
        return f"{self.name} {self.letter} ended with {code}: {tail(self.log, 3)}"

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended(20)


@dataclass(slots=True)
class Place:
    """Everything that runs. Made by `opened_place`."""

    folder: Path
    database: PostgreSQL
    broker: RabbitMQ
    s3: S3Address
    engine: Dockerd | PodEngine | None
    disks: dict[str, Disk]
    links: dict[tuple[str, str], Proxy]
    environment: dict[str, str]
    token: str
    replicas: dict[tuple[str, str], Replica] = field(default_factory=dict)
    fallen: list[str] = field(default_factory=list)
    """Last words of processes that have ended although nobody wanted them to."""

    def environment_of(self, letter: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The settings of a replica: its servers are behind its letter's proxies."""
        s3 = self.links[letter, "objects"].port
        cluster = {}
        if isinstance(self.engine, PodEngine):
            file = self.folder / f"cluster-of-{letter}.kubeconfig"
            cluster["HUBFLOW_KUBERNETES_KUBECONFIG"] = str(
                self.engine.kubeconfig_through(self.links[letter, "cluster"].port, file)
            )
        return {
            **self.environment,
            "HUBFLOW_DATABASE_URL": _through(self.environment["HUBFLOW_DATABASE_URL"], self.links[letter, "database"].port),
            "HUBFLOW_AMQP_URL": _through(self.environment["HUBFLOW_AMQP_URL"], self.links[letter, "broker"].port),
            "HUBFLOW_S3_ENDPOINT": f"http://127.0.0.1:{s3}",
            **cluster,
            **(more or {}),
        }  # fmt: skip

    def start(self, name: str, letter: str, offset: int = 0, more: Mapping[str, str] | None = None) -> Replica:
        key = (name, letter)
        if key not in self.replicas:
            self.replicas[key] = Replica(name, letter, free_ports(1)[0], self.folder / f"{name}-{letter}.log")
        self.replicas[key].start(self.environment_of(letter, more), offset)
        return self.replicas[key]

    async def supervise(self) -> None:
        """Start again whoever has ended by itself, as systemd and Kubernetes do; until cancelled."""
        while True:
            for replica in list(self.replicas.values()):
                if not replica.meant_down and replica.process is not None and replica.process.poll() is not None:
                    self.fallen.append(replica.last_words())
                    self.start(replica.name, replica.letter, replica.offset)
            await asyncio.sleep(SUPERVISOR_LOOKS)

    def dead(self) -> list[Replica]:
        """Those whose process has ended."""
        return [each for each in self.replicas.values() if each.process is None or each.process.poll() is not None]

    def fronts(self) -> list[str]:
        return [self.replicas["front", letter].url for letter in LETTERS if ("front", letter) in self.replicas]

    def links_to(self, server: str) -> list[Proxy]:
        return [proxy for (_, each), proxy in self.links.items() if each == server]

    @property
    def jobs_folder(self) -> Path:
        """Of the process runtime."""
        return Path(self.environment["HUBFLOW_RUNTIME_PROCESS_ROOT"])

    async def close(self) -> None:
        for replica in self.replicas.values():
            await replica.kill()


def clock_environment(offset: int) -> dict[str, str]:
    """What makes a process see the time `offset` seconds ahead (libfaketime); its monotonic clock stays as it is."""
    if not offset:
        return {}
    library = faketime()
    if library is None:
        raise FileNotFoundError("libfaketimeMT.so.1: install Debian's package faketime")
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{offset:+d}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def faketime() -> Path | None:
    return next(iter(sorted(_FAKETIME.glob("*/faketime/libfaketimeMT.so.1"))), None)


def _through(url: str, port: int) -> str:
    """The same address, but by way of a proxy's port."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))


@asynccontextmanager
async def opened_place(folder: Path, engine: Dockerd | PodEngine | None, **settings: str) -> AsyncIterator[Place]:
    """Servers, proxies and an empty system that nobody has started yet (`start_all`)."""
    async with AsyncExitStack() as stack:
        disks = {name: Disk(folder / "disks" / name) for name in SERVERS}
        for disk in disks.values():
            stack.callback(disk.close)
        database = PostgreSQL(disks["database"].folder)
        await database.start()
        stack.push_async_callback(database.close)
        broker = RabbitMQ(disks["broker"].folder / "rabbitmq", free_ports(4))
        broker.configure()
        stack.push_async_callback(broker.close)
        await broker.start()
        bind = "127.0.0.1" if engine is None else "0.0.0.0"
        s3 = await stack.enter_async_context(embedded_s3(disks["objects"].folder, bind, die_with_parent=True))
        far = {"database": urlsplit(database.dsn).port, "broker": broker.port, "objects": s3.port}
        links: dict[tuple[str, str], Proxy] = {}
        for letter in LETTERS:
            for server, port in far.items():
                assert port is not None
                links[letter, server] = await stack.enter_async_context(opened_proxy(f"{server} of {letter}", port))
            if isinstance(engine, PodEngine):
                host, port = engine.server
                proxy = opened_proxy(f"cluster of {letter}", port, host)
                links[letter, "cluster"] = await stack.enter_async_context(proxy)
        jobs = Proxy("objects of jobs", s3.port)
        await jobs.open("127.0.0.1" if engine is None else engine.gateway)
        stack.push_async_callback(jobs.close)
        links["jobs", "objects"] = jobs
        token = new_token()
        await _prepare(database.dsn, token)
        environment = _environment(folder, database.dsn, await broker.new_vhost(), s3, engine, jobs.port) | {
            f"HUBFLOW_{name.upper()}": value for name, value in settings.items()
        }
        place = Place(folder, database, broker, s3, engine, disks, links, environment, token)
        stack.push_async_callback(place.close)
        yield place


async def start_all(place: Place) -> None:
    """Two replicas of each service, ready."""
    for name in NAMES:
        for letter in LETTERS:
            place.start(name, letter)
    await ready(place)


async def ready(place: Place) -> None:
    """Wait until every process says that it is ready. Raises RuntimeError naming one that does not, and what it says."""
    import aiohttp

    said: dict[str, str] = {}
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http, asyncio.timeout(READY_WITHIN):
            for replica in list(place.replicas.values()):
                while (answer := await _readiness(http, replica)) != "ready":
                    said = {f"{replica.name}-{replica.letter}": answer}
                    ended = replica.process is not None and replica.process.poll() is not None
                    if ended and EXPECTED_WORDS not in replica.last_words():
                        raise RuntimeError(f"{replica.name} ended:\n{replica.log.read_text(errors='replace')[-3000:]}")
                    await asyncio.sleep(0.05)
    except TimeoutError:
        raise RuntimeError(f"not ready within {READY_WITHIN:.0f} s: {said}") from None


async def _readiness(http: Any, replica: Replica) -> str:
    import aiohttp

    try:
        async with http.get(f"{replica.url}/readyz") as response:
            return "ready" if response.status == 200 else f"{response.status} {(await response.text())[:1000]}"
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return repr(error)


async def _prepare(dsn: str, token: str) -> None:
    """The schema, and an operator's token."""
    async with open_database(dsn, max_connections=1) as opened:
        await migrate(opened)
        await opened.execute(
            "INSERT INTO tokens (id, name, hash, scopes) VALUES ($1, 'operator', $2, $3)",
            new_id(), token_hash(token), list(SCOPES),
        )  # fmt: skip


def _environment(
    folder: Path, dsn: str, amqp_url: str, s3: S3Address, engine: Dockerd | PodEngine | None, jobs_port: int
) -> dict[str, str]:
    environment = {
        "PATH": os.environ["PATH"], "HUBFLOW_DATABASE_URL": dsn, "HUBFLOW_AMQP_URL": amqp_url,
        "HUBFLOW_SECRET_KEY": new_key(), "HUBFLOW_S3_ACCESS_KEY": s3.access_key, "HUBFLOW_S3_SECRET_KEY": s3.secret_key,
        "HUBFLOW_S3_REGION": s3.region, "HUBFLOW_S3_BUCKET": "chaos",
        "HUBFLOW_S3_JOB_ENDPOINT": f"http://127.0.0.1:{jobs_port}",
        "HUBFLOW_RUNTIME_KIND": "process", "HUBFLOW_RUNTIME_PROCESS_ROOT": str(folder / "jobs"),
        "HUBFLOW_RUNTIME_SEARCH_PATH": os.environ["PATH"], "HUBFLOW_RUNTIME_INSTALLATION": f"chaos-{uuid.uuid4().hex[:8]}",
        "HUBFLOW_ALLOW_PRIVATE_TARGETS": "true", "HUBFLOW_DATABASE_CONNECTIONS": "6", "HUBFLOW_LOG_LEVEL": "info",
        "HUBFLOW_PUBLIC_URL": "http://127.0.0.1:9",
        # The longest log of a storm has many pieces in object storage, as long logs have.
        "HUBFLOW_LOG_COLLECTOR_SEGMENT_BYTES": "20000",
    }  # fmt: skip
    if isinstance(engine, PodEngine):
        environment |= engine.settings(jobs_port)
    elif engine is not None:
        environment |= {
            "HUBFLOW_RUNTIME_KIND": "docker", "HUBFLOW_RUNTIME_DOCKER_HOST": engine.url,
            "HUBFLOW_RUNTIME_DEFAULT_IMAGE": "hubflow-test/busybox:latest",
            "HUBFLOW_S3_JOB_ENDPOINT": f"http://{engine.gateway}:{jobs_port}",
        }  # fmt: skip
    return environment


def processes_of_jobs(place: Place) -> Iterator[int]:
    """Pids of all processes that containers of this place have left running (plain processes)."""
    mark = f"HUBFLOW_CONTAINER={place.jobs_folder.resolve()}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    yield int(entry.name)
