"""The header Range of HTTP (RFC 9110), for one range of bytes."""

from __future__ import annotations

import re

from shared.errors import UserError

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, byte after the last) of what is wanted of `size` bytes.

    None: everything (no header, or one that cannot be read, which RFC 9110 wants ignored). Raises UserError 416.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        start = int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= end:
        raise UserError(f"there are {size} bytes", code="range-not-satisfiable", status=416, details={"size": size})
    return start, end
