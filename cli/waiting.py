"""Waiting for a run: a live tree on a terminal, progress lines elsewhere; at the end what failed and what to try next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

import click

from cli import logs, tree
from cli.api import Api, Refused, Unreachable
from cli.failure import OF_RUN_STATE, RUN_FAILED
from cli.output import STYLES, console, duration, elapsed, marks_ok, plain, styled

POLL = 20.0
"""Seconds that one request waits for news."""
OUTAGE = 120.0
"""Seconds that a server may be away while somebody waits: it is restarted, and runs go on meanwhile."""
LOG_ENDS_WITHIN = 10.0
"""Seconds that the last lines of logs may take after the end of the run."""
TAIL_LINES = 20


class Screen(Protocol):
    """Where the course of a run is shown."""

    def update(self, run: tree.Run) -> None:
        """There is news."""
        ...

    def log(self, job: str, line: str) -> None:
        """A job has printed a line. Called from several threads."""
        ...

    def close(self) -> None: ...


def wait_for(api: Api, run_id: str, *, with_logs: bool) -> int:
    """Show a run until it is over. Returns the exit code that mirrors it."""
    screen: Screen = LiveScreen() if sys.stdout.isatty() else LineScreen()
    tails = logs.Tails(api, run_id, screen.log) if with_logs else None
    run: tree.Run = {}
    try:
        for run in news(api, run_id):
            screen.update(run)
            if tails is not None:
                for job in _started(run):
                    tails.start(job["name"], job["attempt"])
        if tails is not None:
            tails.finish(LOG_ENDS_WITHIN)
    except KeyboardInterrupt:
        screen.close()
        click.echo(f"\nThe run goes on. `hubflow run watch {run_id}` shows it again, `hubflow run cancel {run_id}` ends it.",
                   err=True)  # fmt: skip
        raise
    finally:
        screen.close()
    report(api, run, log_shown=with_logs)
    return OF_RUN_STATE.get(str(run.get("state")), RUN_FAILED)


def news(api: Api, run_id: str) -> Iterator[tree.Run]:
    """The run's document now and after each change, until it is over. Bears a server that is away for OUTAGE seconds."""
    seen: int | None = None
    away_since, pause = 0.0, 0.2
    while True:
        try:
            run = (
                api.get("runs", run_id) if seen is None else api.wait(POLL, "runs", run_id, until="change", since=seen)
            )
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and error.status not in {502, 503, 504}:
                raise
            away_since = away_since or time.monotonic()
            if seen is None or time.monotonic() - away_since > OUTAGE:
                raise
            time.sleep(pause)  # the server is away: there is nothing to wait on
            pause = min(pause * 2, 5.0)
            continue
        away_since, pause = 0.0, 0.2
        yield run
        if run["state"] in tree.FINAL:
            return
        seen = int(run["seq"])


def _started(run: tree.Run) -> Iterator[Any]:
    for job in tree.jobs(run):
        if job.get("attempt") and job["state"] not in {"waiting", "skipped", "ready"} and not job.get("carried_from"):
            yield job


class LiveScreen:
    """The tree, redrawn in place four times a second so that times run; log lines scroll above it."""

    def __init__(self) -> None:
        from rich.live import Live

        self._console = console()
        self._run: tree.Run | None = None
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4, redirect_stderr=False)
        self._live.start()

    def update(self, run: tree.Run) -> None:
        self._run = run
        self._live.refresh()

    def log(self, job: str, line: str) -> None:
        from rich.text import Text

        # What a job prints may hold colours of its own, and worse; only the colours are kept.
        self._console.print(Text.assemble((f"{plain(job)} | ", "bright_black"), Text.from_ansi(line)), soft_wrap=True)

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> Any:
        if self._run is None:
            return ""
        text = tree.as_rich(self._run, datetime.now(UTC), self._console.width)
        for stage in tree.undecided_stages(self._run):
            for hint in tree.pause_hints(self._run, stage):
                text.append(f"\n    {hint}", style=STYLES["paused"])
        return text


class LineScreen:
    """A line for each change of state: for logs of CI systems, pipes and files."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def update(self, run: tree.Run) -> None:
        now = datetime.now(UTC)
        over = run["state"] in tree.FINAL
        if not over:
            self._tell_run(run, now)
        for stage in run.get("stages") or ():
            if stage["state"] == "paused" and self._tell(
                "stage " + stage["name"], stage, f"stage {stage['name']}", now, None
            ):
                hints = tree.pause_hints(run, stage) if stage in tree.undecided_stages(run) else []
                self._say("\n".join(f"    {hint}" for hint in hints))
        for job in tree.jobs(run):
            self._tell("job " + job["name"], job, f"{job['stage']} / {job['name']}", now, job.get("started_at"))
        if over:
            self._tell_run(run, now)

    def _tell_run(self, run: tree.Run, now: datetime) -> None:
        self._tell("run", run, f"run {run['workflow']} #{run['number']}", now, run.get("created_at"))

    def log(self, job: str, line: str) -> None:
        self._say(f"{plain(job)} | {line}")

    def close(self) -> None: ...

    def _tell(self, key: str, part: Any, title: str, now: datetime, start: Any) -> bool:
        state, notes = str(part["state"]), "  ".join(tree.notes(part, every_state=True))
        unremarkable = state in {"waiting", "ready", "submitted"} and notes == state
        if unremarkable or self._seen.get(key) == (state, notes):
            return False
        self._seen[key] = (state, notes)
        mark = tree.MARKS.get(state, "?")
        if not marks_ok():
            mark = tree.ASCII_MARKS.get(mark, mark)
        time_taken = elapsed(start, part.get("finished_at"), now) if part.get("finished_at") else ""
        words = [datetime.now().astimezone().strftime("%H:%M:%S"), mark, plain(title), notes, time_taken]
        self._say("  ".join(word for word in words if word))
        return True

    def _say(self, text: str) -> None:
        if text:
            with self._lock:
                click.echo(text)
                sys.stdout.flush()


def report(api: Api, run: tree.Run, *, log_shown: bool) -> None:
    """The last words about a run that is over: times of jobs, why it failed, the end of the failing log, what to try."""
    state = str(run.get("state"))
    taken = elapsed(run.get("created_at"), run.get("finished_at")) or duration(0)
    headline = f"run {run['workflow']} #{run['number']} {state.replace('_', ' ')} after {taken}"
    if run.get("message"):
        headline += f": {plain(run['message'])}"
    click.echo(styled(headline, STYLES.get(state, "")))
    if state == "succeeded":
        return
    failed = tree.failed_jobs(run)
    for job in failed[:1] if not log_shown else []:
        if lines := logs.last_lines(api, str(run["id"]), job["name"], TAIL_LINES):
            click.echo(styled(f"\nthe last lines of {job['stage']} / {plain(job['name'])}:", "bright_black"))
            click.echo("\n".join(f"  {plain(line)}" for line in lines))
    click.echo("\nTry:")
    if failed:
        click.echo(f"  hubflow run logs {run['number']} --failed   the logs of what failed")
    click.echo(f"  hubflow run retry {run['number']}           run again what did not succeed")
