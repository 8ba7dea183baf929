"""A real RabbitMQ on free ports, with a node name, cookie and port mapper (epmd) of its own."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from shared.embedded.process import Launch, Server, becomes_ready, free_ports, holds, tail
from tests.servers import RABBITMQ

USER = "hubflow"
PASSWORD = "hubflow"


class RabbitMQ:
    """One broker. Addresses stay the same over kill, stop and start."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.port, self._management, self._distribution, self._epmd_port = ports
        self._node = f"hf{secrets.token_hex(4)}@localhost"
        self._server: Server | None = None
        self._epmd: Server | None = None

    def url(self, vhost: str = "/") -> str:
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{'' if vhost == '/' else vhost}"

    async def start(self) -> None:
        """Start it (again); returns once it takes connections and its queues of before are there."""
        if self._epmd is None or not self._epmd.alive():
            command = [shutil.which("epmd") or "epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
            self._epmd = Server.start(
                Launch(command, self.folder / "epmd.log", environment={}, die_with_parent=signal.SIGKILL)
            )
        log = self.folder / "rabbitmq.log"
        launch = Launch([str(RABBITMQ)], log, environment=self._environment(), die_with_parent=signal.SIGKILL)
        self._server = Server.start(launch)
        if not await becomes_ready(self._server, self._answers, timeout=120):
            raise RuntimeError(f"RabbitMQ did not start:\n{tail(log, 40)}")

    async def kill(self) -> None:
        """kill -9; returns once it is gone.

        Waits before until RabbitMQ has noted all quorum queues on disk, which it does half a second late: a queue of which
        the kill leaves no note never answers again. That is its own weakness and not the subject of our tests.
        """
        assert self._server is not None
        with contextlib.suppress(aiohttp.ClientError, OSError):  # it may hang or be gone already
            await self._queues_are_noted()
        await self._server.end(signal.SIGKILL, patience=10)

    async def _queues_are_noted(self) -> None:
        queues = await self.api("GET", "queues")
        noted = self.folder / "mnesia" / self._node / "quorum" / self._node / "names.dets"
        names = [
            f"{'%2F' if queue['vhost'] == '/' else queue['vhost']}_{queue['name']}".encode()
            for queue in queues
            if queue.get("type") == "quorum" and not queue.get("exclusive")
        ]
        await holds(lambda: not names or all(name in content for content in [noted.read_bytes()] for name in names), 5)

    async def stop(self) -> None:
        """Shut down in order (takes seconds)."""
        assert self._server is not None
        await self._server.end(signal.SIGTERM, patience=60)

    async def restart(self) -> None:
        """kill -9 and start again on the same data."""
        await self.kill()
        await self.start()

    def alive(self) -> bool:
        """False: it has ended, perhaps by itself (on a full disk it gives up)."""
        return self._server is not None and self._server.alive()

    async def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers. `resume` thaws it."""
        assert self._server is not None
        self._server.signal(signal.SIGSTOP)

    async def resume(self) -> None:
        assert self._server is not None
        self._server.signal(signal.SIGCONT)

    async def new_vhost(self) -> str:
        """Make an empty virtual host and return its URL: what one test does, no other sees."""
        name = f"t{secrets.token_hex(6)}"
        await self.api("PUT", f"vhosts/{name}")
        return self.url(name)

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API, e.g. `await broker.api("GET", "queues/VHOST")`; returns its JSON, or None."""
        headers = {"Authorization": aiohttp.encode_basic_auth(USER, PASSWORD)}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"http://127.0.0.1:{self._management}/api/{path}", json=body) as response,
        ):
            response.raise_for_status()
            return await response.json() if response.content_type == "application/json" else None

    @contextlib.asynccontextmanager
    async def alarmed(self) -> AsyncIterator[None]:
        """In an alarm of memory meanwhile: who publishes is read from no more."""
        await self._control("set_vm_memory_high_watermark", "absolute", "1")
        try:
            yield
        finally:
            await self._control("set_vm_memory_high_watermark", "0.4")

    async def _control(self, *arguments: str) -> None:
        program = RABBITMQ.with_name("rabbitmqctl")
        process = await asyncio.create_subprocess_exec(
            str(program), *arguments, env=self._environment(),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {said.decode()}")

    async def close(self) -> None:
        """End everything at once; the data are thrown away anyway."""
        for server in (self._server, self._epmd):
            if server is not None:
                await server.end(signal.SIGKILL, patience=5)

    async def _answers(self) -> bool:
        try:
            await self.api("GET", "health/checks/port-listener/" + str(self.port))
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        return True

    def configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management}\n"
            f"default_user = {USER}\ndefault_pass = {PASSWORD}\nloopback_users = none\n"
            "log.console = true\nlog.console.level = warning\nlog.file = false\n"
            "disk_free_limit.absolute = 50MB\n"
            # The log of quorum queues takes 512 MB at once by default.
            "raft.wal_max_size_bytes = 33554432\n"
        )
        (self.folder / "advanced.config").write_text("[].\n")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].")
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The script then becomes Erlang instead of waiting for it, so that our pid is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
            # No busy waiting: other servers want the two cores of a small machine as well.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false +sbwt none +sbwtdcpu none +sbwtdio none",
        }


@contextlib.asynccontextmanager
async def started_rabbitmq(folder: Path) -> AsyncIterator[RabbitMQ]:
    """A broker with its data in `folder` (made); takes 4 to 10 s."""
    broker = RabbitMQ(folder, free_ports(4))
    broker.configure()
    try:
        await broker.start()
        yield broker
    finally:
        await asyncio.shield(broker.close())
