"""What this process knows about the installation's pods: a list, kept up to date by a watch. All who ask share it.

    list (with a version) -> watch from that version -> 410 or lost: list again, and tell what is different

The watch is broken off when it has been silent for longer than the server's bookmarks ever are (T16), and taken up at the last
version heard of. An event that is no news, by its version, is passed over (T18); a pod's uid tells it from a later one of its
name (T21).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shared.errors import HubflowError, TemporaryError
from shared.log import get_logger
from shared.runtime import kubernetes_body as body
from shared.runtime.kubernetes_api import Api, ApiError
from shared.runtime.kubernetes_read import Pod, pod_of

PAGE = 500
IDLE = 75.0
"""Seconds without a byte after which a watch counts as dead; the server sends a bookmark every minute."""
SHORTEST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
"""Seconds before a watch is asked for again that was refused, or that has ended and brought nothing."""
UNKNOWN = 1.0
"""Seconds to wait at most for news of a pod that the watch does not know: it is gone, or about to be told."""
_log = get_logger("runtime")


class Ear:
    """What one listener has not heard yet: of each pod its latest state, and its last one if it vanished."""

    def __init__(self) -> None:
        self._news: dict[str, list[Pod | None]] = {}
        self._happened = asyncio.Event()
        self._failure: Exception | None = None

    def tell(self, name: str, pod: Pod | None) -> None:
        """`pod` None: it is gone."""
        states = self._news.setdefault(name, [])
        if states and states[-1] is not None and pod is not None and states[-1].uid == pod.uid:
            states[-1] = pod
        else:
            states.append(pod)
        self._happened.set()

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self._failure = error
        self._happened.set()

    async def hear(self, timeout: float | None = None) -> dict[str, list[Pod | None]]:
        """What has happened since the last call; empty after `timeout` seconds without anything. Raises TemporaryError."""
        try:
            async with asyncio.timeout(timeout):
                await self._happened.wait()
        except TimeoutError:
            return {}
        news, self._news = self._news, {}
        if not news and self._failure is not None:
            raise TemporaryError(f"the watch of the cluster's pods broke: {self._failure}") from self._failure
        if self._failure is None:
            self._happened.clear()
        return news


class Pods:
    """The pods of one installation, in one namespace or (`namespace` "") in all. Begins when somebody asks, ends by `close`."""

    def __init__(self, api: Api, installation: str, namespace: str, idle: float = IDLE) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        self._selector = body.selector(installation)
        self._idle = idle
        self._pods: dict[str, Pod] = {}
        self._ears: set[Ear] = set()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._synced = asyncio.Event()
        self._version = ""
        """The last one heard of, by the list or by an event."""
        self._pause = 0.0
        """Seconds before the next watch; 0 once one has brought something."""
        self.relists = 0
        """How often all pods were listed; more than once means that a watch could not be taken up."""

    def get(self, name: str) -> Pod | None:
        """As far as is known here; only while `synced`."""
        return self._pods.get(name)

    def all(self) -> list[Pod]:
        """All that are known."""
        return list(self._pods.values())

    async def synced(self) -> None:
        """Wait until all pods are known. Raises TemporaryError if the API server does not answer."""
        self.begin()
        with self.listen() as ear:
            while not self._synced.is_set():
                await ear.hear(0.5)

    async def changed(self, name: str, version: str, timeout: float) -> None:
        """Wait until this pod is another one than of this version, or is gone, or `timeout` seconds are over."""
        self.begin()
        known = self._pods.get(name)
        if self.live and known is not None and known.version != version:
            return
        if known is None:
            # Gone, or so new that the watch has not brought it: whoever asked at once would ask again and again.
            timeout = min(timeout, UNKNOWN)
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, []).append(future)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return
        finally:
            self._drop(name, future)

    def _drop(self, name: str, future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(name, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waiting.pop(name, None)

    @property
    def live(self) -> bool:
        """Is what is known here kept up to date?"""
        return self._synced.is_set() and self._task is not None and not self._task.done()

    @contextmanager
    def listen(self) -> Iterator[Ear]:
        """An ear that hears of every pod that is there, and of each change from now on."""
        self.begin()
        ear = Ear()
        for pod in self._pods.values():
            ear.tell(pod.name, pod)
        self._ears.add(ear)
        try:
            yield ear
        finally:
            self._ears.discard(ear)

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def begin(self) -> None:
        """Begin to watch, unless it is being done; nobody waits for it."""
        if self._task is None or self._task.done():
            self._synced.clear()
            self._pods.clear()
            self._task = asyncio.create_task(self._run(), name="pods")

    async def _run(self) -> None:
        try:
            while True:
                await self._list()
                self._synced.set()
                await self._watch()
        except Exception as error:
            # Whoever listens is told, and begins anew; a bug is a failure of the watch, too (T17).
            if not isinstance(error, HubflowError):
                _log.exception("watch of pods failed")
            for ear in self._ears:
                ear.fail(error)
        finally:
            self._synced.clear()

    async def _list(self) -> None:
        """Read all pods, tell what is different from what was known."""
        self.relists += 1
        found: dict[str, Pod] = {}
        query = {"labelSelector": self._selector, "limit": str(PAGE)}
        while True:
            page = await self._get(query)
            found |= {pod.name: pod for item in page["items"] if (pod := _read(item)) is not None}
            if not (more := page["metadata"].get("continue")):
                break
            query["continue"] = more
        self._version = str(page["metadata"]["resourceVersion"])
        for name in self._pods.keys() - found.keys():
            self._forget(name)
        for pod in found.values():
            self._take(pod)

    async def _get(self, query: Mapping[str, str]) -> Any:
        try:
            return await self._api.call("GET", self._path, query=query)
        except ApiError as error:
            # 410 of an old page as well: begin again.
            raise TemporaryError(f"pods cannot be listed: {error}") from error

    async def _watch(self) -> None:
        """Until the server has forgotten the version, or says something that we do not understand."""
        while True:
            query = {
                "labelSelector": self._selector,
                "watch": "1",
                "allowWatchBookmarks": "true",
                "resourceVersion": self._version,
                "timeoutSeconds": str(random.randint(240, 300)),  # noqa: S311 - many need not reconnect at once
            }
            brought = False
            try:
                async with self._api.request("GET", self._path, query=query, idle=self._idle) as response:
                    async for event in _events(response):
                        if not self._hear(event):
                            # A forgotten version is the server's daily bread: the first time the list is read at once.
                            await self._rest(0.0)
                            return
                        self._pause, brought = 0.0, True
                if not brought:
                    # As of a proxy that does not let answers last.
                    await self._rest(SHORTEST_PAUSE)
            except ApiError as error:
                _log.warning("watch refused, pods are listed again", status=error.status, error=str(error))
                await self._rest(SHORTEST_PAUSE)
                return
            except TemporaryError as error:
                _log.info("watch broken, taken up where it was", error=str(error))
                await self._rest(max(SHORTEST_PAUSE, error.delay or 0.0))
                # The server itself may be away: this waits until it answers, or says that it does not.
                await self._api.call("GET", "/version")

    async def _rest(self, least: float) -> None:
        """Before the server is asked again: at least so many seconds, and longer each time until a watch brings something."""
        await asyncio.sleep(max(least, self._pause))
        self._pause = min(max(2 * self._pause, SHORTEST_PAUSE), LONGEST_PAUSE)

    def _hear(self, event: Mapping[str, Any]) -> bool:
        """Take in one event. False: the list must be read again (T15, T22)."""
        kind, document = event["type"], event["object"]
        if kind == "ERROR":
            _log.info("watch over, pods are listed again", code=document.get("code"), error=document.get("message"))
            return False
        version = str(document["metadata"]["resourceVersion"])
        if _older(version, self._version):
            # Repeated or late: of a pod that is gone it would make one that never goes.
            return True
        self._version = version
        if kind in {"ADDED", "MODIFIED", "DELETED"} and (pod := _read(document)) is not None:
            known = self._pods.get(pod.name)
            if kind != "DELETED":
                self._take(pod)
            elif known is None or known.uid == pod.uid:
                self._take(pod)
                self._forget(pod.name)
        return True

    def _take(self, pod: Pod) -> None:
        known = self._pods.get(pod.name)
        if known is not None and known.uid == pod.uid and _older(pod.version, known.version):
            return
        self._pods[pod.name] = pod
        self._tell(pod.name, pod)

    def _forget(self, name: str) -> None:
        self._pods.pop(name, None)
        self._tell(name, None)

    def _tell(self, name: str, pod: Pod | None) -> None:
        for ear in self._ears:
            ear.tell(name, pod)
        for future in self._waiting.pop(name, []):
            if not future.done():
                future.set_result(None)


def _read(document: Mapping[str, Any]) -> Pod | None:
    """None for a pod that cannot be read, which is logged: one that is odd makes nobody blind for the others (T17)."""
    try:
        return pod_of(document)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        _log.warning("pod cannot be read, it is passed over", pod=document["metadata"].get("name"), error=repr(error))
        return None


def _older(one: str, other: str) -> bool:
    """Is `one` a repeated or late event (T18)? Versions are numbers, by Kubernetes' own word since 1.35; where not: no."""
    return one.isdigit() and other.isdigit() and int(one) <= int(other)


async def _events(response: Any) -> AsyncIterator[Mapping[str, Any]]:
    """The lines of a watch, as they come; a last one that was cut is dropped."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
