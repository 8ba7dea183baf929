"""Text that can be kept."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from shared.text import INDEXED, fit, fit_json, indexable, is_fit, may_be_unfit

ANY = st.text(st.characters(codec=None, exclude_categories=()) | st.sampled_from("\0\\u0\ud800\udfff"))
DOCUMENTS = st.recursive(
    ANY | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)
)


@given(DOCUMENTS)
def test_what_is_fit_stays_and_everything_else_becomes_fit(document: object) -> None:
    made = fit(document)
    json.dumps(made, ensure_ascii=False).encode()
    assert fit(made) == made
    written = json.dumps(document)
    assert may_be_unfit(written) == may_be_unfit(written.encode())
    if not may_be_unfit(written):
        assert made == document


@given(DOCUMENTS)
def test_written_json_becomes_fit_the_same_way(document: object) -> None:
    assert json.loads(fit_json(json.dumps(document, ensure_ascii=False))) == json.loads(json.dumps(fit(document)))


@given(ANY)
def test_fit_text_is_what_utf8_without_nul_can_hold(text: str) -> None:
    try:
        held = b"\0" not in text.encode()
    except UnicodeEncodeError:
        held = False
    assert is_fit(text) == held


def test_long_text_is_indexed_by_its_beginning_and_a_digest() -> None:
    longest = "ä" * INDEXED
    texts = [longest, longest + "a", longest + "b", "z" * 300_000]
    made = [indexable(text) for text in texts]
    assert made[0] == longest
    assert made[1].startswith(longest)
    # Also what somebody has made to look like a shortened text is another text.
    assert len({*made, *map(indexable, made)}) == 2 * len(texts) - 1
    assert max(len(text.encode()) for text in made) < 900
