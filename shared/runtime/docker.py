"""Containers on any Docker-compatible engine, local or remote; no path of the engine's host is ever named.

An attempt costs three calls up to its end (create, start, read the result) and two to remove it. The wrapper comes from a
volume that is filled once. The job document comes with the container, encrypted with a key that lies in that volume, so that
the engine's description of the container shows nothing of it; to copy it in would take the engine a fifth of a short job's
time. It is copied in where there is no key, where it is large, and where a directory is shared. Everything that must survive
us is in the engine: names, labels, logs.

Starting is in `docker_start`, watching in `docker_watch`, what is sent and read in `docker_body`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from shared.errors import InUseError, PermanentError, TemporaryError
from shared.runtime import docker_body as body
from shared.runtime.allowed import Allowed
from shared.runtime.docker_read import Reader
from shared.runtime.docker_start import GIVE_WAY, Starter, unstarted
from shared.runtime.docker_watch import Watch
from shared.runtime.engine import Engine, EngineError, demultiplexed
from shared.runtime.protocol import ContainerSpec, Observation
from shared.states import Reason

CREATED_AGAIN_WITHIN = 60.0
"""Seconds for which the log of a container that has gone without having started is waited for: whoever was to start it may have
died, and the next one be told of it only then."""
DEFAULT_IMAGE = "docker.io/library/alpine:3"


class DockerRuntime:
    """`shared.runtime.protocol.Runtime` on the engine at `host` (unix:///path, tcp://host:port, https://host:port).

    `wrapper` is a hubflow-wrapper binary, or the folder that has one per processor (hubflow-wrapper-linux-amd64, ...).
    `installation` separates several Hubflows on one engine. `default_image` is for scripts that name none.
    `takeover_after`: seconds after which a container that was created and not started counts as left behind.
    `key`: 32 bytes that job documents are encrypted with, the same for all who start containers of this installation.
    `allowed`: what workflows may set in `options`, as the operator says; None: what takes nothing from anybody.
    `pull`: images that workflows name are pulled if they are "missing", or "always".
    """

    name = "docker"

    def __init__(
        self,
        host: str,
        wrapper: Path,
        installation: str,
        *,
        certificates: Path | None = None,
        default_image: str = DEFAULT_IMAGE,
        takeover_after: float = 5.0,
        key: bytes | None = None,
        allowed: Allowed | None = None,
        pull: str = "missing",
    ) -> None:
        self._engine = Engine(host, certificates)
        self._starter = Starter(
            self._engine,
            wrapper,
            installation,
            default_image,
            takeover_after,
            key,
            allowed or Allowed.parse("", body.OFFER),
            pull,
        )
        self._reader = Reader(self._engine, installation)
        self._installation = installation
        self._stops: set[asyncio.Task[None]] = set()

    async def start(self, spec: ContainerSpec) -> None:
        """See the protocol. A missing image is pulled here; if that is hopeless, it is observed as ImagePull."""
        await self._starter.start(spec)

    async def stop(self, name: str, grace: float) -> None:
        """See the protocol. The engine sees to the KILL, whatever becomes of us."""
        beaten = False
        for _ in range(20):
            found = await self._starter.find(name)
            # The engine gives a name away before the new container can be found: to a start that overtook us, or to one that is
            # just taking over.
            if (found is None and beaten) or (found is not None and body.vanishing(found)):
                beaten = True
                await asyncio.sleep(GIVE_WAY)
                continue
            if found is None or found["State"]["Status"] not in {"created", "running", "paused", "restarting"}:
                return
            identity = found["Id"]
            if found["State"]["Status"] != "created":
                await self._stop_running(identity, grace)
                return
            if not unstarted(found):
                return
            labels = body.labels_to(body.labels_from(found["Config"]["Labels"]), self._installation)
            if _has_services(found):
                labels[body.SERVICES] = "1"
            if await self._starter.bury(name, identity, labels, Reason.CANCELLED, "stopped before it had started"):
                if _has_services(found):
                    await self._starter.services.remove(name)
                return
            beaten = True
        raise TemporaryError(f"container {name} is being started again and again; stop it once more")

    async def _stop_running(self, identity: str, grace: float) -> None:
        try:
            await self._starter.copy_in(identity, body.FOLDER, body.stop_archive())
        except EngineError as error:
            if error.status != 404:
                raise TemporaryError(f"the engine cannot mark {identity[:12]} as stopped: {error}") from error
        sent = asyncio.Event()
        stop = asyncio.create_task(self._ask_to_stop(identity, grace, sent))
        self._stops.add(stop)
        stop.add_done_callback(self._stops.discard)
        # The engine answers when the container has ended; it goes on with it even if we do not wait.
        waiting = asyncio.create_task(sent.wait())
        await asyncio.wait([stop, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if stop.done():
            stop.result()

    async def _ask_to_stop(self, identity: str, grace: float, sent: asyncio.Event) -> None:
        query = {"t": str(math.ceil(grace))}
        try:
            await self._engine.call("POST", f"/containers/{identity}/stop", query=query, timeout=grace + 60, sent=sent)
        except EngineError as error:
            if error.status != 404:
                raise TemporaryError(f"the engine cannot stop {identity[:12]}: {error}") from error

    async def remove(self, name: str) -> None:
        """See the protocol."""
        found = await self._starter.find(name)
        if found is None:
            return
        try:
            await self._engine.call("DELETE", f"/containers/{found['Id']}", query={"force": "1", "v": "1"})
        except EngineError as error:
            if error.status not in {404, 409}:
                raise TemporaryError(f"the engine cannot remove {name}: {error}") from error
        if _has_services(found):
            await self._starter.services.remove(name)

    async def remove_shared_directory(self, name: str) -> None:
        """See the protocol."""
        if not name:
            raise PermanentError("a shared directory has a name", reason=Reason.BAD_INPUT)
        try:
            await self._engine.call("DELETE", f"/volumes/{body.shared_volume(self._installation, name)}")
        except EngineError as error:
            text = f"the engine cannot remove the shared directory {name}: {error}"
            if error.status == 409:
                # A container whose log is not stored yet, and that may take as long as object storage is away.
                raise InUseError(text) from error
            if error.status != 404:
                raise TemporaryError(text) from error

    async def list(self) -> list[Observation]:
        """See the protocol."""
        return await self._reader.everything()

    async def inspect(self, name: str) -> Observation | None:
        """See the protocol."""
        return await self._reader.inspect(name)

    async def watch(self) -> AsyncIterator[Observation]:
        """See the protocol. Whoever watches also removes services whose container has ended or is gone."""
        watch = Watch(self._engine, self._reader, self._starter.services, self._installation)
        try:
            async for observation in watch.run():
                yield observation
        finally:
            await watch.close()

    async def logs(self, name: str, offset: int = 0, *, follow: bool = False) -> AsyncIterator[bytes]:
        """See the protocol. The engine reads from the beginning each time; what lies before `offset` is skipped here."""
        found = await self._starter.find(name)
        if found is None:
            raise KeyError(name)
        started = not follow
        while found is not None:
            status = found["State"]["Status"]
            if not started and unstarted(found):
                await self._starter.changed(found["Id"], 60.0)
            elif not started and body.vanishing(found):
                await asyncio.sleep(GIVE_WAY)
            elif status == "created":
                return
            else:
                started = True
                # Asked before reading: who has ended has written all. A stream that ended early is taken up again.
                over = not follow or status in {"exited", "dead"}
                async for chunk in self._read_log(found["Id"], offset, follow=not over):
                    offset += len(chunk)
                    yield chunk
                if over:
                    return
            found = await self._starter.find(name) or (None if started else await self._created_again(name))

    async def _created_again(self, name: str) -> dict[str, Any] | None:
        """The container in place of one that is gone without having started: who takes over a start creates it anew."""
        for _ in range(round(CREATED_AGAIN_WITHIN / GIVE_WAY)):
            if (found := await self._starter.find(name)) is not None:
                return found
            await asyncio.sleep(GIVE_WAY)
        return None

    async def _read_log(self, identity: str, offset: int, *, follow: bool) -> AsyncIterator[bytes]:
        query = {"stdout": "1", "stderr": "0", "follow": "1" if follow else "0"}
        try:
            async with self._engine.request(
                "GET", f"/containers/{identity}/logs", query=query, timeout=None
            ) as response:
                async for chunk in demultiplexed(response):
                    if offset < len(chunk):
                        yield chunk[offset:]
                    offset = max(0, offset - len(chunk))
        except EngineError as error:
            if error.status not in {404, 409}:
                raise TemporaryError(f"the engine cannot read the log of {identity[:12]}: {error}") from error

    async def ping(self, timeout: float = 10.0) -> None:
        """See the protocol. `timeout` in seconds."""
        try:
            await self._engine.read("/_ping", 1024, timeout=timeout)
        except EngineError as error:
            raise TemporaryError(f"the container engine at {self._engine.host} is not well: {error}") from error

    async def close(self) -> None:
        """See the protocol."""
        for stop in self._stops:
            stop.cancel()
        if self._stops:
            await asyncio.wait(self._stops)
        await self._engine.close()


def _has_services(found: Mapping[str, Any]) -> bool:
    return body.SERVICES in (found["Config"].get("Labels") or {})
