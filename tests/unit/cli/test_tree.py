"""The tree and the lines of a run, from documents as the API gives them."""

import shlex
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cli import tree
from cli.output import duration, plain
from cli.waiting import LineScreen
from shared.states import JobState, RunState, StageState

NOW = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


def job(name, state, **more):
    return {"name": name, "state": state, "reason": "", "message": "", "attempt": 1, **more}


def run(state="running", stages=()):
    return {
        "id": "0190", "number": 12, "workflow": "build", "state": state, "reason": "", "message": "", "seq": 1,
        "created_at": "2026-01-01T12:00:00Z", "finished_at": None, "waiting": None, "stages": list(stages),
    }  # fmt: skip


def stage(name, state, *jobs, **more):
    return {"name": name, "state": state, "reason": "", "message": "", "decision": None, "jobs": list(jobs), **more}


def test_every_state_has_a_mark():
    for state in [*RunState, *StageState, *JobState]:
        assert state.value in tree.MARKS
        assert tree.MARKS[state.value] in {*tree.ASCII_MARKS, "-"}


def test_final_states_are_those_of_the_scheduler():
    assert {state.value for state in RunState if state.final} == tree.FINAL


def test_the_tree_tells_times_attempts_reasons_and_decisions():
    failed = job("unit", "failed", attempt=2, message="exit code 1", started_at="2026-01-01T12:00:05Z",
                 finished_at="2026-01-01T12:00:08Z")  # fmt: skip
    decision = {"action": "approve", "by": "token:ann", "comment": "fine"}
    stages = [
        stage("test", "failed", failed, job("lint", "running", started_at="2026-01-01T12:00:10Z")),
        stage("gate", "succeeded", decision=decision),
    ]
    text = tree.as_text(run(stages=stages), NOW)
    assert "build #12" in text
    assert "✖ unit" in text
    assert "3.0s" in text
    assert "attempt 2  exit code 1" in text
    assert "20s" in text
    assert "approved by token:ann: fine" in text


def test_without_unicode_the_marks_are_ascii():
    stages = [stage("gate", "paused"), stage("x", "waiting", job("j", "skipped"))]
    assert tree.as_text(run("paused", stages), NOW, ascii=True).isascii()


def test_why_a_run_waits_and_how_far_back_it_is_stands_in_its_line():
    waiting = {"reason": "Quota", "message": "the tenant may have 2 runs", "position": 3}
    text = tree.as_text(run("pending") | {"waiting": waiting}, NOW)
    assert "the tenant may have 2 runs (3 before it)" in text


def test_failures_that_are_allowed_are_not_counted():
    stages = [stage("s", "succeeded", job("a", "failed", allow_failure=True), job("b", "lost"))]
    assert [each["name"] for each in tree.failed_jobs(run(stages=stages))] == ["b"]
    shown = [
        line.split()[1] for line in tree.as_text(run(stages=stages), NOW).splitlines() if "allowed to fail" in line
    ]
    assert shown == ["a"]


def test_lines_are_told_once_for_each_change(capsys):
    screen = LineScreen()
    document = run(stages=[stage("s", "running", job("a", "running"))])
    screen.update(document)
    first = capsys.readouterr().out
    assert "s / a" in first
    screen.update(document)
    assert capsys.readouterr().out == ""
    screen.update(run("paused", [stage("s", "paused", job("a", "succeeded"))]))
    told = capsys.readouterr().out
    assert "hubflow run approve 12 s" in told


def test_a_command_to_copy_quotes_the_name_of_the_stage_for_the_shell():
    hints = tree.pause_hints(run("paused"), stage("go live; now", "paused"))
    assert [shlex.split(hint)[1:] for hint in hints] == [
        ["hubflow", "run", verb, "12", "go live; now"] for verb in ("approve", "reject")
    ]


def test_lines_say_the_state_whatever_else_there_is_to_say(capsys):
    again = job("a", "waiting", message="attempt 1 failed (ExitCode): status 1")
    LineScreen().update(run(stages=[stage("s", "running", again, job("b", "succeeded", attempt=2))]))
    told = capsys.readouterr().out
    assert "s / a  waiting  attempt 1 failed" in told
    assert "s / b  succeeded  attempt 2" in told


def test_what_a_retry_keeps_is_told_in_words():
    kept = stage("s", "succeeded", job("a", "succeeded", carried_from="0180"), reason="CarriedOver")
    text = tree.as_text(run(stages=[kept]), NOW)
    assert text.count("kept from the run that this one retries") == 2
    assert "CarriedOver" not in text


def test_a_refusal_is_called_one():
    refused = stage("gate", "cancelled", decision={"action": "cancel", "by": "token:ann", "comment": ""})
    assert "rejected by token:ann" in tree.as_text(run("cancelled", [refused]), NOW)


@given(st.text())
def test_texts_of_others_cannot_steer_the_terminal(text):
    assert all(char.isprintable() for char in plain(text))


@given(st.floats(0, 1e9))
def test_durations_are_short(seconds):
    assert 0 < len(duration(seconds)) <= 9
