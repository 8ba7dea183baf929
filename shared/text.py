"""Text that comes from outside and has to be kept: PostgreSQL, msgpack and environment variables take neither NUL characters
nor halves of surrogate pairs, and JSON may bring both; and no index of PostgreSQL takes text of any length."""

from __future__ import annotations

import hashlib
import re
from typing import Any

REPLACEMENT = "\ufffd"
INDEXED = 200
"""Characters of a text that an index holds as they are. A row of a B-tree has at most 2704 bytes, other columns included."""
_UNFIT = re.compile("[\0\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# An escaped backslash before `u0000` makes it plain text.
_NUL_IN_JSON = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def is_fit(text: str) -> bool:
    """Whether it can be kept as it is."""
    return "\0" not in text and (text.isascii() or _UNFIT.search(text) is None)


def fit(value: Any) -> Any:
    """A document of JSON with U+FFFD in place of what cannot be kept, in keys and values."""
    if isinstance(value, str):
        return value if is_fit(value) else _UNFIT.sub(REPLACEMENT, value)
    if isinstance(value, dict):
        return {fit(key): fit(item) for key, item in value.items()}
    if isinstance(value, list):
        return [fit(item) for item in value]
    return value


def fit_json(text: str) -> str:
    """The same for JSON that is already written out."""
    if "\\u0000" in text:
        text = _NUL_IN_JSON.sub(rf"\1{REPLACEMENT}", text)
    return text if text.isascii() else _SURROGATE.sub(REPLACEMENT, text)


def may_be_unfit(raw: bytes | str) -> bool:
    """Whether this JSON can hold what cannot be kept: only then is it worth while to look."""
    if isinstance(raw, str):
        return "\\u0000" in raw or "\\ud" in raw or "\\uD" in raw
    return b"\\u0000" in raw or b"\\ud" in raw or b"\\uD" in raw


def indexable(text: str) -> str:
    """The text, or the beginning of a long one with its digest: short enough for an index, and different for different texts.

    What is shortened is longer than what is kept as it is, so that no text can be mistaken for a shortened one.
    """
    return text if len(text) <= INDEXED else f"{text[:INDEXED]}~{hashlib.sha256(text.encode()).hexdigest()}"
