"""How the command ends when something is wrong: a sentence, a hint, and an exit code that scripts can trust."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

import click

OK = 0
RUN_FAILED = 1
"""The run failed (with --wait, watch), or the files have faults (validate, apply), or they differ (diff), or a check has found
something (doctor, migrate --check)."""
USAGE = 2
RUN_CANCELLED = 3
RUN_TIMED_OUT = 4
UNREACHABLE = 5
"""The server did not answer, or refused the request."""
CONFIGURATION = 78
"""serve, migrate, dev: the settings are wrong; nothing was started (EX_CONFIG of sysexits.h)."""
INTERRUPTED = 130
BROKEN_PIPE = 141

OF_RUN_STATE = {"succeeded": OK, "failed": RUN_FAILED, "cancelled": RUN_CANCELLED, "timed_out": RUN_TIMED_OUT}
"""Final state of a run -> exit code of whoever waited for it."""


class Failure(click.ClickException):
    """What happened, and what to try next. Shown without a trace."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = RUN_FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code  # type: ignore[misc]  # click means it to be set

    def show(self, file: IO[Any] | None = None) -> None:
        say_error(self.message, self.hint)


def say_error(message: str, hint: str = "") -> None:
    """An error for people, on stderr: what happened, and on a line of its own what to try."""
    lines = [click.style("Error: ", fg="red", bold=True) + message]
    if hint:
        lines.append(click.style("Try: ", fg="cyan") + hint)
    click.echo("\n".join(lines), err=True, color=colour(sys.stderr))


def colour(stream: Any) -> bool:
    """Colours: only on a terminal that can show them, and not where NO_COLOR is set (https://no-color.org)."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
