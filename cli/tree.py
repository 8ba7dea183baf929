"""A run as a tree of stages and jobs: pure, from the API's document of the run to lines. Who shows them is elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cli.output import STYLES, elapsed, plain

Run = Mapping[str, Any]

FINAL = frozenset({"succeeded", "failed", "cancelled", "timed_out"})
"""Final states of a run."""
MARKS = {
    "succeeded": "✔", "failed": "✖", "timed_out": "✖", "lost": "✖", "cancelled": "⊘", "cancelling": "⊘",
    "paused": "⏸", "running": "◷", "submitted": "◷", "ready": "◷", "skipped": "-", "waiting": "·", "pending": "·",
}  # fmt: skip
ASCII_MARKS = {"✔": "+", "✖": "x", "⊘": "!", "⏸": "=", "◷": "*", "·": "."}
_FAILED = frozenset({"failed", "timed_out", "lost"})
_PLAIN_STATES = frozenset({"succeeded", "running", "waiting"})
"""What the mark says already."""
_KEPT = "kept from the run that this one retries"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `mark` in the colour `style`, the name, how long, and what there is to say."""

    depth: int
    mark: str
    style: str
    name: str
    time: str
    note: str


def lines(run: Run, now: datetime) -> Iterator[Line]:
    """The run, its stages and their jobs."""
    yield _line(0, run, f"{run['workflow']} #{run['number']}", now, start="created_at")
    for stage in run.get("stages") or ():
        yield _line(1, stage, stage["name"], now)
        for job in stage.get("jobs") or ():
            yield _line(2, job, job["name"], now, start=_begin(job))


def _line(depth: int, part: Mapping[str, Any], name: str, now: datetime, start: str = "started_at") -> Line:
    state = str(part["state"])
    time = elapsed(part.get(start), part.get("finished_at"), now) if state not in {"waiting", "skipped"} else ""
    return Line(depth, MARKS.get(state, "?"), STYLES.get(state, ""), plain(name), time, "  ".join(notes(part)))


def _begin(job: Mapping[str, Any]) -> str:
    return "started_at" if job.get("started_at") else "ready_at"


def notes(part: Mapping[str, Any], *, every_state: bool = False) -> Iterator[str]:
    """What is said of a run, stage or job behind its name: state, attempt, why, who decided.

    `every_state`: also the states that are plain from the mark.
    """
    state = str(part["state"])
    if every_state or state not in _PLAIN_STATES:
        yield state.replace("_", " ")
    if state in _FAILED and part.get("allow_failure"):
        yield "allowed to fail"
    if (part.get("attempt") or 0) > 1:
        yield f"attempt {part['attempt']}"
    kept = bool(part.get("carried_from")) or part.get("reason") == "CarriedOver"
    if kept:
        yield _KEPT
    waiting = part.get("waiting") or {}
    why = plain(waiting.get("message") or part.get("message") or part.get("reason") or "")
    if waiting.get("position"):
        why += f" ({waiting['position']} before it)"
    if why and not kept and not part.get("decision"):
        yield why if len(why) <= 160 else why[:159] + "…"
    decision = part.get("decision")
    if isinstance(decision, Mapping):
        verb = "approved" if decision.get("action") == "approve" else "rejected"
        comment = f": {plain(decision['comment'])}" if decision.get("comment") else ""
        yield f"{verb} by {plain(decision.get('by', ''))}{comment}"


def as_text(run: Run, now: datetime, *, ascii: bool = False) -> str:
    """The tree in plain text."""
    shown = list(lines(run, now))
    width = max(len(line.name) + 2 * line.depth for line in shown)
    rows = []
    for line in shown:
        mark = ASCII_MARKS.get(line.mark, line.mark) if ascii else line.mark
        name = line.name.ljust(width - 2 * line.depth)
        rows.append(f"{'  ' * line.depth}{mark} {name}  {line.time:>7}  {line.note}".rstrip())
    return "\n".join(rows)


def as_rich(run: Run, now: datetime, width: int) -> Any:
    """The tree as a rich Text whose lines are cut to `width` columns."""
    from rich.text import Text

    shown = list(lines(run, now))
    column = max(len(line.name) + 2 * line.depth for line in shown)
    rows = []
    for line in shown:
        row = Text("  " * line.depth)
        row.append(line.mark, style=line.style)
        row.append(f" {line.name.ljust(column - 2 * line.depth)}", style="bold" if line.depth == 0 else "")
        row.append(f"  {line.time:>7}  ", style="bright_black")
        row.append(line.note, style=line.style)
        row.truncate(width, overflow="ellipsis")
        rows.append(row)
    return Text("\n").join(rows)


def jobs(run: Run) -> Iterator[Mapping[str, Any]]:
    """All jobs in the order of the file, with the name of their stage as `stage`."""
    for stage in run.get("stages") or ():
        for job in stage.get("jobs") or ():
            yield {"stage": stage["name"], **job}


def failed_jobs(run: Run) -> list[Mapping[str, Any]]:
    """Jobs that failed and mattered."""
    return [job for job in jobs(run) if job["state"] in _FAILED and not job.get("allow_failure")]


def paused_stages(run: Run) -> list[Mapping[str, Any]]:
    return [stage for stage in run.get("stages") or () if stage["state"] == "paused"]


def undecided_stages(run: Run) -> list[Mapping[str, Any]]:
    """Paused stages about which nobody has decided yet."""
    return [stage for stage in paused_stages(run) if not stage.get("decision")]


def pause_hints(run: Run, stage: Any) -> list[str]:
    """How to decide about a paused stage."""
    name = shlex.quote(plain(stage["name"]))
    return [
        f"approve: hubflow run approve {run['number']} {name}",
        f"reject:  hubflow run reject {run['number']} {name}",
    ]
