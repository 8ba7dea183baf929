"""Patterns of branches, tags, paths and images: they mean what is said of them, and no text holds them up."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.workflow.triggers import matches


@given(
    st.lists(st.sampled_from(["*", "**", "**/", "?", "[ab]", "[!a]", "a", "b", "/", "."]), max_size=8),
    st.text(alphabet="ab/.", max_size=10),
)
def test_patterns_mean_what_their_regular_expressions_mean(parts: list[str], text: str) -> None:
    pattern = "".join(parts)
    words = {
        "**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "[ab]": "[ab]", "[!a]": "[^a]", ".": "[.]",
    }  # fmt: skip
    regex = re.sub(r"\*\*/|\*\*|\[!?\w+\]|.", lambda part: words.get(part[0], part[0]), pattern)
    assert matches([pattern], text) == bool(re.fullmatch(regex, text, re.DOTALL))


@pytest.mark.parametrize(
    "pattern", ["*a" * 60 + "b", "**a" * 60 + "b", "**/" * 80 + "b", "?*" * 80 + "b", "[a-c]**" * 80]
)
def test_no_pattern_holds_up_the_others(pattern: str) -> None:
    began = time.monotonic()
    for text in ("a" * 4000, "a/" * 2000):
        matches([pattern], text)
    assert time.monotonic() - began < 0.5
