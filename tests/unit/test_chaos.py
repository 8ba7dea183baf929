"""The parts of `make chaos` that decide: what it draws, what it finds wrong, what it writes."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from shared.workflow.parser import parse_workflow
from tests.chaos.ears import Receiver, Said, Subscriber
from tests.chaos.evidence import KINDS, Findings, look_at_limits, look_at_webhooks
from tests.chaos.load import TENANTS, Planned, plan
from tests.chaos.report import Result, document, table
from tests.chaos.run import chosen, default_runs
from tests.chaos.storm import FAULTS
from tests.chaos.workflows import FAN, LOCKED, SIMULATED_KINDS, Asked
from tests.chaos.workflows import KINDS as RUN_KINDS


class Runs:
    def __init__(self, *runs: Planned) -> None:
        self.runs = list(runs)


def a_run(id: str, tenant: str = "bob", kind: Any = FAN) -> Planned:
    return Planned(kind, tenant, {"X": "x", "SECONDS": "0"}, random.Random(0), id=id)


def lines(*words: str) -> list[Said]:
    return [Said(what, run, job, 1) for what, run, job in (word.split() for word in words)]


@pytest.mark.parametrize("repertoire", [RUN_KINDS, SIMULATED_KINDS], ids=["real", "simulated"])
def test_the_same_seed_draws_the_same_runs(repertoire: Any) -> None:
    drawn = [
        [(r.kind.name, r.tenant, r.inputs) for r in plan(200, random.Random(seed), repertoire)] for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {name for name, _, _ in drawn[0]} >= {kind.name for kind in repertoire if kind.weight > 2}


@pytest.mark.parametrize("kind", [*RUN_KINDS, *SIMULATED_KINDS], ids=lambda kind: kind.name)
def test_each_kind_is_a_workflow_whose_jobs_the_model_knows(kind: Any) -> None:
    model = parse_workflow(kind.source("/witness"), "chaos.yaml").model
    jobs = {job.name for _, job in model.jobs()}
    for decision in ("approve", "cancel"):
        end = kind.end({"X": "x", "SECONDS": "0"}, Asked(decision=decision, cancelled=True))
        assert set(end.jobs) | end.skipped <= jobs
        assert end.states <= {"succeeded", "failed", "cancelled"}


def test_more_jobs_than_a_quota_allows_are_found() -> None:
    allowed = TENANTS["bob"]["jobs"]
    begun = lines(*(f"begin r j{n}" for n in range(allowed + 1)))
    ended = lines(*(f"end r j{n}" for n in range(allowed + 1)))
    together, apart = Findings(), Findings()
    look_at_limits(together, Runs(a_run("r")), begun + ended)  # type: ignore[arg-type]
    look_at_limits(apart, Runs(a_run("r")), [each for pair in zip(begun, ended, strict=True) for each in pair])  # type: ignore[arg-type]
    assert len(together.found["wrong_state"]) == 1
    assert apart.good


def test_two_runs_of_a_group_at_a_time_are_found() -> None:
    runs = Runs(a_run("r", kind=LOCKED), a_run("s", kind=LOCKED))
    findings = Findings()
    look_at_limits(findings, runs, lines("begin r holder", "begin s holder", "end r holder", "end s holder"))  # type: ignore[arg-type]
    assert not findings.good


def test_a_webhook_that_never_came_and_one_that_came_under_two_ids_are_found() -> None:
    heard, receiver = Subscriber(), Receiver(random.Random(0))
    for id in ("a", "b"):
        heard.events[id] = {"id": id, "type": "run.finished", "tenant": "acme", "run": "r"}
    for delivery in ("1", "2"):
        receiver.bodies[delivery] = {"data": {"tenant": "acme", "id": "a"}}
    findings = Findings()
    look_at_webhooks(findings, heard, receiver)
    assert [kind for kind in KINDS if findings.found[kind]] == ["lost", "doubled"]


def test_faults_are_chosen_by_name_or_beginning() -> None:
    assert chosen("all") == frozenset(FAULTS) - {"disk:objects"}
    assert chosen("none") == frozenset()
    assert chosen("disk,cut") == {"disk:database", "disk:broker", "disk:objects", "cut"}
    with pytest.raises(ValueError, match="there is no fault 'rain'"):
        chosen("rain")


def test_the_file_has_what_readers_rely_on() -> None:
    findings = Findings()
    findings.add("lost", "something")
    result = Result("process", 7, 20, Counter({"cut": 2}), {"clock": "no libfaketime"}, findings, [1.0, 9.0, 2.0], 60.0)
    written = document([result, result])
    assert written.keys() >= {"runs", "faults", *KINDS, "recovery_s", "seed"}
    assert (written["runs"], written["faults"], written["lost"], written["stuck"]) == (40, {"cut": 4}, 2, 0)
    assert written["recovery_s"] == {"p50": 2.0, "max": 9.0}
    assert "!!! NOT DONE: clock" in table([result])
    assert default_runs(500, "both") == [("process", 400), ("docker", 100)]
    assert default_runs(100, "pods") == [("kubernetes", 100), ("simulated", 2000)]
