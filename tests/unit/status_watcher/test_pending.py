"""What waits to be recorded: the latest of each container, and what an earlier one knew."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.status_watcher.core import outcome_of
from services.status_watcher.handlers import Pending
from shared.runtime.protocol import Observation, Phase
from shared.states import Reason

BEGAN = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.mark.parametrize("phase", [Phase.GONE, Phase.FINISHED])
@pytest.mark.parametrize("began", [BEGAN, None])
async def test_t06_an_end_that_comes_before_its_running_is_recorded_is_no_end_before_the_beginning(
    phase: Phase, began: datetime | None
) -> None:
    pending = Pending()
    pending.put(Observation("hf-a-1-0", "u", Phase.RUNNING, {}, started_at=began))
    pending.put(Observation("hf-a-1-0", "u", phase, {}, reason=Reason.NODE_LOST))
    (end,) = await pending.take(10)
    outcome = outcome_of(end)
    assert (end.phase, outcome.started) == (phase, True)
    assert outcome.started_at is not None
    assert began is None or outcome.started_at == began


async def test_what_never_ran_has_not_begun() -> None:
    pending = Pending()
    pending.put(Observation("hf-a-1-0", "u", Phase.PENDING, {}), Observation("hf-a-1-0", "u", Phase.GONE, {}))
    (end,) = await pending.take(10)
    assert not outcome_of(end).started
