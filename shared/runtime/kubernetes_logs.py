"""Reading a pod's log through the API server.

The API has no offsets: each read begins with the first byte that the node still has, and what was read before is skipped here.
What it cannot give back stands in docs/kubernetes.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from shared.errors import TemporaryError
from shared.log import get_logger
from shared.runtime import kubernetes_body as body
from shared.runtime.kubernetes_api import Api, ApiError
from shared.runtime.kubernetes_read import Pod, is_over, observe
from shared.runtime.kubernetes_watch import UNKNOWN, Pods
from shared.runtime.protocol import NEVER_ROTATED, IncompleteLogError
from shared.runtime.results import moment

END_TOLD_WITHIN = 3.0
"""Seconds within which kubelet tells that a container has ended whose log has ended; else the log is taken up again, and
twice as many are waited the next time: each time is a read from the beginning."""
FOLLOWED_AFTER = 0.5
"""Seconds that a running container gets to end before its log is followed: reading an ended one costs its node less."""
SILENT_AFTER_END = 10.0
"""Seconds without output after which a followed log is let go whose container has ended; the rest of it is read at once."""
UNREADABLE = 600.0
"""Seconds after a container's end until which its node is asked for its log again and again."""
NOT_KEPT = 20.0
"""Seconds for which an ended container's log is asked for that its node refuses: its container runtime may be starting."""
ASKED_AGAIN_AFTER = 1.0
ANSWER_WITHIN = 60.0
"""Seconds without a byte after which a log that is not followed is asked for anew."""
SILENCE = 6 * 3600.0
"""Seconds without output after which a followed log is asked for anew (T57)."""
BUFFER = 1 << 16
"""Bytes of a log that are taken in before somebody wants them (twice as many, and what the system hands over at once): one
process follows thousands of logs."""
LOOKED_EVERY = 30.0
"""Seconds after which a pod is looked at again of which the watch brings nothing."""
REMEMBERED = 1024
"""Bytes by which the place in a log is found again that was left in a file which was rotated away."""
BROKEN_OFF = 4096
"""Logs at most whose places are remembered, the latest, until whoever was reading them goes on."""
_STARTED = ("running", "terminated")
_NODE_SAYS = re.compile(
    rb"unable to retrieve container logs for [a-z-]+://[0-9a-f]+|failed to try resolving symlinks in path \"[^\"\n]+\": [^\n]+"
)
"""What kubelet sends in place of a log that it does not have: with status 200, and as if the container had printed it."""
_NODE_BEGINS = (b"unable to retrieve container logs for ", b'failed to try resolving symlinks in path "')
_NODE_SAYS_AT_MOST = 1000
_CANNOT_FOLLOW = re.compile(
    rb"failed to (create fsnotify watcher: |watch directory \"|(open|read|reset seek in) log file \")[^\n]*\Z"
)
"""What kubelet appends to a log that it does not go on to follow, as where its machine has no inotify instance left."""
_log = get_logger("runtime")
Came = TypeVar("Came")


class NotKeptError(TemporaryError):
    """The node answers that it has no such log."""


class _NoLogError(Exception):
    """There is nothing to be read, or not yet."""


class _LeftBehindError(Exception):
    """The newest file of the log is not the one that was read before."""


class _Patience:
    """Waits as long as it takes, until told that something should come within so many seconds each time."""

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._limit: asyncio.Timeout | None = None

    async def within(self, coming: Awaitable[Came]) -> Came:
        """What comes. Raises TimeoutError if nothing did in time."""
        try:
            async with asyncio.timeout(self._seconds) as self._limit:
                return await coming
        finally:
            self._limit = None

    def run_out_in(self, seconds: float) -> None:
        """From now on, also for what is being waited for."""
        self._seconds = seconds
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)


@dataclass(slots=True)
class _Reading:
    """How far one log has been read."""

    offset: int
    skip: int
    """How much of the newest file was read: all that was, until a node rotates it."""
    refusal: str = ""
    """Why the node has not given all the last time."""
    wait: float = END_TOLD_WITHIN
    given_up: bool = False
    refused: float | None = None
    """When an ended container's log was refused for the first time."""
    short: int = 0
    """How often it lacked bytes."""
    left_behind: bool = False
    """The newest file is another one, and where to go on in it is not known yet."""
    last: bytes = b""
    """The last bytes read; empty before this process has read any: where another one has stopped is not verified."""

    def take(self, chunk: bytes) -> None:
        """It was read."""
        self.offset += len(chunk)
        self.skip += len(chunk)
        self.last = (chunk if len(chunk) >= REMEMBERED else self.last + chunk)[-REMEMBERED:]

    def was_the_last_time(self) -> bool:
        """Called after each time. A node that refuses may be coming back; one that sends less has no more (a rotated log)."""
        if not self.refusal:
            self.short += 1
            return self.short > 1
        now = asyncio.get_running_loop().time()
        if self.refused is None:
            self.refused = now
        return now - self.refused > NOT_KEPT


class Logs:
    """Logs of pods. `find` asks the API server for a pod as it is now."""

    def __init__(self, api: Api, pods: Pods, find: Callable[[str], Awaitable[Pod | None]]) -> None:
        self._api = api
        self._pods = pods
        self._find = find
        self._broken_off: dict[str, tuple[str, _Reading]] = {}
        """Name -> uid and place of a log that was not read to its end."""

    async def read(self, name: str, offset: int, *, follow: bool) -> AsyncIterator[bytes]:
        """See `Runtime.logs`."""
        pod = await self._look(name)
        left = self._broken_off.pop(name, None)
        if pod is None:
            raise KeyError(name)
        uid, reading = pod.uid, _Reading(offset, offset)
        if left is not None and (left[0], left[1].offset) == (uid, offset):
            # How much of its newest file was read does not follow from the offset, if a node has rotated it.
            reading = _Reading(offset, left[1].skip, left_behind=left[1].left_behind, last=left[1].last)
        try:
            while pod is not None and not pod.vanishing and not reading.given_up:
                ended = self._ended(pod)  # asked before reading: who has ended has written all
                if _has_started(pod):
                    chunks = self._once(pod, reading, ended=ended, follow=follow)
                    async with contextlib.aclosing(chunks):
                        async for chunk in chunks:
                            yield chunk
                if not follow:
                    return
                pod = await (self._after_end(pod, reading) if ended else self._while_it_runs(pod, reading))
        except BaseException:  # also that of who does not want more now
            self._broken_off[name] = uid, reading
            if len(self._broken_off) > BROKEN_OFF:
                del self._broken_off[next(iter(self._broken_off))]
            raise

    async def _once(self, pod: Pod, reading: _Reading, *, ended: bool, follow: bool) -> AsyncGenerator[bytes, None]:
        reading.refusal = ""
        try:
            if reading.left_behind:
                await self._find_again(pod, reading)
            to_its_end = follow and not ended
            chunks = self._followed(pod, reading) if to_its_end else self._news(pod, reading, follow=False)
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    reading.take(chunk)
                    yield chunk
        except _LeftBehindError:
            reading.left_behind = True
        except _NoLogError as error:
            reading.refusal = str(error)
        except NotKeptError as error:
            if not ended:
                raise
            reading.refusal = str(error)
        except TemporaryError as error:
            if not (ended and self._nobody_has_it(pod)):
                raise
            _log.warning("log cannot be read any more, what was read of it stays", pod=pod.name, error=str(error))
            reading.given_up = True

    async def _after_end(self, pod: Pod, reading: _Reading) -> Pod | None:
        """The pod, to be read again, or None. Raises IncompleteLogError."""
        missing = self._missing(pod, reading)
        if not _has_started(pod) or not (reading.refusal or reading.left_behind or missing > 0):
            return None
        if not reading.was_the_last_time():
            await asyncio.sleep(ASKED_AGAIN_AFTER)
            return await self._look(pod.name)
        _log.warning("a log has no more than was read of it", pod=pod.name, missing=missing, because=reading.refusal)
        if missing > 0:
            raise IncompleteLogError(f"{missing} bytes of the log of {pod.name} cannot be had")
        return None

    async def _find_again(self, pod: Pod, reading: _Reading) -> None:
        """Find the last bytes read in the newest file, which is another one by now; if they are not there, all of it is news.
        Of a young file only its beginning was read, which then are the last of those bytes.

        Who follows slower than a job prints is left behind in a file that was rotated away. What was printed between is lost,
        but the end of a log, which people look for, is not.
        """
        place = at = 0
        held = head = b""
        async with contextlib.aclosing(self._bytes(pod, follow=False)) as chunks:
            async for chunk in chunks:
                window = held + chunk
                # The last of several: rather a gap than something twice.
                if (found := window.rfind(reading.last)) >= 0:
                    place = at - len(held) + found + len(reading.last)
                at += len(chunk)
                head += chunk[: REMEMBERED - len(head)]
                held = window[len(window) - len(reading.last) + 1 :] if len(window) >= len(reading.last) else window
        sizes = range(min(len(head), len(reading.last) - 1), 0, -1)
        place = place or next((size for size in sizes if reading.last.endswith(head[:size])), 0)
        _log.warning("log was rotated, some of it may be missing", pod=pod.name, read=reading.offset, go_on_at=place)
        reading.skip, reading.left_behind = place, False
        reading.last = reading.last[len(reading.last) - min(place, len(reading.last)) :]  # what is in this file

    async def _while_it_runs(self, pod: Pod, reading: _Reading) -> Pod | None:
        """The pod, to be read again, or None if that is not needed."""
        if not _has_started(pod):
            await self._pods.changed(pod.name, pod.version, LOOKED_EVERY)
            return await self._look(pod.name)
        now = await self._over(pod, ASKED_AGAIN_AFTER if reading.left_behind else reading.wait)
        reading.wait = min(2 * reading.wait, LOOKED_EVERY)
        if now is None or now.uid != pod.uid or "terminated" not in now.job:
            return now
        return now if reading.refusal or reading.left_behind or self._missing(now, reading) > 0 else None

    async def _followed(self, pod: Pod, reading: _Reading) -> AsyncGenerator[bytes, None]:
        """The log as it is written. Raises _NoLogError if it is to be asked for again, without following.

        A node may go on with the answer though the container has ended long ago: that is not waited for.
        """
        now = await self._over(pod, FOLLOWED_AFTER)
        if now is None or now.uid != pod.uid or self._ended(now):
            raise _NoLogError("it has ended")
        patience = _Patience()
        waiting = asyncio.create_task(self._end_of(pod), name=f"end of {pod.name}")
        waiting.add_done_callback(lambda _: patience.run_out_in(SILENT_AFTER_END))
        try:
            if reading.last and reading.offset > NEVER_ROTATED:
                # What has been rotated is found out now: followed, a file that is too short only seems to be silent.
                async with contextlib.aclosing(self._news(pod, reading, follow=False)) as chunks:
                    async for written in chunks:
                        yield written
            async with contextlib.aclosing(self._news(pod, reading, follow=True)) as chunks:
                while (chunk := await patience.within(anext(chunks, None))) is not None:
                    yield chunk
        except TimeoutError:
            raise _NoLogError("its node did not end it") from None
        finally:
            waiting.cancel()

    async def _over(self, pod: Pod, seconds: float | None) -> Pod | None:
        """The pod of this name once it has ended, is gone or replaced; or as it is when so many seconds are over.

        Other news of it is no reason to read its log from the beginning again.
        """
        loop = asyncio.get_running_loop()
        begun, left = loop.time(), LOOKED_EVERY
        known: Pod | None = pod
        while known is not None and known.uid == pod.uid and not known.vanishing and not self._ended(known):
            if seconds is not None and (left := min(LOOKED_EVERY, begun + seconds - loop.time())) <= 0:
                break
            await self._pods.changed(pod.name, known.version, left)
            known = await self._look(pod.name)
        return known

    async def _end_of(self, pod: Pod) -> None:
        """Returns when this pod has ended or is gone, whatever becomes of the API server meanwhile."""
        while True:
            try:
                await self._over(pod, None)
                return
            except TemporaryError as error:
                _log.info("whether a pod has ended is not known, it is asked again", pod=pod.name, error=str(error))
                await asyncio.sleep(ASKED_AGAIN_AFTER)

    def _ended(self, pod: Pod) -> bool:
        return is_over(pod, self._api.now())

    def _missing(self, pod: Pod, reading: _Reading) -> int:
        """How many bytes at least the log has beyond those that were read; 0 or less if nobody knows."""
        seen = observe(pod, self._api.now())
        return (seen.log_bytes if seen is not None else 0) - reading.offset

    def _nobody_has_it(self, pod: Pod) -> bool:
        """Is this ended pod's log lost with its node? If that were not bounded, the pod would stay for ever for its log."""
        if "terminated" not in pod.job:
            return True  # over without a container that has ended: its node is gone
        ended = moment(pod.job["terminated"].get("finishedAt"))
        return ended is None or self._api.now() - ended > timedelta(seconds=UNREADABLE)

    async def _look(self, name: str) -> Pod | None:
        """The pod as the watch has brought it; the cluster itself is asked where that does not know it (yet)."""
        await self._pods.changed(name, "", UNKNOWN)
        return (self._pods.get(name) if self._pods.live else None) or await self._find(name)

    async def _news(self, pod: Pod, reading: _Reading, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """The log behind what was read of its newest file. Raises _LeftBehindError if this is not the file it was read from."""
        skip, before = reading.skip, b""
        async with contextlib.aclosing(self._bytes(pod, follow=follow)) as chunks:
            async for chunk in chunks:
                if skip:
                    skipped, chunk = chunk[:skip], chunk[skip:]
                    skip -= len(skipped)
                    before = (before + skipped)[-len(reading.last) :] if reading.last else b""
                    if not skip and before != reading.last:
                        raise _LeftBehindError
                if chunk:
                    yield chunk
        if skip and reading.last and not follow:
            raise _LeftBehindError

    async def _bytes(self, pod: Pod, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """The newest file of the log from its beginning. Raises _NoLogError if it is to be asked for again."""
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log"
        query = {"container": body.JOB, "follow": "true" if follow else "false"}
        try:
            async with self._api.request(
                "GET", path, query=query, idle=SILENCE if follow else ANSWER_WITHIN, buffer=BUFFER
            ) as response:
                words = _words_of_the_job(response.content.iter_any(), pod.name)
                async for chunk in _followed_words(words, pod.name) if follow else words:
                    yield chunk
        except ApiError as error:
            if error.status in {400, 404}:
                raise _NoLogError(f"{error.status} {error}") from error
            raise TemporaryError(f"the log of {pod.name} cannot be read: {error}") from error


def _has_started(pod: Pod) -> bool:
    return any(state in pod.job for state in _STARTED)


async def _words_of_the_job(chunks: AsyncIterator[bytes], name: str) -> AsyncIterator[bytes]:
    """The log as it comes. Raises NotKeptError if these are no job's words but kubelet's, which must be all there is."""
    first: bytes | None = b""
    async for chunk in chunks:
        if first is not None:
            first += chunk
            if len(first) <= _NODE_SAYS_AT_MOST and any(
                first[: len(words)] == words[: len(first)] for words in _NODE_BEGINS
            ):
                continue
            chunk, first = first, None
        yield chunk
    if first:
        if _NODE_SAYS.fullmatch(first):
            raise NotKeptError(f"the node of {name} says: {first.decode(errors='replace')}")
        yield first


async def _followed_words(chunks: AsyncIterator[bytes], name: str) -> AsyncIterator[bytes]:
    """The log as it comes. Raises _NoLogError if it ends with kubelet's words that it cannot follow it.

    If a job has printed such words and nothing after them, they come when the log is read without following.
    """
    held = b""
    async for chunk in chunks:
        chunk, held = held + chunk, b""
        if found := _CANNOT_FOLLOW.search(chunk, max(0, len(chunk) - _NODE_SAYS_AT_MOST)):
            chunk, held = chunk[: found.start()], found[0]
        if chunk:
            yield chunk
    if held:
        _log.warning("the node does not follow a log, it is read again", pod=name, says=held.decode(errors="replace"))
        raise _NoLogError(held.decode(errors="replace"))
