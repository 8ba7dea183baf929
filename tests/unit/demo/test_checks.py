"""A check that does not hold is never overlooked."""

from __future__ import annotations

from typing import Any

import pytest

from cli.demo.checks import Checks

RUN: dict[str, Any] = {"stages": [{"jobs": [{"name": "a", "state": "succeeded"}, {"name": "b", "state": "failed"}]}]}


def test_what_does_not_hold_is_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    checks = Checks()
    assert checks.equal("the same", 1, 1)
    assert not checks.equal("not the same", 1, 2)
    assert (checks.held, checks.broken) == (1, ["not the same"])
    assert "1 instead of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wanted",
    [{"a": "succeeded"}, {"a": "succeeded", "b": "succeeded"}, {"a": "succeeded", "b": "failed", "c": "skipped"}],
)
def test_every_job_must_be_in_its_state(wanted: dict[str, str]) -> None:
    assert not Checks().states("states", RUN, wanted)


def test_states_as_wanted() -> None:
    assert Checks().states("states", RUN, {"a": "succeeded", "b": "failed"})
