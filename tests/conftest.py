"""Fixtures that start real servers, once for each test process (pytest-xdist: each worker has its own).

    database        DSN of a fresh database with the schema (a copy of a template: 30 ms)
    empty_database  DSN of a fresh database without anything in it
    s3              shared.embedded.S3Address of a real S3; make a bucket of your own
    rabbitmq        tests.servers.rabbitmq.RabbitMQ (a test that kills it starts it again)
    amqp_url        URL of a fresh virtual host in it
    kubernetes      tests.servers.kubernetes.Kubernetes: a real cluster with the images of tests/cluster/images.py
    dockerd         tests.servers.dockerd.Dockerd with the images of tests/servers/images.py loaded
    registry        tests.servers.registry.Registry, open to all

Tests that use kubernetes, rabbitmq, dockerd or registry get the marker `servers` by themselves, and are skipped, with a
line that cannot be overlooked, where these cannot be started.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import hypothesis
import pytest

from shared.db.database import open_database
from shared.db.migrate import migrate
from shared.embedded import S3Address, embedded_postgres, embedded_s3
from tests.chaos.proxy import Proxy
from tests.cluster.images import job_images, wrapper_image
from tests.servers import RABBITMQ, missing
from tests.servers.dockerd import Dockerd, started_dockerd
from tests.servers.images import TEST_IMAGES, write_archive
from tests.servers.kubernetes import WRAPPER, Kubernetes, found_kubernetes
from tests.servers.kubernetes import missing as missing_kubernetes
from tests.servers.rabbitmq import RabbitMQ, started_rabbitmq
from tests.servers.registry import Registry, started_registry

_PROGRAMS = {
    "kubernetes": (),
    "rabbitmq": (str(RABBITMQ), "epmd"),
    "dockerd": ("dockerd", "containerd", "runc", "ip", "/bin/busybox"),
    "registry": ("docker-registry",),
}
_LACKING = pytest.StashKey[dict[str, str]]()


# How quick a generated example was says something of the machine only.
hypothesis.settings.register_profile("hubflow", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("hubflow")


def pytest_configure() -> None:
    # Whoever starts us in the background of a shell has interrupts ignored, and every program that we start inherits that:
    # tests of Ctrl-C would wait for ever.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacking = {name: reason for name, programs in _PROGRAMS.items() if (reason := missing(*programs))}
    if reason := missing_kubernetes():
        lacking["kubernetes"] = reason
    config.stash[_LACKING] = {}
    for item in items:
        wanted = [name for name in _PROGRAMS if name in getattr(item, "fixturenames", ())]
        if not wanted:
            continue
        item.add_marker(pytest.mark.servers)
        # With `--dist loadgroup` one worker starts the slow server, instead of each its own.
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(wanted[0]))
        for name in wanted:
            if name in lacking:
                config.stash[_LACKING][name] = lacking[name]
                item.add_marker(pytest.mark.skip(reason=f"{name}: {lacking[name]}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    # Ungrouped, two workers would wait for the same cluster until both give up.
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError(f"pytest-xdist has not grouped {item.nodeid}: do its version and pytest's fit?")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, reason in config.stash.get(_LACKING, {}).items():
        terminalreporter.write_line(f"!!! NOT TESTED: everything that needs {name} was skipped: {reason}", red=True)


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
async def postgres_dsn(server_folder: Path) -> AsyncIterator[str]:
    """DSN of the server's first database, for those who make databases; tests want `database`."""
    async with embedded_postgres(server_folder, die_with_parent=True, durable=False) as dsn:
        yield dsn


@pytest.fixture(scope="session")
async def _template(postgres_dsn: str) -> str:
    name = "template_hubflow"
    await _execute(postgres_dsn, f"CREATE DATABASE {name}")
    async with open_database(_with_database(postgres_dsn, name), max_connections=1) as database:
        await migrate(database)
    return name


@pytest.fixture
async def database(postgres_dsn: str, _template: str) -> AsyncIterator[str]:
    async for dsn in _fresh_database(postgres_dsn, _template):
        yield dsn


@pytest.fixture(scope="module")
async def module_database(postgres_dsn: str, _template: str) -> AsyncIterator[str]:
    """As `database`, for tests that share a running system."""
    async for dsn in _fresh_database(postgres_dsn, _template):
        yield dsn


@pytest.fixture
async def empty_database(postgres_dsn: str) -> AsyncIterator[str]:
    async for dsn in _fresh_database(postgres_dsn, "template0"):
        yield dsn


async def _fresh_database(server: str, template: str) -> AsyncIterator[str]:
    name = f"t{secrets.token_hex(6)}"
    await _execute(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield _with_database(server, name)
    await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        # A template is busy until the last connection to it has ended on the server's side too.
        for _ in range(200):
            try:
                await connection.execute(statement)
                return
            except asyncpg.ObjectInUseError:
                await asyncio.sleep(0.02)
        await connection.execute(statement)
    finally:
        await connection.close()


def _with_database(dsn: str, name: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
async def s3(server_folder: Path) -> AsyncIterator[S3Address]:
    async with embedded_s3(server_folder, "0.0.0.0", die_with_parent=True) as address:
        yield address


@pytest.fixture
async def wire(s3: S3Address) -> AsyncIterator[Proxy]:
    """What stands between services and object storage."""
    proxy = Proxy("objects", s3.port)
    await proxy.open()
    yield proxy
    await proxy.close()


@pytest.fixture(scope="session")
async def rabbitmq(server_folder: Path) -> AsyncIterator[RabbitMQ]:
    async with started_rabbitmq(server_folder / "rabbitmq") as broker:
        yield broker


@pytest.fixture
async def amqp_url(rabbitmq: RabbitMQ) -> str:
    return await rabbitmq.new_vhost()


@pytest.fixture(scope="session")
def image_archive(server_folder: Path) -> Path:
    """docker-archive with all images of tests/servers/images.py."""
    return write_archive(server_folder / "images.tar", TEST_IMAGES)


@pytest.fixture(scope="session")
async def dockerd(server_folder: Path, image_archive: Path) -> AsyncIterator[Dockerd]:
    async with started_dockerd(server_folder / "dockerd") as engine:
        await engine.load(image_archive)
        yield engine


@pytest.fixture(scope="session")
async def registry(server_folder: Path) -> AsyncIterator[Registry]:
    async with started_registry(server_folder / "registry") as started:
        yield started


@pytest.fixture(scope="session")
async def kubernetes(server_folder: Path) -> AsyncIterator[Kubernetes]:
    async with found_kubernetes() as found:
        await found.load([wrapper_image(WRAPPER), *job_images()], server_folder)
        yield found
