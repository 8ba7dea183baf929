"""From a wrapper's result document to the observation that a container has finished; the same on every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shared.runtime.protocol import Observation, Phase

RESULT_LIMIT = 1 << 19
"""Bytes that a result document may have where it is an ordinary file (reserved at the start); Kubernetes allows 4096."""


def finished(
    name: str,
    uid: str,
    labels: Mapping[str, str],
    result: Mapping[str, Any],
    *,
    reason: str = "",
    message: str = "",
    exit_code: int | None = None,
    keeps_crlf: bool = True,
) -> Observation:
    """A FINISHED observation. `exit_code` is the container's own, for when the result names none.

    `keeps_crlf`: does the runtime keep a log's line ends with a carriage return as they are?
    """
    timings = result.get("timings")
    if not isinstance(timings, Mapping):
        timings = {}  # a job can write to the file that its result comes from
    inner = result.get("exit_code")
    return Observation(
        name,
        uid,
        Phase.FINISHED,
        labels,
        reason=reason,
        message=message or str(result.get("message") or ""),
        exit_code=inner if inner is not None else exit_code,
        started_at=moment(timings.get("started_at")),
        finished_at=moment(timings.get("finished_at")),
        result=result,
        log_bytes=max(0, _bytes(result.get("log_bytes")) - (0 if keeps_crlf else _bytes(result.get("log_crlf")))),
    )


def _bytes(count: object) -> int:
    """A job can write to the file that its result comes from: what is no count is none."""
    return count if isinstance(count, int) and 0 < count < 1 << 62 else 0


def moment(text: object) -> datetime | None:
    """An RFC 3339 time with any number of digits, or None for anything else, for one without zone, and for Go's zero time."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo is not None else None


def last_words(words: bytes) -> str:
    """What a wrapper that left no result said at its end, to be appended to a message; "" if it said nothing."""
    text = words.decode("utf-8", "replace").strip()
    return f" Its last words: {text[-1000:]}" if text else ""
