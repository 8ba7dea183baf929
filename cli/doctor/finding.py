"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cli.output import Column


class State(StrEnum):
    """How it stands."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not everything, or not for ever."""
    FAILED = "failed"
    """Jobs will not run, or something will be lost."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix`: the command or the line of a manifest that mends it."""

    check: str
    state: State
    message: str
    fix: str = ""

    def row(self) -> dict[str, Any]:
        """As it is shown."""
        return {"check": self.check, "state": str(self.state), "message": self.message, "fix": self.fix}


COLUMNS = (
    Column("CHECK", "check"),
    Column("STATE", "state"),
    Column("WHAT", lambda row: row["message"] + (f". Fix: {row['fix']}" if row["fix"] else "")),
)


def ok(check: str, message: str) -> Finding:
    """It is as it should be."""
    return Finding(check, State.OK, message)


def warning(check: str, message: str, fix: str = "") -> Finding:
    """It works, with a flaw."""
    return Finding(check, State.WARNING, message, fix)


def failed(check: str, message: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(check, State.FAILED, message, fix)
