"""Showing data: `-o table|wide|json|yaml|name`. Tables for people, the server's own documents for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from cli.failure import colour

Function = TypeVar("Function", bound=Callable[..., Any])
Row = dict[str, Any]

STYLES = {
    "succeeded": "green", "failed": "red", "timed_out": "red", "lost": "red", "cancelled": "yellow",
    "cancelling": "yellow", "paused": "magenta", "running": "cyan", "skipped": "bright_black", "ok": "green",
    "warning": "yellow",
}  # fmt: skip
"""State -> colour, in tables and trees."""


@dataclass(frozen=True, slots=True)
class Column:
    """`value`: a key of the row, or a function of it. `wide`: only with `-o wide`."""

    title: str
    value: str | Callable[[Row], Any]
    wide: bool = False

    def text(self, row: Row) -> str:
        value = self.value(row) if callable(self.value) else row.get(self.value)
        return "" if value is None else plain(value)


def output_option(*, name: bool = False, table: bool = True) -> Callable[[Function], Function]:
    """The option `-o`; the command gets it as `output`."""
    kinds = [*(["table", "wide"] if table else ["text"]), "json", "yaml", *(["name"] if name else [])]
    return click.option(
        "-o", "--output", type=click.Choice(kinds), default=kinds[0], show_default=True, help="How to show it."
    )


def show(
    data: Any, output: str, columns: Sequence[Column], *, name: str = "name", empty: str = "nothing there"
) -> None:
    """Show rows (a list, or one map) as `output` says. `name`: key that `-o name` shows; `empty`: said instead of no rows."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif output == "yaml":
        click.echo(as_yaml(data), nl=False)
    else:
        rows = data if isinstance(data, list) else [data]
        if output == "name":
            click.echo("".join(f"{row[name]}\n" for row in rows), nl=False)
        elif not rows:
            click.echo(empty, err=True)
        else:
            click.echo(table(rows, columns, wide=output == "wide"), nl=False)


def show_document(data: Any, output: str, text: str) -> None:
    """Show one thing that has its own text for people."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif output == "yaml":
        click.echo(as_yaml(data), nl=False)
    else:
        click.echo(text)


def as_yaml(data: Any) -> str:
    import yaml

    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def table(rows: Sequence[Row], columns: Sequence[Column], *, wide: bool = False) -> str:
    """Rows under their titles. On a terminal coloured and fitted to its width, elsewhere whole."""
    from rich.table import Table
    from rich.text import Text

    shown = [column for column in columns if wide or not column.wide]
    view = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for column in shown:
        view.add_column(
            column.title, no_wrap=column is not shown[-1], overflow="fold" if column is shown[-1] else "ellipsis"
        )
    for row in rows:
        cells = [column.text(row) for column in shown]
        view.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    screen = console()
    with screen.capture() as captured:
        screen.print(view)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def console(*, err: bool = False) -> Any:
    """A rich console that keeps to our rules about colours; wide where no terminal limits it."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    on_terminal = bool(stream.isatty())
    return Console(
        file=stream, force_terminal=on_terminal, no_color=not colour(stream), highlight=False, markup=False, emoji=False,
        width=None if on_terminal else 1000, legacy_windows=False,
    )  # fmt: skip


def styled(text: str, style: str) -> str:
    """Text in a colour where stdout shows colours."""
    return click.style(text, fg=style) if style and colour(sys.stdout) else text


def plain(value: Any) -> str:
    """A value as one line, without control characters: texts of others must not steer the terminal."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple, set)):
        return ", ".join(plain(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain(each)}" for key, each in value.items())
    return "".join(char if char.isprintable() else " " for char in str(value))


def printable(text: str) -> str:
    """The same for several lines."""
    return "\n".join(plain(line) for line in text.splitlines())


def marks_ok() -> bool:
    """Can stdout show ✔?"""
    try:
        "✔✖◷⏸".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# times


def moment(value: Any) -> datetime | None:
    """A time of the API, or None."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def ago(value: Any, now: datetime | None = None) -> str:
    """`5m ago`; "" if there is no such time."""
    found = moment(value)
    return f"{duration(((now or datetime.now(UTC)) - found).total_seconds())} ago" if found else ""


def elapsed(start: Any, end: Any, now: datetime | None = None) -> str:
    """From `start` to `end`, or until now; "" if it has not started."""
    began = moment(start)
    if began is None:
        return ""
    return duration(((moment(end) or now or datetime.now(UTC)) - began).total_seconds())


def duration(seconds: float) -> str:
    """`0.4s`, `12s`, `3m05s`, `2h10m`, `3d4h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def size(number: Any) -> str:
    """Bytes for people: `812 B`, `1.4 MiB`."""
    value = float(number or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
