"""Services beside a container on a Docker-compatible engine: containers that share its network, start before it and go with it.

A container that does nothing keeps the network, so that it outlasts each of them. All names are derived from the
container's, so that a second start finds what a first one has left; labels say what they are there for. Nothing of this is a
lock: that is the name of the container itself, which `docker_start` holds meanwhile. Who watches the engine removes what has
outlived its container.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from shared.errors import PermanentError, TemporaryError
from shared.runtime import docker_body as body
from shared.runtime.engine import Engine, EngineError, demultiplexed
from shared.runtime.protocol import ContainerSpec, ServiceSpec
from shared.runtime.results import last_words
from shared.states import Reason

LOOK_EVERY = 0.5
"""Seconds between two looks at a service that is not ready."""
ASK_TIMEOUT = 20.0
LEFT_BEHIND = 60.0
"""Seconds after which services without their container count as left behind. (It is replaced in a moment, while it starts.)"""
_OVER = {"exited", "dead"}

Create = Callable[[str, Mapping[str, Any]], Awaitable[str | None]]
Pull = Callable[[str, Mapping[str, str] | None], Awaitable[None]]


class Services:
    """All services of one installation on one engine. `always`: images are pulled even if they are there."""

    def __init__(self, engine: Engine, installation: str, create: Create, pull: Pull, *, always: bool) -> None:
        self._engine = engine
        self._installation = installation
        self._create = create
        self._pull = pull
        self._always = always
        self._since: dict[str, float] = {}
        """Id of a service that is not ready -> since when we wait (monotonic seconds). A start that took too long goes on."""
        self._missing: dict[str, float] = {}
        """Name of a container that is not there but has services -> since when we know."""

    async def up(self, spec: ContainerSpec, volume: str, log: Mapping[str, Any]) -> None:
        """Start what is missing, one after the other, and wait until each is ready.

        Raises PermanentError (ImagePull, StartFailed) for what will never be ready, TemporaryError for a troubled engine.
        """
        if any(each["State"] not in {"running", "created"} for each in await self._list(body.SERVICE_OF, spec.name)):
            await self.remove(spec.name)  # of an earlier start: the network may be gone with what has ended
        keeper = await self._started(body.network_name(spec.name), body.network(spec, self._installation, volume), None)
        for service in spec.services:
            content = body.service(spec, service, self._installation, log)
            name = body.service_name(spec.name, service)
            identity = await self._started(name, content, service.registry_auth)
            await self._ready(service, identity, keeper)

    async def remove(self, name: str) -> None:
        """Remove all services of the container of this name."""
        for found in await self._list(body.SERVICE_OF, name):
            self._since.pop(found["Id"], None)
            try:
                await self._engine.call("DELETE", f"/containers/{found['Id']}", query={"force": "1", "v": "1"})
            except EngineError as error:
                if error.status not in {404, 409}:
                    raise TemporaryError(f"the engine cannot remove services of {name}: {error}") from error

    async def remove_left_behind(self, containers: Mapping[str, Mapping[str, Any]]) -> None:
        """Remove services whose container has ended, or is not there for a while. `containers`: all, as the engine lists."""
        owners = {
            found["Labels"][body.SERVICE_OF]
            for found in await self._list(body.SERVICE_INSTALLATION, self._installation)
        }
        now = time.monotonic()
        self._missing = {name: self._missing.get(name, now) for name in owners - containers.keys()}
        for name in owners:
            brief = containers.get(name)
            if brief is None:
                over = now - self._missing[name] > LEFT_BEHIND
            else:
                over = brief["State"] in _OVER or body.ENDED_REASON in (brief["Labels"] or {})
            if over:
                await self.remove(name)

    async def _list(self, label: str, value: str) -> list[dict[str, Any]]:
        query = {"all": "1", "filters": json.dumps({"label": [f"{label}={value}"]})}
        try:
            found: list[dict[str, Any]] = await self._engine.call("GET", "/containers/json", query=query)
        except EngineError as error:
            raise TemporaryError(f"the engine cannot list services: {error}") from error
        return found

    # starting

    async def _started(self, name: str, content: dict[str, Any], auth: Mapping[str, str] | None) -> str:
        """Id of the running container of this name, made from `content` unless it is there."""
        try:
            identity = await self._created(name, content, auth) or await self._id_of(name)
            await self._engine.call("POST", f"/containers/{identity}/start", timeout=ASK_TIMEOUT)
        except EngineError as error:
            if error.status in {404, 409}:
                raise TemporaryError(f"service {name} was removed while it started: {error}") from error
            raise PermanentError(f"service {name} cannot be started: {error}", reason=Reason.START_FAILED) from error
        return identity

    async def _created(self, name: str, content: dict[str, Any], auth: Mapping[str, str] | None) -> str | None:
        if self._always and content["Image"] != body.EMPTY_IMAGE and not await self._is_there(name):
            await self._pull(content["Image"], auth)
        try:
            return await self._create(name, content)
        except EngineError as error:
            if error.status == 400:
                reason = Reason.IMAGE_PULL if "reference" in str(error) else Reason.BAD_INPUT
                text = f"service {name} with image {content['Image']} cannot be created: {error}"
                raise PermanentError(text, reason=reason) from error
            if error.status != 404:
                raise
        await self._pull(content["Image"], auth)
        return await self._create(name, content)

    async def _is_there(self, name: str) -> bool:
        try:
            await self._id_of(name)
        except EngineError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _id_of(self, name: str) -> str:
        return str((await self._engine.call("GET", f"/containers/{name}/json"))["Id"])

    # becoming ready

    async def _ready(self, service: ServiceSpec, identity: str, keeper: str) -> None:
        if not (service.port or service.check):
            return
        since = self._since.setdefault(identity, time.monotonic())
        try:
            while not await self._is_ready(service, identity, keeper):
                await self._check_alive(service, identity)
                if time.monotonic() - since > service.ready_seconds:
                    words = last_words(await self._words(identity))
                    text = f"service {service.name} was not ready within {service.ready_seconds:g} s.{words}"
                    raise PermanentError(text, reason=Reason.START_FAILED)
                await asyncio.sleep(LOOK_EVERY)
        except EngineError as error:
            raise TemporaryError(f"the engine cannot ask service {service.name}: {error}") from error
        self._since.pop(identity, None)

    async def _is_ready(self, service: ServiceSpec, identity: str, keeper: str) -> bool:
        if service.check:
            return await self._run_in(identity, list(service.check)) == 0
        return await self._run_in(keeper, [f"{body.BIN}/hubflow-wrapper", "dial", str(service.port)]) == 0

    async def _run_in(self, identity: str, command: list[str]) -> int:
        """Status of a command inside a container; what it prints is nobody's business."""
        wanted = {"Cmd": command, "AttachStdout": True, "AttachStderr": True}
        try:
            made = await self._engine.call("POST", f"/containers/{identity}/exec", body=wanted, timeout=ASK_TIMEOUT)
            path = f"/exec/{made['Id']}"
            start = {"Detach": False, "Tty": False}
            async with self._engine.request("POST", f"{path}/start", body=start, timeout=ASK_TIMEOUT) as response:
                async for _ in response.content.iter_any():
                    pass
            code = (await self._engine.call("GET", f"{path}/json"))["ExitCode"]
        except EngineError as error:
            if error.status == 409:
                return 1  # it does not run, which is looked at next
            raise
        return 1 if code is None else int(code)

    async def _check_alive(self, service: ServiceSpec, identity: str) -> None:
        state = (await self._engine.call("GET", f"/containers/{identity}/json"))["State"]
        if state["Status"] in _OVER:
            words = last_words(await self._words(identity))
            text = f"service {service.name} ended with {state['ExitCode']} before it was ready.{words}"
            raise PermanentError(text, reason=Reason.START_FAILED)

    async def _words(self, identity: str) -> bytes:
        words = b""
        query = {"stdout": "1", "stderr": "1", "tail": "20"}
        async with self._engine.request("GET", f"/containers/{identity}/logs", query=query) as response:
            async for chunk in demultiplexed(response):
                words = (words + chunk)[-4096:]
        return words
