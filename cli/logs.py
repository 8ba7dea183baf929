"""Reading the logs of jobs: whole, followed with resume, the end only, several at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Thread

from cli.api import Api, Refused, Unreachable

RESUME_FOR = 60.0
"""Seconds that a broken connection is tried again before giving up."""
_SILENCE = 3600.0
"""Seconds a followed job may print nothing."""


def read(api: Api, run: str, job: str, *, attempt: int | None = None, follow: bool = False) -> Iterator[bytes]:
    """The log of a job in chunks, byte for byte. With `follow`, until the job has ended; a broken connection is resumed
    where it broke. Raises Refused, or Unreachable after RESUME_FOR seconds in vain."""
    offset, pause, broken_since = 0, 0.2, 0.0
    while True:
        try:
            query = {"offset": offset or None, "attempt": attempt, "follow": True if follow else None}
            timeout = _SILENCE if follow else 60.0
            with api.stream("runs", run, "jobs", job, "log", query=query, timeout=timeout) as stream:
                for chunk in stream.chunks():
                    offset += len(chunk)
                    pause, broken_since = 0.2, 0.0
                    yield chunk
            return
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and error.status not in {429, 503}:
                raise
            broken_since = broken_since or time.monotonic()
            if time.monotonic() - broken_since > RESUME_FOR:
                raise
            time.sleep(pause)  # the server is away: there is nothing to wait on
            pause = min(pause * 2, 5.0)


def text_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines as they become whole; the last one also without its newline."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace").rstrip("\r")


STORED_WITHIN = 10.0
"""Seconds that the end of a log may take after the end of its job."""


def last_lines(api: Api, run: str, job: str, amount: int) -> list[str]:
    """The end of a log; empty if there is none to be had. A run may be over a moment before its logs are stored: `follow` waits
    for that."""
    try:
        data = api.call(
            "GET", "runs", run, "jobs", job, "log", query={"tail": 64 * 1024, "follow": True}, timeout=STORED_WITHIN
        )
    except (Refused, Unreachable):
        return []
    return str(data or "").splitlines()[-amount:]


class Tails:
    """Follows the logs of several jobs at once, each on a thread and a connection of its own."""

    def __init__(self, api: Api, run: str, say: Callable[[str, str], None]) -> None:
        """`say(job, line)` is called from several threads."""
        self._api, self._run, self._say = api, run, say
        self._threads: dict[tuple[str, int], Thread] = {}

    def start(self, job: str, attempt: int) -> None:
        """Follow an attempt of a job, once."""
        if (job, attempt) in self._threads:
            return
        thread = Thread(target=self._follow, args=(job, attempt), daemon=True, name=f"log of {job}")
        self._threads[(job, attempt)] = thread
        thread.start()

    def finish(self, within: float) -> None:
        """Wait until all logs are read to their end, up to `within` seconds."""
        deadline = time.monotonic() + within
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _follow(self, job: str, attempt: int) -> None:
        api = self._api.again()
        try:
            for line in text_lines(read(api, self._run, job, attempt=attempt, follow=True)):
                self._say(job, line)
        except (Refused, Unreachable) as error:
            self._say(job, f"(its log cannot be read: {error.message})")
        finally:
            api.close()
