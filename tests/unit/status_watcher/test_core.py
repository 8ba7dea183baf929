"""What observations mean."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.status_watcher.core import Standing, is_orphan, outcome_of, stands_for
from shared.runtime.protocol import Observation, Phase
from shared.states import JobState, Reason


def seen(result: dict[str, Any] | None = None, *, code: int | None = None, reason: str = "", phase: Phase = Phase.FINISHED,
         message: str = "") -> Observation:  # fmt: skip
    return Observation("hf-a-1-x", "uid", phase, {}, reason=reason, message=message, exit_code=code, result=result)


def document(outcome: str, **values: Any) -> dict[str, Any]:
    return {"version": 1, "outcome": outcome, "started": True, "outputs": {}, **values}


CASES = [
    (seen(document("exited"), code=0), "succeeded", ""),
    (seen(document("exited", job_result=True), code=0), "succeeded", ""),
    (seen(document("exited", job_result=False), code=0), "failed", "JobResultFalse"),
    (seen(document("exited", job_result=True), code=7), "failed", "ExitCode"),
    (seen(document("exited", job_result=False), code=7), "failed", "ExitCode"),
    (seen(document("signaled", signal="SEGV"), code=139), "failed", "Signal"),
    (seen(document("timed_out"), code=124), "timed_out", "JobTimeout"),
    (seen(document("stopped"), code=0), "cancelled", "Cancelled"),
    (seen(document("stopped"), code=143, reason="Evicted"), "lost", "Evicted"),
    (seen(document("start_failed", started=False), code=127), "failed", "StartFailed"),
    (seen(document("restore_failed"), code=125), "failed", "RestoreFailed"),
    (seen(document("save_failed"), code=125), "failed", "SaveFailed"),
    (seen(document("output_too_large"), code=125), "failed", "OutputTooLarge"),
    (seen(document("wrapper_failed"), code=125), "failed", "WrapperFailed"),
    (seen(document("a word of tomorrow"), code=0), "failed", "WrapperFailed"),
    # T07: the exit code that the wrapper stored decides
    (seen(document("exited"), code=0, reason="Evicted"), "succeeded", ""),
    (seen(document("exited"), code=0, reason="OOMKilled"), "succeeded", ""),
    (seen(document("exited"), code=4, reason="NodeLost"), "failed", "ExitCode"),
    # T08
    (seen(document("signaled", signal="KILL"), code=137, reason="OOMKilled"), "failed", "OOMKilled"),
    (seen(document("exited"), code=137, reason="OOMKilled"), "failed", "OOMKilled"),
    (seen(None, code=137, reason="OOMKilled"), "failed", "OOMKilled"),
    # T05, T06, T09
    (seen(None, reason="ContainerGone", phase=Phase.GONE), "lost", "ContainerGone"),
    (seen(None, reason="Evicted"), "lost", "Evicted"),
    (seen(None, reason="NodeLost"), "lost", "NodeLost"),
    (seen(None, reason="ImagePull", message="image nonsuch:1 is unknown"), "failed", "ImagePull"),
    (seen(None, reason="Cancelled"), "cancelled", "Cancelled"),
    (seen(None, code=1), "failed", "WrapperFailed"),
    (seen({}, code=0), "failed", "WrapperFailed"),
]


@pytest.mark.parametrize(("observation", "state", "reason"), CASES)
def test_state_and_reason(observation: Observation, state: str, reason: str) -> None:
    outcome = outcome_of(observation)
    assert (outcome.state, outcome.reason) == (state, reason)
    assert bool(outcome.message) == (state != JobState.SUCCEEDED)


def test_every_failure_says_what_to_try() -> None:
    for observation, _, _ in CASES:
        message = outcome_of(observation).message
        assert not message or len(message.split()) >= 4


def test_what_the_wrapper_or_the_runtime_says_is_kept() -> None:
    assert outcome_of(seen(document("exited", message="told"), code=2)).message == "told"
    assert "nonsuch" in outcome_of(seen(None, reason="ImagePull", message="image nonsuch:1")).message


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("0a" * 32, "0a" * 32),
        ("0A" * 32, ""),
        ("0a" * 33, ""),
        ("0a" * 31 + "\r\n", ""),
        ("0a" * 32 + "\n", ""),
        (7, ""),
    ],
)
def test_only_what_is_a_checksum_is_kept_as_one(told: object, kept: str) -> None:
    saved = [{"kind": "artifact", "name": "dist", "bytes": 5, "sha256": told}]
    (artifact,) = outcome_of(seen(document("exited", saved=saved), code=0)).artifacts
    assert artifact.sha256 == kept


def test_hostile_documents_are_bounded() -> None:
    hostile = document(
        "exited",
        message="x" * 100_000 + "\0",
        outputs={"GOOD": "a\0b\ud800", "bad name": "x", "BIG": "x" * 70_000, "NUMBER": 1, **{f"K{n}": "v" for n in range(999)}},
        saved=[
            {"kind": "artifact", "name": "ok", "bytes": 5, "sha256": "ab", "files": 2, "error": ""},
            {"kind": "artifact", "name": "../up", "bytes": 1},
            {"kind": "artifact", "name": "failed", "error": "no"},
            {"kind": "cache", "name": "deps"},
            {"kind": "artifact", "name": "negative", "bytes": -4, "files": "many"},
            "nonsense",
        ],
        restored="nonsense", timings={"a": {"deep": []}}, more={"x": "y" * 10**6},
    )  # fmt: skip
    outcome = outcome_of(seen(hostile, code=10**12))
    assert outcome.exit_code is None
    assert len(outcome.outputs) == 256
    assert outcome.outputs["GOOD"] == "a\ufffdb?"
    assert not {"bad name", "BIG", "NUMBER"} & set(outcome.outputs)
    assert [(kept.name, kept.bytes) for kept in outcome.artifacts] == [("ok", 5), ("negative", 0)]
    assert outcome.result is not None
    assert "more" not in outcome.result
    assert len(str(outcome.result)) < 20_000


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "outcome",
    "message",
    "outputs",
    "saved",
    "restored",
    "warnings",
    "timings",
    "job_result",
    "started",
    "exit_code",
]


@given(st.dictionaries(st.sampled_from(KEYS), JUNK), st.sampled_from(["", *Reason]), st.none() | st.integers())
def test_no_document_raises(result: dict[str, Any], reason: str, code: int | None) -> None:
    outcome = outcome_of(seen(result, reason=reason, code=code))
    assert outcome.state in {"succeeded", "failed", "timed_out", "cancelled", "lost"}


def test_t18_an_end_is_not_forgotten_for_what_came_before() -> None:
    running, gone, over = (seen(phase=phase) for phase in (Phase.RUNNING, Phase.GONE, Phase.FINISHED))
    assert stands_for(running, None)
    assert stands_for(over, running)
    assert stands_for(over, gone)
    assert not stands_for(running, over)
    assert not stands_for(gone, over)


@pytest.mark.parametrize(
    ("phase", "standing", "orphan"),
    [
        (Phase.RUNNING, None, True),
        (Phase.FINISHED, None, True),
        (Phase.RUNNING, Standing("uid", live=True, removed=False, told=False), False),
        (Phase.PENDING, Standing("", live=True, removed=False, told=False), False),
        (Phase.RUNNING, Standing("other", live=True, removed=False, told=False), True),
        (Phase.RUNNING, Standing("uid", live=False, removed=False, told=False), True),
        (Phase.FINISHED, Standing("uid", live=False, removed=False, told=False), False),
        (Phase.FINISHED, Standing("uid", live=False, removed=True, told=True), True),
        (Phase.FINISHED, Standing("other", live=True, removed=False, told=False), True),
    ],
)
def test_t91_orphans(phase: Phase, standing: Standing | None, orphan: bool) -> None:
    assert is_orphan(seen(phase=phase), standing) is orphan


@pytest.mark.parametrize(
    ("reason", "started"),
    [("WrapperFailed", True), ("OOMKilled", True), ("NodeLost", True), ("StartFailed", None), ("InitFailed", None)],
)
def test_a_job_whose_wrapper_was_killed_before_anybody_saw_it_run_has_started(
    reason: str, started: bool | None
) -> None:
    killed = dataclasses.replace(seen(None, code=137, reason=reason), started_at=datetime.now(UTC))
    assert outcome_of(killed).started is started
    assert outcome_of(dataclasses.replace(killed, started_at=None)).started is None


def test_what_started_and_was_removed_before_anybody_saw_it_run_has_started() -> None:
    """Else it would be made again free of charge, and its code begin twice."""
    gone = seen(None, reason="ContainerGone")
    assert outcome_of(gone).started is None
    assert outcome_of(dataclasses.replace(gone, started_at=datetime.now(UTC))).started is True
