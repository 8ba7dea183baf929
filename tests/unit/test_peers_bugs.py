"""Numbers of peers' bugs in the tests are those of docs/peers-bugs.md."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_number_in_a_test_is_in_the_list() -> None:
    listed = {
        int(number)
        for number in re.findall(r"^\| T(\d\d) \|", (ROOT / "docs" / "peers-bugs.md").read_text(), re.MULTILINE)
    }
    assert listed == set(range(1, 96))
    named: set[int] = set()
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "wrapper").glob("*_test.go")]:
        named |= {
            int(number) for number in re.findall(r"\b(?:def test_|T|func Test\w*?T)t?(\d\d)_?\b", path.read_text())
        }
    assert named
    assert named <= listed, named - listed
