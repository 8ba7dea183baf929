"""One way to live and to die, for every service.

A service is a name, its settings and a function that opens it on a `Host` (what a process offers) and gives back its
`Parts`: consumers, tasks, HTTP routes. `serve` opens the host and any set of services in one process; a task that ends, for
whatever reason, ends them all. On a signal: report not ready, stop hearing, finish what is in hand, publish what is
committed, close in reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from shared import crash, http
from shared.bus.memory import MemoryBus
from shared.bus.protocol import Bus, Consumer
from shared.clock import Clock, SystemClock
from shared.config import load, unknown_variables
from shared.db.database import Database, open_database
from shared.db.dead_letters import DatabaseDeadLetters
from shared.db.migrate import migrate, pending
from shared.db.outbox import Relay
from shared.errors import ConfigurationError, HubflowError
from shared.log import configure, get_logger
from shared.runtime.allowed import Allowed
from shared.runtime.docker_body import OFFER as DOCKER_OFFER
from shared.runtime.kubernetes_options import OFFER as KUBERNETES_OFFER
from shared.settings import (
    HostSettings,
    KubernetesSettings,
    ObjectsSettings,
    RuntimeSettings,
    engine_host,
    process_name,
    require_for_pods,
)
from shared.vault import Vault

if TYPE_CHECKING:
    from shared.objects import ObjectStore
    from shared.runtime.protocol import Runtime

_log = get_logger("host")
PING_SECONDS = 3.0
"""That /readyz gives each server to answer."""
_SHARED: tuple[type[Any], ...] = (HostSettings, ObjectsSettings, RuntimeSettings, KubernetesSettings)
"""Settings that every process reads."""


@dataclass(slots=True)
class Host:
    """What a process offers to the services in it."""

    name: str
    """Names the process in leases and claims."""
    settings: HostSettings
    database: Database
    bus: Bus
    clock: Clock
    vault: Vault
    public_url: str = ""
    """Without a slash at the end."""
    options: Allowed | None = None
    """What workflows may set in `options` of a job; None where the runtime itself says so when the job starts."""
    pull: str = "checked"
    """When images that workflows name are pulled (`RuntimeSettings.pull`)."""
    _objects: ObjectStore | None = None
    _runtime: Runtime | None = None

    @property
    def objects(self) -> ObjectStore:
        if self._objects is None:
            raise TypeError("this service did not say that it needs objects")
        return self._objects

    @property
    def runtime(self) -> Runtime:
        if self._runtime is None:
            raise TypeError("this service did not say that it needs the runtime")
        return self._runtime


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service wants to have run."""

    consumers: Sequence[Consumer] = ()
    tasks: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    """Name -> a function that goes on until it is cancelled."""
    routes: Sequence[web.AbstractRouteDef] = ()
    leave: Callable[[], None] | None = None
    """Called when the process begins to end: whatever waits in its handlers should be given up."""


@dataclass(frozen=True, slots=True)
class Service:
    """One entry of the table of services."""

    name: str
    open: Callable[[Host, Any], AbstractAsyncContextManager[Parts]]
    """(host, settings of this service)"""
    settings: type[Any]
    needs: frozenset[str] = frozenset()
    """"objects", "runtime"."""
    works_without: frozenset[str] = frozenset()
    """What of these it can do without for a while, as most of its work goes on."""


@dataclass(slots=True)
class Running:
    """Handed to whoever started the services: where they listen, and how to stop them."""

    port: int
    host: Host
    stop: Callable[[], None]


async def serve(
    services: Sequence[Service],
    environment: Mapping[str, str],
    *,
    ready: Callable[[Running], None] | None = None,
    signals: bool = True,
    known: Sequence[type[Any]] = (),
) -> None:
    """Run services until a signal, `Running.stop`, or the first failure (raised).

    `known`: settings of services that run elsewhere with the same environment; their variables are not warned of.
    """
    stop = asyncio.Event()
    host_settings, settings = _load(services, environment)
    configure(host_settings.log_level, file=host_settings.log_file)
    for problem in _unknown(services, environment, known):
        _log.warning("setting unknown", problem=problem)
    if signals:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        host = await _open_host(stack, host_settings, services, environment)
        parts = [
            await stack.enter_async_context(each.open(host, own)) for each, own in zip(services, settings, strict=True)
        ]
        health = _Health(host, services)
        port = await _listen(stack, host, health, parts)
        if host.settings.public_url:
            host.public_url = host.settings.public_url.rstrip("/")
        else:
            host.public_url = f"http://{host.settings.http_host or 'localhost'}:{port}"
        for part in parts:
            for consumer in part.consumers:
                await host.bus.consume(consumer)
        await _run(host, services, parts, health, stop, lambda: ready and ready(Running(port, host, stop.set)))


async def _run(
    host: Host,
    services: Sequence[Service],
    parts: Sequence[Parts],
    health: _Health,
    stop: asyncio.Event,
    ready: Callable[[], Any],
) -> None:
    relay = host.database.relay
    if relay is None:
        raise TypeError("the host has no relay")
    work: dict[str, Callable[[], Awaitable[None]]] = {"outbox": relay.run, "bus": host.bus.guard}
    for service, part in zip(services, parts, strict=True):
        work |= {f"{service.name} {name}": task for name, task in part.tasks.items()}
    stopping = asyncio.create_task(stop.wait(), name="stop")
    tasks = [asyncio.create_task(_named(name, task), name=name) for name, task in work.items()]
    health.ready = True
    crash.arm(host.settings.crash_at)
    _log.info("services ready", services=[each.name for each in services], url=host.public_url)
    ready()
    try:
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        health.ready = False
        for part in parts:
            if part.leave is not None:
                part.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(host.settings.shutdown_seconds):
                await host.bus.stop_consuming()
                await relay.flush()
    finally:
        for task in (stopping, *tasks):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    _log.info("services stopped")


async def _named(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run a task that should not end; that it does is a failure with its name."""
    try:
        await task()
    except Exception:
        _log.exception("task failed, the process ends", task=name)
        raise
    raise RuntimeError(f"the task {name!r} ended by itself")


def _load(services: Sequence[Service], environment: Mapping[str, str]) -> tuple[HostSettings, list[Any]]:
    """All settings, or ConfigurationError with every problem."""
    loaded = load(environment, *_SHARED, *(each.settings for each in services))
    runtime, cluster = loaded[2:4]
    if runtime.kind == "kubernetes" and any("runtime" in each.needs for each in services):
        require_for_pods(cluster, runtime.installation)
    return loaded[0], list(loaded[len(_SHARED) :])


def _unknown(services: Sequence[Service], environment: Mapping[str, str], known: Sequence[type[Any]]) -> list[str]:
    return unknown_variables(environment, [*_SHARED, *(each.settings for each in services), *known])


def check(services: Sequence[Service], environment: Mapping[str, str], known: Sequence[type[Any]] = ()) -> list[str]:
    """Verify the settings without starting anything. Gives warnings; raises ConfigurationError. `known`: as for `serve`."""
    host_settings, _ = _load(services, environment)
    Vault(host_settings.secret_key)
    return _unknown(services, environment, known)


async def _open_host(
    stack: AsyncExitStack, settings: HostSettings, services: Sequence[Service], environment: Mapping[str, str]
) -> Host:
    database = await stack.enter_async_context(
        open_database(settings.database_url, max_connections=settings.database_connections)
    )
    if settings.migrate:
        await migrate(database)
    elif missing := await pending(database):
        raise ConfigurationError(
            f"the database lacks {', '.join(missing)}; run `hubflow migrate` (or set HUBFLOW_MIGRATE=true)"
        )
    bus: Bus
    if settings.amqp_url:
        from shared.bus.amqp import open_amqp_bus

        bus = await open_amqp_bus(settings.amqp_url)
    else:
        bus = MemoryBus(DatabaseDeadLetters(database))
    stack.push_async_callback(bus.close)
    database.relay = Relay(database, bus)
    host = Host(process_name(), settings, database, bus, SystemClock(), Vault(settings.secret_key))
    needs = frozenset[str]().union(*(each.needs for each in services))
    objects_settings, runtime_settings, cluster = load(
        environment, ObjectsSettings, RuntimeSettings, KubernetesSettings
    )
    host.pull = runtime_settings.pull
    if runtime_settings.kind == "kubernetes":
        host.options = Allowed.parse(cluster.allow, KUBERNETES_OFFER)
    elif runtime_settings.kind == "docker":
        host.options = Allowed.parse(runtime_settings.docker_allow, DOCKER_OFFER)
    if "objects" in needs:
        from shared.objects import open_object_store

        host._objects = await stack.enter_async_context(open_object_store(objects_settings))
    if "runtime" in needs:
        from shared.runtime.select import config_of, open_runtime

        docker_key = host.vault.derived_key("job documents of containers")
        host._runtime = await open_runtime(config_of(runtime_settings, cluster, docker_key, engine_host(environment)))
        stack.push_async_callback(host._runtime.close)
    return host


class _Health:
    """/healthz (the process lives), /readyz (it and what it depends on can work), /metrics."""

    def __init__(self, host: Host, services: Sequence[Service]) -> None:
        self._host = host
        self._lives_on_objects = all("objects" in each.needs - each.works_without for each in services)
        self.ready = False

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
        ]

    async def _healthz(self, _: web.Request) -> web.Response:
        return http.reply({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        pings = {"database": self._host.database.ping, "bus": self._host.bus.ping}
        if self._host._runtime is not None:
            pings["runtime"] = self._host._runtime.ping
        if self._host._objects is not None:
            pings["objects"] = self._host._objects.ping
        answers = await asyncio.gather(*map(_answer, pings.values()))
        checks = {
            "process": "ok" if self.ready else "starting or stopping", **dict(zip(pings, answers, strict=True))
        }  # fmt: skip
        # Where one of the services works without, the others must not take it, and with it perhaps the API, away.
        good = all(
            value == "ok" for name, value in checks.items() if name != "objects" or self._lives_on_objects
        )  # fmt: skip
        return http.reply({"status": "ok" if good else "unavailable", "checks": checks}, 200 if good else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _answer(ping: Callable[[], Awaitable[None]]) -> str:
    """ "ok", or what is wrong."""
    try:
        async with asyncio.timeout(PING_SECONDS):
            await ping()
    except (HubflowError, TimeoutError) as error:
        return str(error) or f"no answer within {PING_SECONDS:g} seconds"
    return "ok"


async def _listen(stack: AsyncExitStack, host: Host, health: _Health, parts: Sequence[Parts]) -> int:
    """Start the process's one HTTP server. Returns its port."""
    app = web.Application(middlewares=[http.problems], client_max_size=http.MAX_BODY)
    app.on_response_prepare.append(http.note_begun)
    app.add_routes(health.routes())
    for part in parts:
        app.add_routes(part.routes)
    logger = http.server_logger()
    runner = web.AppRunner(app, access_log=None, logger=logger, handle_signals=False, shutdown_timeout=5)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    name, number = host.settings.http_host, host.settings.http_port
    try:
        site = web.TCPSite(runner, name, number) if name else web.SockSite(runner, _everywhere(number))
        await site.start()
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {name or '*'}:{number} ({error.strerror}); "
            "set HUBFLOW_HTTP_PORT to a free port, or 0 for any"
        ) from error
    address: tuple[str, int] = runner.addresses[0]
    return address[1]


def _everywhere(port: int) -> socket.socket:
    """One socket for IPv4 and IPv6, so that port 0 is one port; for IPv4 alone where the machine has no IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


@contextlib.asynccontextmanager
async def opened(parts: Parts) -> AsyncIterator[Parts]:
    """For services that have nothing to close."""
    yield parts
