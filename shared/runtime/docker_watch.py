"""Watching a Docker-compatible engine: its events, and a look at the whole list now and then.

Events make it quick, the list makes it true: it is read at the beginning, after each break of the event stream, and every
few seconds, since a connection may be dead without anybody being told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from shared.errors import TemporaryError
from shared.log import get_logger
from shared.runtime import docker_body as body
from shared.runtime.docker_read import Reader, living
from shared.runtime.docker_services import Services
from shared.runtime.engine import Engine, EngineError, json_lines
from shared.runtime.protocol import Observation, Phase
from shared.runtime.results import moment
from shared.runtime.telling import Telling

LIST_EVERY = 10.0
RENEW_EVERY = 60.0
"""Seconds after which the event stream is asked for anew, in case it is dead."""
_EVENTS = ["create", "start", "die", "destroy"]
_log = get_logger("runtime")


class Watch:
    """One watch. `run` may be called once; `close` after it."""

    def __init__(self, engine: Engine, reader: Reader, services: Services, installation: str) -> None:
        self._engine = engine
        self._reader = reader
        self._services = services
        self._installation = installation
        self._telling = Telling()
        self._seen: asyncio.Queue[tuple[str, Observation | None] | BaseException] = asyncio.Queue(1000)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: dict[str, asyncio.Task[None]] = {}
        self._since = 0
        self._missing: set[str] = set()

    async def run(self) -> AsyncIterator[Observation]:
        """See `Runtime.watch`."""
        await self._note_time()
        self._spawn(self._relist_forever)
        self._spawn(self._follow_forever)
        while True:
            seen = await self._seen.get()
            if isinstance(seen, BaseException):
                raise TemporaryError(f"the watch of {self._engine.host} broke: {seen}") from seen
            for news in self._telling.news(*seen):
                yield news

    async def close(self) -> None:
        """End all that is going on."""
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _spawn(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(self._reporting(work, *arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reporting(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """What goes wrong in a task is raised by `run`."""
        try:
            await work(*arguments)
        except Exception as error:
            await self._seen.put(error)

    async def _note_time(self) -> None:
        """The engine's clock, from which on events are wanted: read before the list, so that nothing falls between."""
        now = moment((await self._engine.call("GET", "/info")).get("SystemTime")) or datetime.now(UTC)
        self._since = int(now.timestamp() * 1e9)

    # the list

    async def _relist_forever(self) -> None:
        while True:
            await self._relist()
            await asyncio.sleep(LIST_EVERY)

    async def _relist(self) -> None:
        briefs = {brief["Names"][0].lstrip("/"): brief for brief in await self._reader.briefs() if brief.get("Names")}
        fresh = [brief for name, brief in briefs.items() if self._telling.told(name, brief["Id"]) is not Phase.FINISHED]
        for told in asyncio.as_completed([self._tell_brief(brief) for brief in fresh]):
            await told
        await self._tell_missing(set(self._telling.names()) - briefs.keys())
        await self._services.remove_left_behind(briefs)

    async def _tell_brief(self, brief: Mapping[str, Any]) -> None:
        seen = await self._reader.whole(brief)
        if seen is not None:
            await self._seen.put((seen.name, seen))

    async def _tell_missing(self, missing: set[str]) -> None:
        # Who takes over a half-done start deletes a container and creates it again: gone is who is missing twice.
        for name in missing & self._missing:
            await self._seen.put((name, await self._reader.inspect(name)))
        self._missing = missing

    # the events

    async def _follow_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_EVERY):
                    await self._follow()
                    _log.warning("event stream ended", engine=self._engine.host)
                    # Raises TemporaryError if the engine is away; otherwise catches up.
                    await self._relist()

    async def _follow(self) -> None:
        query = body.event_query(_EVENTS, installation=self._installation, since=self._since)
        try:
            async with self._engine.request("GET", "/events", query=query, timeout=None) as response:
                async for event in json_lines(response):
                    await self._hear(event)
                    self._since = max(self._since, int(event.get("timeNano", 0)) + 1)
        except EngineError as error:
            raise TemporaryError(f"the engine tells no events: {error}") from error

    async def _hear(self, event: Mapping[str, Any]) -> None:
        action, identity = event["Action"], event["Actor"]["ID"]
        attributes = event["Actor"]["Attributes"]
        name = attributes["name"]
        if action in {"create", "start"}:
            await self._seen.put((name, living(name, identity, attributes, created=action == "create")))
        elif action == "die":
            self._ends[identity] = task = self._spawn(self._tell_end, name, identity, attributes)
            task.add_done_callback(lambda _: self._ends.pop(identity, None))
            if body.SERVICES in attributes:
                self._spawn(self._services.remove, name)
        elif action == "destroy":
            self._spawn(self._tell_destroyed, name, identity)

    async def _tell_end(self, name: str, identity: str, attributes: Mapping[str, str]) -> None:
        seen = None
        if attributes.get("exitCode") == "0":
            seen = await self._reader.succeeded(name, identity, body.labels_from(attributes))
        seen = seen or await self._reader.inspect(identity)
        if seen is not None:
            await self._seen.put((name, seen))

    async def _tell_destroyed(self, name: str, identity: str) -> None:
        if (end := self._ends.get(identity)) is not None:
            await asyncio.wait([end])
        if self._telling.told(name, identity) is Phase.PENDING:
            # Perhaps replaced in the next moment; the list will tell.
            return
        await self._seen.put((name, await self._reader.inspect(name)))
