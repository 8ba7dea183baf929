"""Every pair of commands that may race, in both orders, in every situation of a run: a model without gaps, not a sample.

`World` keeps what was told; what two racing commands may lead to is stated by `check`. Which of them came first is decided
by the row lock of the run, so both orders happen in production.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from shared.events import (
    JobEnded,
    JobReady,
    JobRunning,
    JobSubmitted,
    RunCancelRequested,
    RunFinished,
    StageDecided,
    StageFinished,
)
from shared.states import JobState, RunState
from shared.workflow.plan import JobPlan, Plan, RetryPlan
from tests.unit.scheduler.histories import World, a_plan, a_stage

Act = Callable[[World], None]


@dataclass(frozen=True)
class Command:
    """Something that somebody or something does to a run."""

    name: str
    act: Act

    def __str__(self) -> str:
        return self.name


def the_plan() -> Plan:
    return a_plan(
        a_stage(
            "build",
            JobPlan(name="flaky", retries=RetryPlan(max=1, delay_s=5.0), timeout_s=60.0),
            JobPlan(name="steady", timeout_s=60.0),
        ),
        a_stage("ask", JobPlan(name="mail", timeout_s=60.0), pause=True),
        a_stage("deploy", JobPlan(name="deploy", timeout_s=60.0)),
        timeout_s=7200.0,
    )


def sent(kind: type, attempt: tuple[str, str, int], **values: object) -> Act:
    return lambda world: world.send(kind(**world.place(attempt), **values))


def finished(attempt: tuple[str, str, int], state: str, **values: object) -> Act:
    return lambda world: world.send(world.finished(attempt, state, **values))


def decided(action: str) -> Act:
    return lambda world: world.send(StageDecided(tenant="acme", run=world.run.id, stage="ask", action=action, by="ann"))


def cancelled(superseded_by: int = 0) -> Act:
    return lambda world: world.send(
        RunCancelRequested(tenant="acme", run=world.run.id, by="ann", superseded_by=superseded_by)
    )


def waited(seconds: float) -> Act:
    return lambda world: world.wait(seconds)


FLAKY, STEADY, MAIL = ("build", "flaky", 1), ("build", "steady", 1), ("ask", "mail", 1)
SITUATIONS: dict[str, list[Act]] = {
    "ready": [],
    "submitted": [sent(JobSubmitted, FLAKY, container="c"), sent(JobSubmitted, STEADY, container="c")],
    "running": [sent(JobRunning, FLAKY), sent(JobRunning, STEADY)],
    "one job over": [sent(JobRunning, FLAKY), finished(STEADY, "succeeded")],
    "waiting to retry": [finished(FLAKY, "failed"), sent(JobRunning, STEADY)],
    "second attempt": [finished(FLAKY, "failed"), waited(6.0)],
    "decided early": [decided("approve"), finished(FLAKY, "succeeded")],
    "pause stage runs": [finished(FLAKY, "succeeded"), finished(STEADY, "succeeded"), sent(JobRunning, MAIL)],
    "paused": [finished(FLAKY, "succeeded"), finished(STEADY, "succeeded"), finished(MAIL, "succeeded")],
    "deploying": [
        finished(FLAKY, "succeeded"), finished(STEADY, "succeeded"), finished(MAIL, "succeeded"), decided("approve"),
    ],
    "cancelling": [sent(JobRunning, FLAKY), sent(JobRunning, STEADY), cancelled()],
    "failing": [finished(STEADY, "failed"), sent(JobRunning, FLAKY)],
}  # fmt: skip


def situation(name: str) -> World:
    world = World(the_plan())
    for act in SITUATIONS[name]:
        act(world)
    return world


def commands(world: World) -> Iterator[Command]:
    """All that may come next, likely or late, for every attempt there has been and the one after the last."""
    attempts = [*world.attempts, *((stage, job, number + 1) for stage, job, number in world.attempts[-1:])]
    for attempt in attempts:
        name = f"{attempt[1]} {attempt[2]}"
        yield Command(f"{name} submitted", sent(JobSubmitted, attempt, container="c"))
        yield Command(f"{name} running", sent(JobRunning, attempt))
        for state in ("succeeded", "failed", "timed_out", "cancelled", "lost"):
            yield Command(f"{name} {state}", finished(attempt, state))
        yield Command(f"{name} lost before its code", finished(attempt, "lost", started=False))
    yield Command("approve", decided("approve"))
    yield Command("refuse", decided("cancel"))
    yield Command("cancel", cancelled())
    yield Command("supersede", cancelled(superseded_by=2))
    yield Command("a moment", waited(1.0))
    yield Command("the job's time is over", waited(61.0))
    yield Command("the pause's time is over", waited(3601.0))
    yield Command("the run's time is over", waited(7201.0))


def branched(world: World) -> World:
    """The same world, to go on differently from here. Runs are never changed in place."""
    other = copy.copy(world)
    other.told, other.sent, other.attempts = list(world.told), list(world.sent), list(world.attempts)
    return other


def check(world: World, what: str) -> None:
    """What must hold after any race, and that the run comes to its end from there."""
    ending, attempts = world.run.ending_state, len(world.attempts)
    world.drain()
    assert world.run.state.final, what
    for kind, wanted in ((RunFinished, 1), (StageFinished, len(world.run.stages)), (JobEnded, len(world.run.jobs))):
        assert sum(isinstance(event, kind) for event in world.told) == wanted, (what, kind)
    assert all(job.state.final for job in world.run.jobs.values()), what
    started = [(event.job, event.attempt) for event in world.told if isinstance(event, JobReady)]
    for job, status in world.run.jobs.items():
        numbers = sorted({number for name, number in started if name == job})
        assert numbers == list(range(1, status.attempt + 1)), f"{what}: attempts of {job} rise by one"
    if ending is not None:
        assert len(world.attempts) == attempts, f"{what}: nothing starts once the run is told to end"
        assert world.run.state == ending, f"{what}: how it ends was decided first"
    if world.run.state is RunState.SUCCEEDED:
        assert {job.state for job in world.run.jobs.values()} == {JobState.SUCCEEDED}, what


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_pair_of_racing_commands_in_both_orders(name: str) -> None:
    world = situation(name)
    possible = list(commands(world))
    for first in possible:
        one = branched(world)
        first.act(one)
        for second in possible:
            both = branched(one)
            before = both.run
            second.act(both)
            if before.state.final:
                assert both.run == before, f"{name}: {first}, then {second}: finished stays finished"
            for job, status in before.jobs.items():
                if status.state.final:
                    assert both.run.jobs[job] == status, f"{name}: {first}, then {second}: {job} stays as it ended"
            check(both, f"{name}: {first}, then {second}")


UNDECIDED = [name for name in SITUATIONS if name not in {"decided early", "deploying", "cancelling", "failing"}]


@pytest.mark.parametrize("name", UNDECIDED)
def test_t86_a_race_of_decisions_and_cancels_is_won_by_whoever_came_first(name: str) -> None:
    """Of two decisions the first counts; a cancel of the run beats both, whenever it comes."""
    races = {
        ("approve", "refuse"): RunState.SUCCEEDED, ("refuse", "approve"): RunState.CANCELLED,
        ("approve", "cancel"): RunState.CANCELLED, ("cancel", "approve"): RunState.CANCELLED,
        ("refuse", "cancel"): RunState.CANCELLED, ("cancel", "refuse"): RunState.CANCELLED,
    }  # fmt: skip
    acts = {"approve": decided("approve"), "refuse": decided("cancel"), "cancel": cancelled()}
    world = situation(name)
    for race, state in races.items():
        both = branched(world)
        for word in race:
            acts[word](both)
        both.drain()
        assert both.run.state is state, race
