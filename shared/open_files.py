"""How many files and connections a process may have open: as many as the system lets it have.

Each follower of a log and each reader of a stream is one or two of them, and most machines and containers begin a process
with 1024, though it may raise that by itself.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_GIVEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_all() -> None:
    """Raise this process's soft limit to the hard one, where that can be: macOS says "unlimited", and refuses it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def as_given() -> Iterator[None]:
    """What is born meanwhile may have as many as this process was started with: programs that use select() break with more
    than 1024. It is the limit of all threads, so not for long: one that opens something just then may find none left."""
    raised, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_GIVEN, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
