"""Does an event from outside start this workflow? Patterns for branches, tags and paths.

`*` is anything but `/`, `**` anything, `?` one character but `/`, `[abc]` one of these; `!` before a pattern takes away
what earlier ones have matched. A list that begins with `!` takes away from everything.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared.workflow.model import Workflow


def matches_push(
    model: Workflow, branch: str | None = None, tag: str | None = None, changed_paths: Iterable[str] | None = None
) -> bool:
    """Does a push of `branch` or of `tag` (one of them) start the workflow?

    `changed_paths`: files that the push changes; None if they are not known (a new branch, a forced push), which counts as
    a match. Tags are not filtered by paths. With only `branches` given no tag matches, with only `tags` no branch;
    with only `paths` branches do.
    """
    push = model.on.push
    if push is None:
        return False
    if tag is not None:
        everything = not (push.branches or push.tags or push.paths)
        return everything or bool(push.tags and matches(push.tags, tag))
    if branch is None or (push.tags and not push.branches):
        return False
    if push.branches and not matches(push.branches, branch):
        return False
    if not push.paths or changed_paths is None:
        return True
    return any(matches(push.paths, path) for path in changed_paths)


def matches(patterns: Sequence[str], text: str) -> bool:
    """Is `text` among what the patterns name? The last pattern that fits decides."""
    verdict = bool(patterns) and patterns[0].startswith("!")
    for pattern in patterns:
        negated = pattern.startswith("!")
        if verdict == negated and _compiled(pattern[negated:]).fits(text):
            verdict = not negated
    return verdict


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A pattern, ready to be compared with many texts.

    Names come from other systems and patterns from one tenant, so all ways through a text are followed at once: in the
    number `reached` bit n says that what was read of the pattern can end before character n. An engine that tries one way
    after the other would be held up for years by ten `*`.
    """

    prefix: str
    """What every text that fits begins with."""
    steps: tuple[tuple[str, Any], ...]

    def fits(self, text: str) -> bool:
        if not text.startswith(self.prefix):
            return False
        places: dict[str, int] = {}
        for at, char in enumerate(text):
            places[char] = places.get(char, 0) | 1 << at
        end = 1 << len(text)
        slashes = places.get("/", 0)
        others = (end - 1) ^ slashes
        reached = 1
        for kind, what in self.steps:
            first = reached & -reached
            if kind == "**":
                reached = (2 * end - 1) & -first
            elif kind == "**/":
                reached |= (slashes & -first) << 1
            elif kind == "*":  # the carries run through everything up to the next slash
                reached |= ((reached & others) + others) ^ others
            elif kind == "?":
                reached = (reached & others) << 1
            elif kind == "[]":
                reached = (reached & sum(mask for char, mask in places.items() if what.fullmatch(char))) << 1
            else:
                reached = (reached & places.get(what, 0)) << 1
            if not reached:
                return False
        return bool(reached & end)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> _Pattern:
    steps: list[tuple[str, Any]] = []
    at = 0
    what: Any
    while at < len(pattern):
        kind, what, width = pattern[at], None, 1
        if kind == "*":
            kind = next(star for star in ("**/", "**", "*") if pattern.startswith(star, at))
            width = len(kind)
        elif kind == "[" and (close := pattern.find("]", at + 2)) > 0:
            kind, what, width = "[]", re.compile(_character_class(pattern[at + 1 : close]), re.DOTALL), close + 1 - at
        elif kind != "?":
            kind, what = "", kind
        steps.append((kind, what))
        at += width
    literal = [what for _, what in itertools.takewhile(lambda step: step[0] == "", steps)]
    return _Pattern("".join(literal), tuple(steps))


def _character_class(inner: str) -> str:
    negated = inner[0] in "!^" and len(inner) > 1
    parts, rest = "", inner[negated:]
    while rest:
        if len(rest) > 2 and rest[1] == "-":
            low, high = sorted((rest[0], rest[2]))  # a range backwards means the same
            parts, rest = parts + f"{re.escape(low)}-{re.escape(high)}", rest[3:]
        else:
            parts, rest = parts + re.escape(rest[0]), rest[1:]
    return f"[{'^' if negated else ''}{parts}]"
