"""The tables of arrows, the diagrams in docs/states.md, and the checks in the schema say the same."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.scheduler.arrows import JOB_ARROWS, RUN_ARROWS, STAGE_ARROWS, checked
from shared.db.migrate import migrations
from shared.states import JobState, RunState, StageState

TABLES: dict[str, tuple[type[enum.StrEnum], Mapping[str, frozenset[str]]]] = {
    "Runs": (RunState, RUN_ARROWS), "Stages": (StageState, STAGE_ARROWS), "Jobs": (JobState, JOB_ARROWS),
}  # fmt: skip
DIAGRAMS = Path(__file__).parents[3] / "docs" / "states.md"


@pytest.mark.parametrize("what", TABLES)
def test_the_diagram_has_the_arrows_of_the_table(what: str) -> None:
    section = re.split(r"^## ", DIAGRAMS.read_text(), flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith(what)]
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)", text, flags=re.MULTILINE))
    _, arrows = TABLES[what]
    assert drawn == {(str(before), str(after)) for before, afters in arrows.items() for after in afters}


@pytest.mark.parametrize("what", TABLES)
def test_final_states_have_no_arrow_out_and_all_others_do(what: str) -> None:
    states, arrows = TABLES[what]
    assert {state for state in states if not arrows.get(state)} == {state for state in states if state.final}  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", TABLES)
def test_the_schema_allows_exactly_these_states(what: str) -> None:
    states, _ = TABLES[what]
    sql = "\n".join(migration.sql for migration in migrations())
    table = sql[sql.index(f"CREATE TABLE {what.lower()} (") :]
    [allowed] = re.findall(r"CHECK \(state IN \(([^)]*)\)", table[: table.index(";")])
    assert set(re.findall(r"'(\w+)'", allowed)) == {str(state) for state in states}


def test_an_arrow_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AssertionError, match="no arrow"):
        checked(RUN_ARROWS, RunState.SUCCEEDED, RunState.FAILED)
