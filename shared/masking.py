"""Masking of secrets in a stream or in a document: pure.

A secret is masked as it is, in base64 (as a whole, in the lines that `base64` and PEM make of it, and inside something larger,
such as `user:password`), in a URL, in JSON, and line by line where it has several lines. Secrets of one to three characters are
left alone: masking them would blank the log and hide nothing (T62).
"""

from __future__ import annotations

import base64
import bisect
import json
import re
import string
import urllib.parse
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MASK = b"***"
SHORTEST = 4
SHORTEST_LINE = 6
SHORTEST_BASE64 = 8
BASE64_LINES = (76, 64)
"""Characters of a line of base64: of MIME and GNU's `base64`, and of PEM."""
_ALPHABET = string.ascii_letters.encode() + string.digits.encode() + b"+/"
_IS_BASE64 = bytes(ord("a") if byte in _ALPHABET else ord(" ") for byte in range(256))
_RUN = b"a" * min(BASE64_LINES)
FEW = 64
"""Places in a text that are compared one by one with a pattern."""
LONGEST_HOLD = 4096
"""Bytes held back at most beyond twice the longest secret, when matches overlap one another without end."""
_URL_PASSWORD = re.compile(r"(://[^\s/?#@:]*:)[^\s/?#]+@")


@dataclass(frozen=True, slots=True)
class Masked:
    """What may be shown, and how many raw bytes it stands for."""

    kept: bytes
    consumed: int


def patterns_of(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """All byte strings that give a secret away, longest first."""
    found: set[bytes] = set()
    for secret in secrets:
        value = secret.strip()
        if len(value) < SHORTEST:
            continue
        found.update(_spellings(value))
        found.update(_base64_lines(value))
        lines = [line.strip() for line in value.splitlines()]
        if len(lines) > 1:
            for line in lines:
                if len(line) >= SHORTEST_LINE:
                    found.update(_spellings(line))
            found.add("\r\n".join(value.splitlines()).encode("utf-8", "replace"))
    return tuple(sorted(found, key=lambda pattern: (-len(pattern), pattern)))


def _spellings(value: str) -> set[bytes]:
    raw = value.encode("utf-8", "replace")
    spellings = {raw}
    for written in (
        urllib.parse.quote(value),
        urllib.parse.quote(value, safe=""),
        urllib.parse.quote_plus(value),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
    ):
        spellings.add(written.encode("utf-8", "replace"))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            spellings.add(_inner_base64(raw, shift, encode))
    return {spelling for spelling in spellings if len(spelling) >= SHORTEST}


def _inner_base64(raw: bytes, shift: int, encode: object) -> bytes:
    """The part of the base64 form that does not depend on what stands around it, `shift` bytes after a group's begin."""
    encoded: bytes = encode(b"\0" * shift + raw)  # type: ignore[operator]
    first = (shift * 8 + 5) // 6
    last = (shift + len(raw)) * 8 // 6
    inner = encoded[first:last]
    return inner if len(inner) >= SHORTEST_BASE64 else b""


def _base64_lines(value: str) -> set[bytes]:
    """The lines of its base64 form. What follows the secret, such as a line's end, may change the end of the last one."""
    encoded = _inner_base64(value.encode("utf-8", "replace"), 0, base64.b64encode)
    lines = {encoded[at : at + width] for width in BASE64_LINES for at in range(0, len(encoded), width)}
    return {line for line in lines if len(line) >= SHORTEST_BASE64}


class Masker:
    """Replaces every pattern in a stream by ***, wherever the chunks are cut.

    What may be the beginning of a pattern is held back. A fresh masker that is fed from a place where another one had
    `consumed` all that came before goes on as that one would have.
    """

    def __init__(self, patterns: tuple[bytes, ...]) -> None:
        # A long secret has many lines of base64, but few texts have anything so long in that alphabet: looked for only there.
        dense = {each for each in patterns if len(each) in BASE64_LINES and not each.strip(_ALPHABET)}
        self._dense = sorted(dense)
        self._patterns = tuple(each for each in patterns if each not in dense)
        self._longest_hold = LONGEST_HOLD + 2 * max(map(len, patterns), default=0)
        self._held = b""

    def feed(self, chunk: bytes) -> Masked:
        """The next bytes of the stream."""
        if not self._patterns and not self._dense:
            return Masked(chunk, len(chunk))
        window = self._held + chunk
        spans = self._spans(window)
        end = self._safe_end(window, spans)
        self._held = window[end:]
        return Masked(_replace(window, spans, end), end)

    def finish(self) -> Masked:
        """The stream has ended: what was held back."""
        window, self._held = self._held, b""
        return Masked(_replace(window, self._spans(window), len(window)), len(window))

    def _spans(self, window: bytes) -> list[tuple[int, int]]:
        """Where patterns stand, overlapping ones joined, in order."""
        found: list[tuple[int, int]] = []
        for pattern in self._patterns:
            found += _places(window, pattern, 0, len(window))
        if self._dense:
            for begin, stop in _base64_runs(window):
                for pattern in self._dense:
                    found += _places(window, pattern, begin, stop)
        found.sort()
        joined: list[tuple[int, int]] = []
        for start, stop in found:
            if joined and start < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        return joined

    def _safe_end(self, window: bytes, spans: list[tuple[int, int]]) -> int:
        """The end of what no further byte can change."""
        end = min((_beginning(window, pattern) for pattern in self._patterns), default=len(window))
        if self._dense:
            end = min(end, _beginning_of_any(window, self._dense))
        for start, stop in spans:
            if start < end < stop:
                # What is held back overlaps a match and may make it longer; only a hostile stream does so for long.
                return start if len(window) - start <= self._longest_hold else stop
        return end


def _places(window: bytes, pattern: bytes, begin: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where the pattern stands between `begin` and `stop`, in order; where it overlaps itself, that is one place."""
    at = window.find(pattern, begin, stop)
    while at >= 0:
        first, period = at, _period(pattern)
        while period < len(pattern) and window.startswith(pattern, at + period):
            at += period
        yield first, at + len(pattern)
        at = window.find(pattern, at + period, stop)


def _base64_runs(window: bytes) -> Iterator[tuple[int, int]]:
    """Where so many characters of base64 follow one another that a line of it may be among them."""
    kinds = window.translate(_IS_BASE64)
    at = kinds.find(_RUN)
    while at >= 0:
        stop = kinds.find(b" ", at)
        stop = len(window) if stop < 0 else stop
        yield at, stop
        at = kinds.find(_RUN, stop)


def _beginning_of_any(window: bytes, ordered: Sequence[bytes]) -> int:
    """The same as `_beginning`, of all lines of base64 (in order) together: the smallest."""
    last = window[1 - max(BASE64_LINES) :]
    inside = len(last) - len(last.rstrip(_ALPHABET))
    for at in range(len(window) - inside, len(window)):
        tail = window[at:]
        place = bisect.bisect_right(ordered, tail)  # what begins with it, and is longer, comes next
        if place < len(ordered) and ordered[place].startswith(tail):
            return at
    return len(window)


def _beginning(window: bytes, pattern: bytes) -> int:
    """Where the longest end of `window` stands that is a beginning of `pattern`, but not all of it."""
    at = start = max(0, len(window) - len(pattern) + 1)
    if window.count(pattern[:1], start) > FEW:
        return len(window) - _common(window[start:], pattern)
    at = window.find(pattern[:1], start)
    while at >= 0:
        if pattern.startswith(window[at:]):
            return at
        at = window.find(pattern[:1], at + 1)
    return len(window)


def _common(text: bytes, pattern: bytes) -> int:
    """Length of the longest end of `text`, which is shorter than `pattern`, that is a beginning of it."""
    border, length = _borders(pattern), 0
    for byte in text:
        while length and byte != pattern[length]:
            length = border[length - 1]
        length += byte == pattern[length]
    return length


def _period(pattern: bytes) -> int:
    """The least distance at which the pattern can follow itself, overlapping: its length if it cannot overlap."""
    return len(pattern) - _borders(pattern)[-1]


@lru_cache(maxsize=256)
def _borders(pattern: bytes) -> array[int]:
    """The prefix function of Knuth, Morris and Pratt: linear, where comparing all ends with all beginnings is not."""
    border = array("I", bytes(4 * len(pattern)))
    length = 0
    for at in range(1, len(pattern)):
        while length and pattern[at] != pattern[length]:
            length = border[length - 1]
        length += pattern[at] == pattern[length]
        border[at] = length
    return border


def _replace(window: bytes, spans: list[tuple[int, int]], end: int) -> bytes:
    if not spans:
        return window[:end]
    pieces, at = [], 0
    for start, stop in spans:
        if start >= end:
            break
        pieces += [window[at:start], MASK]
        at = min(stop, end)
    pieces.append(window[at:end])
    return b"".join(pieces)


def masked(value: Any, patterns: tuple[bytes, ...]) -> Any:
    """A JSON value with every pattern in its texts, and in the names of its fields, replaced by ***."""
    if not patterns:
        return value
    masker = Masker(patterns)

    def change(text: str) -> str:
        raw = text.encode("utf-8", "surrogatepass")
        return (masker.feed(raw).kept + masker.finish().kept).decode("utf-8", "surrogatepass")

    return _changed(value, change)


def without_url_passwords(value: Any) -> Any:
    """A JSON value with the password of every URL in it replaced by ***, however short or broken the URL is."""
    return _changed(value, lambda text: _URL_PASSWORD.sub(r"\1***@", text))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _changed(each, change) for name, each in value.items()}
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    return value


def url_password(url: str) -> str:
    """The password in a URL such as a clone address, or ""."""
    try:
        return urllib.parse.unquote(urllib.parse.urlsplit(url).password or "")
    except ValueError:
        return ""
