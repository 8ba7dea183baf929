"""What a watch tells of a container that is not there any more."""

from __future__ import annotations

import pytest

from shared.runtime.protocol import Observation, Phase
from shared.runtime.telling import Telling


@pytest.mark.parametrize(("before", "told"), [(Phase.PENDING, []), (Phase.RUNNING, [Phase.GONE]), (Phase.FINISHED, [])])
@pytest.mark.parametrize("replaced", [False, True])
def test_only_what_ran_is_told_as_gone(before: Phase, told: list[Phase], *, replaced: bool) -> None:
    """What holds the name while an image is pulled may be removed by hand, and the attempt starts all the same: were it told as
    gone, its successor would run beside it."""
    telling = Telling()
    assert [seen.phase for seen in telling.news("a", Observation("a", "1", before, {}))] == [before]
    successor = Observation("a", "2", Phase.PENDING, {}) if replaced else None
    news = [seen.phase for seen in telling.news("a", successor)]
    assert news == told + [Phase.PENDING] * replaced
    assert telling.names() == ["a"] * replaced
