"""Every arrow between states. `core.py` takes no other; `docs/states.md` and the tests are held against these tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from shared.states import JobState, RunState, StageState

State = TypeVar("State", RunState, StageState, JobState)

RUN_ARROWS: Mapping[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset(RunState) - {RunState.PENDING},
    RunState.RUNNING: frozenset(RunState) - {RunState.PENDING, RunState.RUNNING},
    RunState.PAUSED: frozenset(RunState) - {RunState.PENDING, RunState.PAUSED},
    RunState.CANCELLING: frozenset({RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT}),
}
STAGE_ARROWS: Mapping[StageState, frozenset[StageState]] = {
    StageState.WAITING: frozenset({StageState.RUNNING, StageState.SKIPPED, StageState.FAILED}),
    StageState.RUNNING: frozenset(
        {StageState.PAUSED, StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED, StageState.TIMED_OUT}
    ),
    StageState.PAUSED: frozenset({StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED, StageState.TIMED_OUT}),
}
_OUTCOMES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT, JobState.LOST})
JOB_ARROWS: Mapping[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.READY, JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED}),
    # back to waiting: another attempt will follow
    JobState.READY: _OUTCOMES | {JobState.SUBMITTED, JobState.RUNNING, JobState.WAITING},
    JobState.SUBMITTED: _OUTCOMES | {JobState.RUNNING, JobState.WAITING},
    JobState.RUNNING: _OUTCOMES | {JobState.WAITING},
}


def checked(arrows: Mapping[State, frozenset[State]], before: State, after: State) -> State:
    """`after`, if an arrow leads there (or nothing changes). Anything else is a bug in the rules."""
    if after is not before and after not in arrows.get(before, frozenset()):
        raise AssertionError(f"there is no arrow from {before!r} to {after!r}")
    return after
