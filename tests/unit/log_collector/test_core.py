"""The size limit of a log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.log_collector.core import last_line, limited


@given(st.binary(max_size=40), st.integers(0, 60), st.integers(0, 60))
def test_the_limit_is_kept_and_said(data: bytes, size: int, limit: int) -> None:
    kept, cut = limited(data, size, limit)
    assert cut == (size + len(data) > limit)
    if not cut:
        assert kept == data
    else:
        assert kept.endswith(last_line(limit))
        text = kept.removesuffix(last_line(limit))
        assert len(text) <= max(0, limit - size) + 1
        assert not text or text.endswith(b"\n")
