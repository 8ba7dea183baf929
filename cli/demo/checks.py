"""What the demo claims, one by one: ✔ held, ✖ did not. The exit code is made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from cli.output import marks_ok, plain, styled


@dataclass
class Checks:
    """All checks so far; each is shown as it is made."""

    held: int = 0
    broken: list[str] = field(default_factory=list)

    def that(self, what: str, holds: bool, seen: object = "") -> bool:
        """Note whether `what` holds. `seen`: what was there instead, shown if it does not."""
        if holds:
            self.held += 1
        else:
            self.broken.append(what)
        mark = ("✔" if holds else "✖") if marks_ok() else ("+" if holds else "x")
        detail = f"  (but: {plain(seen)[:400]})" if not holds and seen != "" else ""
        click.echo(f"  {styled(mark, 'green' if holds else 'red')} {what}{detail}")
        return holds

    def equal(self, what: str, found: object, wanted: object) -> bool:
        """Note whether two things are the same."""
        return self.that(what, found == wanted, f"{found!r} instead of {wanted!r}")

    def states(self, what: str, run: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
        """Note whether every job of a run is in the state that is wanted of it."""
        found = {job["name"]: job["state"] for stage in run["stages"] for job in stage["jobs"]}
        wrong = {
            name: found.get(name, "not there") for name in {*found, *wanted} if found.get(name) != wanted.get(name)
        }
        return self.that(what, not wrong, wrong)
