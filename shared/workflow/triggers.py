"""Does an event from outside start this workflow? Patterns for branches, tags, paths and images.

`*` is anything but `/`, `**` anything, `?` one character but `/`, `[abc]` one of these; `!` before a pattern takes away
what earlier ones have matched. A list that begins with `!` takes away from everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

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


def matches_image(model: Workflow, repository: str, tag: str) -> bool:
    """Does a push of the image `repository:tag` (repository without the registry's host) start the workflow?"""
    return any(
        matches((trigger.repository,), repository) and (not trigger.tags or matches(trigger.tags, tag))
        for trigger in model.on.image
    )


def matches(patterns: Sequence[str], text: str) -> bool:
    """Is `text` among what the patterns name? The last pattern that fits decides."""
    verdict = bool(patterns) and patterns[0].startswith("!")
    for pattern in patterns:
        negated = pattern.startswith("!")
        if verdict == negated and _compiled(pattern[negated:]).fullmatch(text):
            verdict = not negated
    return verdict


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    regex, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            regex, at = regex + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            regex, at = regex + ".*", at + 2
        elif char in "*?":
            regex, at = regex + ("[^/]*" if char == "*" else "[^/]"), at + 1
        elif char == "[" and (close := pattern.find("]", at + 2)) > 0:
            regex, at = regex + _character_class(pattern[at + 1 : close]), close + 1
        else:
            regex, at = regex + re.escape(char), at + 1
    return re.compile(regex, re.DOTALL)


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
