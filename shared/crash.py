"""Named places at which a process can be made to die, for tests of what a crash leaves behind.

`HUBFLOW_CRASH_AT=after-commit:3` lets the process kill itself (SIGKILL, so nothing is tidied up) when it comes to that
point for the third time after it has become ready. Without the setting each point is a call of an empty function.

The points stand where durability changes hands: in the database helpers, the relay of the outbox and the acknowledgement of
the bus. So every handler of every service passes them, also those that are yet to be written.
`tests/e2e/test_crash_points.py` goes through all of them for each service.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Callable


class Point(enum.StrEnum):
    BEFORE_COMMIT = "before-commit"
    """All statements of a transaction are done, nothing is committed: it must be as if it had never begun."""
    AFTER_COMMIT = "after-commit"
    """Committed, and nothing of it published: a sweep must publish it."""
    AFTER_WRITE = "after-write"
    """A change that is one statement and tells no event (a claim, a piece of a log) is committed; nobody knows of it yet."""
    AFTER_PUBLISH = "after-publish"
    """The broker has confirmed an event, nobody has marked it as sent: it is published again, and must have no effect."""
    AFTER_MARK = "after-mark"
    """Events are marked as sent."""
    BEFORE_ACK = "before-ack"
    """A message is handled (or put off, or parked), and not acknowledged: it is delivered again, and must have no effect."""
    AFTER_ACK = "after-ack"
    """A message is acknowledged."""


def _nothing(point: Point) -> None:
    pass


_reached: Callable[[Point], None] = _nothing


def reached(point: Point) -> None:
    """The process has come to this point."""
    _reached(point)


def parse(text: str) -> tuple[Point, int]:
    """The point, and at which time it counts. Raises ValueError that says what there is."""
    name, _, times = text.partition(":")
    try:
        return Point(name), int(times or 1)
    except ValueError:
        raise ValueError(
            f"HUBFLOW_CRASH_AT={text!r}: expected POINT or POINT:TIMES, with one of {', '.join(Point)}"
        ) from None


def arm(text: str) -> None:
    """From now on the process dies as `text` says; "": it does not."""
    global _reached
    if not text:
        _reached = _nothing
        return
    wanted, left = parse(text)

    def count(point: Point) -> None:
        nonlocal left
        if point is wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    _reached = count
