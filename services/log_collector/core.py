"""What is said in a log by Hubflow itself: that it was cut, or lacks something. Pure."""

from __future__ import annotations


def limited(kept: bytes, size: int, limit: int) -> tuple[bytes, bool]:
    """What of `kept` still fits into a log that has `size` bytes; with the last line that says so if not all of it does."""
    if size + len(kept) <= limit:
        return kept, False
    room = kept[: max(0, limit - size)]
    line_break = b"" if not room or room.endswith(b"\n") else b"\n"
    return room + line_break + last_line(limit), True


def last_line(limit: int) -> bytes:
    """The end of a log that was cut."""
    size = f"{limit / (1 << 20):g} MiB" if limit >= 1 << 20 else f"{limit} bytes"
    return (
        f"[hubflow] the log ends here: it has reached its limit of {size}. The job goes on. Let it print less, keep large "
        "output as an artifact, or ask the operator for a higher HUBFLOW_LOG_COLLECTOR_LIMIT_BYTES.\n"
    ).encode()


def missing_line(missing: int, printed: int) -> bytes:
    """The end of a log that has not all of what its job printed."""
    return (
        f"\n[hubflow] at least {missing} of the {printed} bytes that this job printed are missing above: whoever ran it has "
        "not kept them until they were read (a node that had rotated the log away?). What must be kept whole is an artifact.\n"
    ).encode()
