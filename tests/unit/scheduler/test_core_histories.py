"""The rules under generated histories: whatever happens, in whatever order, these hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler import core
from shared.events import JobEnded, JobReady, RunFinished, StageFinished
from shared.states import JobState
from tests.unit.scheduler.histories import World, plans, steps, yes


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_history_ends_and_every_end_is_told_once(data: st.DataObject) -> None:
    world = World(data.draw(plans()))
    for _ in range(data.draw(st.integers(0, 25))):
        before = world.run
        data.draw(steps(world))
        if before.state.final:
            assert world.run == before, "finished stays finished"
        for name, job in before.jobs.items():
            if job.state.final:
                assert world.run.jobs[name] == job, "an ended job stays as it is"
    world.drain(data.draw(st.sampled_from(["succeeded", "failed", "timed_out"])))
    assert all(job.state.final for job in world.run.jobs.values())
    assert all(stage.state.final for stage in world.run.stages.values())
    for kind, names in ((RunFinished, [None]), (StageFinished, world.run.stages), (JobEnded, world.run.jobs)):
        key = {RunFinished: "run", StageFinished: "stage", JobEnded: "job"}[kind]
        told = [getattr(event, key) for event in world.told if isinstance(event, kind)]
        expected = list(names) if kind is not RunFinished else [world.run.id]
        assert sorted(map(str, told)) == sorted(map(str, expected))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_t18_the_same_event_twice_is_the_same_as_once(data: st.DataObject) -> None:
    world = World(data.draw(plans()))
    for _ in range(data.draw(st.integers(1, 15))):
        data.draw(steps(world))
    if world.sent:
        event = data.draw(st.sampled_from(world.sent))
        once = core.apply(world.run, event, world.now, yes).run
        assert core.apply(once, event, world.now, yes).run == once


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_job_starts_only_after_its_needs_and_has_one_attempt_at_a_time(data: st.DataObject) -> None:
    world = World(data.draw(plans()))
    for _ in range(data.draw(st.integers(1, 25))):
        known = len(world.told)
        before = world.run
        data.draw(steps(world))
        for event in world.told[known:]:
            if isinstance(event, JobReady):
                assert all(world.run.jobs[need].state.final for need in world.run.index.jobs[event.job].needs)
                assert event.attempt in {before.jobs[event.job].attempt, before.jobs[event.job].attempt + 1}
                if event.attempt > before.jobs[event.job].attempt >= 1:
                    assert before.jobs[event.job].state not in {JobState.SUCCEEDED, JobState.CANCELLED}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_t32_nothing_starts_after_a_run_was_told_to_end(data: st.DataObject) -> None:
    world = World(data.draw(plans()))
    for _ in range(data.draw(st.integers(1, 25))):
        ending, known = world.run.ending_state is not None, len(world.attempts)
        data.draw(steps(world))
        assert not (ending and len(world.attempts) > known)
