"""Numbers of peers' bugs in the tests are those of docs/peers-bugs.md, and those that no test has are told."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NO_SCHEDULES = "`on: schedule` starts nothing yet"
_NO_STATUSES = "nothing posts commit statuses yet"
NOT_COVERED = {
    44: _NO_SCHEDULES,
    45: _NO_SCHEDULES,
    46: _NO_SCHEDULES,
    71: "`on: image` starts nothing yet",
    83: _NO_STATUSES,
    84: _NO_STATUSES,
    92: "there are no idle workers; a pod that does not start gives its place back (T10)",
    94: "`make bench` and `make bench-growth` measure it",
}
"""Number -> why no test has it. docs/weaknesses.md says so, too."""


def listed() -> set[int]:
    """The numbers of docs/peers-bugs.md."""
    text = (ROOT / "docs" / "peers-bugs.md").read_text()
    return {int(number) for number in re.findall(r"^\| T(\d\d) \|", text, re.MULTILINE)}


def named() -> set[int]:
    """The numbers that tests have in their names or tell in their text."""
    numbers: set[str] = set()
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "wrapper").glob("*_test.go")]:
        if path == Path(__file__):
            continue
        text = path.read_text()
        for name in re.findall(r"\bdef (test_\w+)", text):
            numbers |= set(re.findall(r"_t(\d\d)(?=_)", name))
        numbers |= set(re.findall(r"\bfunc TestT(\d\d)", text)) | set(re.findall(r"\bT(\d\d)\b", text))
    return {int(number) for number in numbers}


def test_every_number_in_a_test_is_in_the_list() -> None:
    assert listed() == set(range(1, 96))
    assert named() <= listed(), named() - listed()


def test_every_number_of_the_list_has_a_test_or_a_reason_why_not() -> None:
    assert listed() - named() == NOT_COVERED.keys()
    [told] = re.findall(
        r"^- \*\*Bugs of our peers without a test.*?(?=^- |\Z)",
        (ROOT / "docs" / "weaknesses.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert {int(number) for number in re.findall(r"\bT(\d\d)\b", told)} == NOT_COVERED.keys()
