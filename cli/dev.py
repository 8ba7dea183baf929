"""Everything on one machine: `async with development(state_dir) as dev`.

Embedded PostgreSQL and S3, migrations, a secret key, a tenant and an operator's token, and all services in this process on
the in-process bus (or one process for each with RabbitMQ). `hubflow dev`, `hubflow demo` and the end-to-end tests use it.
All state lies in one folder; nothing else of the machine is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import context as contexts
from cli.context import Context
from cli.failure import Failure
from cli.serving import SERVICES, all_settings, load_services, service_environment
from shared.embedded.process import free_ports, port_is_free, sole_owner
from shared.errors import ConfigurationError, HubflowError, TemporaryError

if TYPE_CHECKING:
    from shared.embedded import S3Address

TENANT = "dev"
PORT = 8080
"""Where the console is, if that port is free."""
ENGINE_ANSWERS_WITHIN = 1.0
IGNORED = ("HUBFLOW_DATABASE_URL", "HUBFLOW_SECRET_KEY", "HUBFLOW_S3_", "HUBFLOW_HTTP_PORT", "HUBFLOW_MIGRATE")
"""Settings of a real installation that must not leak into this one: it would write into somebody's database."""


@dataclass(frozen=True, slots=True)
class Dev:
    """A running Hubflow."""

    url: str
    """Of the console and the hooks, without a slash at the end, on loopback."""
    token: str
    """An operator's, with all scopes."""
    tenant: str
    environment: Mapping[str, str]
    """The settings the services run with; enough for `hubflow serve` to start more of them."""
    runtime_kind: str
    """"docker" or "process"."""
    bridge_address: str
    """How job containers reach this machine; "" where jobs are plain processes (they use loopback)."""
    state_dir: Path
    first_start: bool
    services: asyncio.Task[None]
    """Ends when the services end: with their error, if one failed."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller of `development` asked for."""

    runtime: str = "auto"
    services: Sequence[str] = tuple(SERVICES)
    port: int | None = None
    separate: bool = False
    throwaway: bool = False
    settings: Mapping[str, str] | None = None


@asynccontextmanager
async def development(
    state_dir: Path | str,
    runtime: str = "auto",
    *,
    services: Sequence[str] | None = None,
    port: int | None = None,
    separate: bool = False,
    throwaway: bool = False,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Dev]:
    """Start everything, and stop it at the end. Data stay in `state_dir`.

    `runtime`: auto (an engine if one answers, else processes), docker or process. `services`: names, default all. `port`:
    of the console; default 8080 (or last time's) if it is free, else any. `separate`: one process for each service; needs
    HUBFLOW_AMQP_URL. `throwaway`: for tests; servers end with this process however it ends, and data may be lost then.
    `settings`: HUBFLOW_* on top of the environment's.

    When the services fail while the body runs, the body is cancelled and their error raised. Raises ConfigurationError,
    TemporaryError (the folder is in use, a server did not start) or Failure (services that cannot be imported).
    """
    wish = Wish(runtime, tuple(SERVICES) if services is None else services, port, separate, throwaway, settings)
    state = _prepare_folder(Path(state_dir))
    with sole_owner(state, "development environment"):
        async with AsyncExitStack() as stack:
            dev = await _start(stack, state, wish)
            contexts.write(state / contexts.FILE, Context(dev.url, dev.token, dev.tenant))
            async with _cancelled_with(dev.services):
                yield dev


def _prepare_folder(wanted: Path) -> Path:
    state = wanted.absolute()
    state.mkdir(parents=True, exist_ok=True)
    ignore = state / ".gitignore"
    if not ignore.exists():
        ignore.write_text("# Tokens, keys and data of `hubflow dev`.\n*\n")
    return state


async def _start(stack: AsyncExitStack, state: Path, wish: Wish) -> Dev:
    from shared.settings import engine_host

    first = not (state / "postgres" / "data").exists()
    inherited = _inherited(wish)
    _check_wish(wish, inherited)
    loading = asyncio.create_task(asyncio.to_thread(load_services, wish.services))  # slow; the servers start meanwhile
    try:
        database_url, s3 = await _open_servers(stack, state, wish)
        docker_host = engine_host(inherited)
        kind = await _runtime_kind(wish.runtime, docker_host)
        port = wish.port if wish.port is not None else _port(stack, state)
        bridge = await _open_bridge(stack, kind, docker_host, s3.endpoint, port)
        token = await _seed(database_url, state)
        found = await loading
    finally:
        await asyncio.gather(loading, return_exceptions=True)
    environment = inherited | {
        "HUBFLOW_DATABASE_URL": database_url,
        "HUBFLOW_SECRET_KEY": _secret_key(state),
        "HUBFLOW_HTTP_HOST": "127.0.0.1",
        "HUBFLOW_HTTP_PORT": str(port),
        "HUBFLOW_S3_ENDPOINT": s3.endpoint,
        "HUBFLOW_S3_ACCESS_KEY": s3.access_key,
        "HUBFLOW_S3_SECRET_KEY": s3.secret_key,
        "HUBFLOW_S3_REGION": s3.region,
        "HUBFLOW_RUNTIME_KIND": kind,
        "HUBFLOW_RUNTIME_PROCESS_ROOT": str(state / "jobs"),
        "HUBFLOW_RUNTIME_DOCKER_HOST": docker_host,
        "HUBFLOW_RUNTIME_INSTALLATION": f"dev-{hashlib.sha256(os.fsencode(state)).hexdigest()[:10]}",
        **bridge.settings,
    }
    environment.setdefault(
        "HUBFLOW_RUNTIME_SEARCH_PATH", os.environ.get("PATH", os.defpath)
    )  # jobs find the user's tools
    environment.setdefault("HUBFLOW_ALLOW_PRIVATE_TARGETS", "true")  # webhooks of a laptop go to the laptop
    environment.setdefault("HUBFLOW_LOG_FILE", str(state / "services.log"))
    if wish.separate:
        from cli.dev_separate import open_separate

        running = await stack.enter_async_context(open_separate(wish.services, environment, state))
    else:
        environment.pop("HUBFLOW_AMQP_URL", None)
        running = await stack.enter_async_context(_open_services(found, environment))
    url = f"http://127.0.0.1:{port}"
    return Dev(url, token, TENANT, environment, kind, bridge.address, state, first, running)


def _inherited(wish: Wish) -> dict[str, str]:
    environment = service_environment(os.environ)
    kept = {name: value for name, value in environment.items() if not name.startswith(IGNORED)}
    return kept | dict(wish.settings or {})


def _check_wish(wish: Wish, environment: Mapping[str, str]) -> None:
    if wish.runtime not in {"auto", "docker", "process"}:
        raise ConfigurationError(f"runtime {wish.runtime!r} does not exist here; choose auto, docker or process")
    if wish.port and not port_is_free(wish.port):
        raise ConfigurationError(
            f"port {wish.port} is in use; choose another --port, or leave it out for any that is free"
        )
    if wish.separate and not environment.get("HUBFLOW_AMQP_URL"):
        raise ConfigurationError(
            "services in separate processes need a broker between them: set HUBFLOW_AMQP_URL to a RabbitMQ, "
            "or leave out --separate"
        )


# servers


async def _open_servers(stack: AsyncExitStack, state: Path, wish: Wish) -> tuple[str, S3Address]:
    from cli.dev_servers import Kept, kept_up
    from shared.embedded import embedded_postgres, embedded_s3, postgres, s3

    owned = wish.throwaway
    database_up = kept_up(
        Kept(
            "PostgreSQL",
            state / "postgres" / "data",
            lambda: embedded_postgres(state, die_with_parent=owned, durable=not owned),
            lambda: postgres.running(state),
        )
    )
    objects_up = kept_up(
        Kept(
            "the S3",
            state / "s3" / "data",
            lambda: embedded_s3(state, die_with_parent=owned),
            lambda: s3.running(state),
        )
    )
    database, objects = await asyncio.gather(
        stack.enter_async_context(database_up),
        stack.enter_async_context(objects_up),
        return_exceptions=True,  # what one has started must be on the stack before the other's error goes up
    )
    if isinstance(database, BaseException):
        raise database
    if isinstance(objects, BaseException):
        raise objects
    return database, objects


def _port(stack: AsyncExitStack, state: Path) -> int:
    """Last time's port, else the usual one, if free; else any that is."""
    with contextlib.suppress(Failure, ValueError):
        last = int(contexts.read(state / contexts.FILE).url.rpartition(":")[2])
        if port_is_free(last):
            return last if last != PORT or _take_port(stack, PORT, again=True) else free_ports(1)[0]
    return PORT if _take_port(stack, PORT) else free_ports(1)[0]


def _take_port(stack: AsyncExitStack, port: int, *, again: bool = False) -> bool:
    """Take a port that everybody wants until the services listen on it, seconds later: others that start now see it taken.

    `again`: it was ours a moment ago, connections of then do not count.
    """
    taken = stack.enter_context(socket.socket())
    if again:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(("127.0.0.1", port))
    except OSError:
        return False
    # Lets in the services, which say the same; who binds without it, as above, is turned away.
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return True


# the runtime, and the way back from its containers


async def _runtime_kind(wanted: str, docker_host: str) -> str:
    """Gives "docker" or "process". Raises ConfigurationError when an engine was asked for and none answers."""
    if wanted == "process":
        return wanted
    from shared.runtime.engine import Engine, EngineError

    try:
        engine = Engine(docker_host)
    except ConfigurationError:
        if wanted == "docker":
            raise
        return "process"
    try:
        await engine.call("GET", "/version", timeout=ENGINE_ANSWERS_WITHIN)
    except (HubflowError, EngineError) as error:
        if wanted == "docker":
            raise ConfigurationError(f"{error}; start the engine, or use `--runtime process`") from None
        return "process"
    finally:
        await engine.close()
    return "docker"


@dataclass(frozen=True, slots=True)
class _Bridge:
    address: str
    settings: Mapping[str, str]


async def _open_bridge(stack: AsyncExitStack, kind: str, docker_host: str, s3_endpoint: str, port: int) -> _Bridge:
    if kind != "docker":
        return _Bridge("", {})
    from cli import bridge

    s3_port = int(s3_endpoint.rpartition(":")[2])
    try:
        address = await bridge.gateway(docker_host)
        s3_there = await stack.enter_async_context(bridge.forwarded(address, s3_port))
        console_there = await stack.enter_async_context(bridge.forwarded(address, port))
    except OSError:
        # The bridge is inside a virtual machine, whose maker leads this name to our loopback. People use loopback itself.
        name = bridge.DESKTOP_NAME
        return _Bridge(name, {"HUBFLOW_S3_JOB_ENDPOINT": f"http://{name}:{s3_port}"})
    return _Bridge(
        address,
        {
            "HUBFLOW_S3_JOB_ENDPOINT": f"http://{address}:{s3_there}",
            # Links are followed by people on this machine and by jobs in containers: the bridge's address serves both.
            "HUBFLOW_PUBLIC_URL": f"http://{address}:{console_there}",
        },
    )


# the database's first contents


def _secret_key(state: Path) -> str:
    from shared.vault import new_key

    path = state / "secret.key"
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(new_key())
        fresh.replace(path)
    return path.read_text().strip()


async def _seed(database_url: str, state: Path) -> str:
    """Migrate; make the tenant and an operator's token, or use those of last time. Returns the token."""
    from shared.db.database import open_database
    from shared.db.migrate import migrate

    async with open_database(database_url, max_connections=2) as database:
        await migrate(database)
        await database.execute("INSERT INTO tenants (name) VALUES ($1) ON CONFLICT DO NOTHING", TENANT)
        return await _known_token(database, state) or await _fresh_token(database)


async def _known_token(database: Any, state: Path) -> str:
    from shared.auth import token_hash

    try:
        token = contexts.read(state / contexts.FILE).token
    except Failure:
        return ""
    known = await database.fetchval(
        "SELECT 1 FROM tokens WHERE hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
        token_hash(token),
    )
    return token if known else ""


async def _fresh_token(database: Any) -> str:
    from shared.auth import SCOPES, token_hash
    from shared.clock import new_id
    from shared.vault import new_token

    token = new_token()
    await database.execute(
        "INSERT INTO tokens (id, tenant, name, hash, scopes) VALUES ($1, NULL, 'hubflow-dev', $2, $3)",
        new_id(), token_hash(token), list(SCOPES),
    )  # fmt: skip
    return token


# the services


@asynccontextmanager
async def _open_services(services: Sequence[Any], environment: Mapping[str, str]) -> AsyncIterator[asyncio.Task[None]]:
    from shared.service import Running, serve

    started: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(services, environment, ready=started.set_result, signals=False, known=all_settings()),
        name="hubflow services",
    )
    waits: list[asyncio.Future[Any]] = [task, started]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
        raise TemporaryError("the services ended before they were ready")
    try:
        yield task
    finally:
        started.result().stop()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error


@asynccontextmanager
async def _cancelled_with(services: asyncio.Task[None]) -> AsyncIterator[None]:
    """Cancel the body when the services fail, and raise their error instead of the cancellation."""
    body = asyncio.current_task()
    cancelled = False

    def end(task: asyncio.Task[None]) -> None:
        nonlocal cancelled
        if body is not None and not task.cancelled() and task.exception() is not None:
            cancelled = body.cancel()

    services.add_done_callback(end)
    try:
        yield
    except asyncio.CancelledError:
        if cancelled and body is not None and body.uncancel() == 0:
            services.result()
        raise
    finally:
        services.remove_done_callback(end)
