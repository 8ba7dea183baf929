"""Keys of stored objects."""

from __future__ import annotations

import uuid
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared import object_keys

RUN = uuid.UUID(int=1)
PREFIX = object_keys.run_caches("acme", RUN)
NAMES = st.text(st.sampled_from("a~/.\x1b\r\n\t\uffff\u00e4") | st.characters(codec="utf-8"), max_size=8) | st.integers(
    100, 400
).map("ä".__mul__)


def part(name: str) -> str:
    key = object_keys.run_cache("acme", RUN, name)
    assert key.startswith(PREFIX)
    return key.removeprefix(PREFIX)


@given(NAMES)
@example("\x1b[0m")
@example("a\r\nb")
def test_any_name_makes_a_key_that_s3_can_be_told_in_xml(name: str) -> None:
    made = part(name)
    assert ElementTree.fromstring(f"<Key>{escape(made)}</Key>").text == (made or None)
    assert "/" not in made
    assert made not in {".", ".."}
    assert len(made.encode()) <= 160


@given(NAMES, NAMES)
@example("\x1b[0m", "\x1b[1m")
@example("a\x1b", "a/")
def test_different_names_have_different_keys(one: str, other: str) -> None:
    assert (part(one) == part(other)) == (one == other)
    for name in {one, other}:
        assert part(name) == name or part(part(name)) != part(name), "a name was taken for the key of another one"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("deps", "deps"),
        ("deps-v1.0123456789abcdef", "deps-v1.0123456789abcdef"),
        ("Größe 1 ✓ & <b>", "Größe 1 ✓ & <b>"),
        ("./a/.cache", "~a~.cache.3edaed427bd7dc3f"),
        ("ü" * 100, "ü" * 70 + ".83af2e24c464bea3"),
        ("..", ".5ec1f7e700f37c3d"),
    ],
)
def test_what_is_stored_is_found_by_later_versions(name: str, key: str) -> None:
    assert part(name) == key
