"""`hubflow events`: what has happened in a run; and, for operators, messages that could not be handled."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import click

from cli.api import Api, connect
from cli.failure import USAGE, Failure
from cli.lazy import Group
from cli.output import Column, output_option, plain, show

_COMMON = frozenset({"id", "type", "tenant", "time", "run", "seq", "cause", "trace", "stage", "job", "attempt"})
COLUMNS = (
    Column("SEQ", "seq"),
    Column("TIME", "time"),
    Column("TYPE", "type"),
    Column("STAGE", "stage"),
    Column("JOB", "job"),
    Column("ATTEMPT", "attempt", wide=True),
    Column("ID", "id", wide=True),
    Column("WHAT", lambda event: {key: value for key, value in event.items() if key not in _COMMON and value}),
)
DEAD_COLUMNS = (
    Column("ID", "id"),
    Column("SERVICE", "queue"),
    Column("TOPIC", "topic"),
    Column("TRIES", "tries"),
    Column("REASON", "reason"),
)
_PAGE = 1000


class _Events(Group):
    """`events RUN` is short for `events show RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        word = next((each for each in args if not each.startswith("-")), None)
        if (
            word is not None
            and word not in self.commands
            and (word[0].isdigit() or word.startswith("@") or _is_id(word))
        ):
            args = ["show", *args]
        return super().parse_args(ctx, args)


def _is_id(word: str) -> bool:
    try:
        uuid.UUID(word)
    except ValueError:
        return False
    return True


@click.group(cls=_Events, epilog="""\b
Examples:
  hubflow events @latest           what has happened in a run
  hubflow events dead list         what could not be handled (operators)""")  # fmt: skip
def events() -> None:
    """Show the events of a run; show and replay parked ones."""


@events.command("show", epilog="""\b
Examples:
  hubflow events show 12
  hubflow events show @latest --follow -o json""")  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.option(
    "-f", "--follow", is_flag=True, help="Go on until the run is over; one line (with -o json: one document) each."
)
@output_option()
def show_events(run_ref: str, follow: bool, output: str) -> None:
    """Show the events of a run, oldest first. RUN is a number, an id, or @latest."""
    api = connect()
    if not follow:
        show(list(_all(api, run_ref)), output, COLUMNS, empty="no events yet")
        return
    for event in _followed(api, run_ref):
        if output in {"json", "yaml"}:
            click.echo(json.dumps(event, ensure_ascii=False))
        else:
            click.echo("  ".join(text for column in COLUMNS if (text := column.text(event)) and not column.wide))


def _all(api: Api, run_ref: str) -> Iterator[dict[str, Any]]:
    since = 0
    while True:
        page = api.get("runs", run_ref, "events", since=since or None, limit=_PAGE)
        yield from page["items"]
        if len(page["items"]) < _PAGE:
            return
        since = page["next_since"]


def _followed(api: Api, run_ref: str) -> Iterator[dict[str, Any]]:
    """From the server's stream of events (Server-Sent Events), until the run is over."""
    from cli.logs import text_lines

    with api.stream("runs", run_ref, "events", query={"follow": True}, timeout=60.0) as stream:
        for line in text_lines(stream.chunks()):
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


@events.group(cls=Group)
def dead() -> None:
    """Messages that a service could not handle: each is kept, with the reason, until somebody replays it."""


@dead.command("list", epilog="""\b
Example:
  hubflow events dead list -o json""")  # fmt: skip
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000), help="At most this many.")
@output_option(name=True)
def list_dead(limit: int, output: str) -> None:
    """List parked messages, oldest first. Needs an operator's token."""
    found = connect().get("dead-events", limit=limit)["items"]
    show(found, output, DEAD_COLUMNS, name="id", empty="nothing is parked: everything was handled")


@dead.command(epilog="""\b
Examples:
  hubflow events dead replay 01a205fe-4aa4-73c3-8244-bab306dbe4d8
  hubflow events dead replay --all""")  # fmt: skip
@click.argument("ids", nargs=-1, type=click.UUID, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that are parked now.")
def replay(ids: tuple[uuid.UUID, ...], everything: bool) -> None:
    """Hand parked messages to their services again. Needs an operator's token."""
    if bool(ids) == everything:
        raise Failure(
            "name the messages, or say --all", hint="`hubflow events dead list` shows their ids", exit_code=USAGE
        )
    api = connect()
    wanted = [str(each) for each in ids] or [each["id"] for each in api.get("dead-events", limit=1000)["items"]]
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        click.echo("nothing is parked")
        return
    done = api.create("dead-events", "replay", body={"ids": wanted})["replayed"]
    click.echo(f"replayed {len(done)} of {len(wanted)}")
    for missing in sorted(set(wanted) - set(done)):
        click.echo(f"not parked: {plain(missing)}", err=True)
