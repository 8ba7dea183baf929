"""`hubflow subscription`: where a tenant's events are sent as signed webhooks."""

from __future__ import annotations

from typing import Any

import click

from cli.api import connect
from cli.lazy import Group
from cli.output import Column, ago, output_option, show

COLUMNS = (
    Column("URL", "url"),
    Column("TYPES", lambda row: row.get("types") or "all"),
    Column("ENABLED", "enabled"),
    Column("SINCE", lambda row: ago(row.get("created_at"))),
)
DELIVERY_COLUMNS = (
    Column("TYPE", "type"),
    Column("STATE", "state"),
    Column("TRIES", "tries"),
    Column("STATUS", "last_status"),
    Column("AGE", lambda row: ago(row.get("created_at"))),
    Column("ID", "id", wide=True),
    Column("EVENT", "event", wide=True),
    Column("ERROR", "last_error"),
)


@click.group(cls=Group)
def subscription() -> None:
    """Where the events of a tenant are sent as signed webhooks."""


@subscription.command("set", epilog="""\b
Examples:
  hubflow subscription set https://hooks.example/hubflow
  hubflow subscription set https://hooks.example/hubflow --type run.finished --type stage.finished""")  # fmt: skip
@click.argument("url")
@click.option(
    "--type", "types", multiple=True, help="An event type; repeatable.  [default: all of runs, stages and jobs]"
)
@click.option("--disabled", is_flag=True, help="Keep it, but send nothing.")
@output_option()
def set_subscription(url: str, types: tuple[str, ...], disabled: bool, output: str) -> None:
    """Send events to URL. The secret that deliveries are signed with (Standard Webhooks) is shown once."""
    made = connect().call("PUT", "subscription", body={"url": url, "types": list(types), "enabled": not disabled})
    show(made, output, COLUMNS)
    _tell_secret(made, output)


def _tell_secret(made: dict[str, Any], output: str) -> None:
    if made.get("secret") and output in {"table", "wide"}:
        click.echo("\nits secret, which is not shown again:", err=True)
        click.echo(made["secret"])


@subscription.command("show")
@output_option()
def show_subscription(output: str) -> None:
    """Show where events are sent."""
    show(connect().get("subscription"), output, COLUMNS)


@subscription.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(yes: bool) -> None:
    """Send no more events."""
    if not yes:
        click.confirm("send no more events?", abort=True)
    connect().call("DELETE", "subscription")
    click.echo("subscription deleted")


@subscription.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option()
def rotate(yes: bool, output: str) -> None:
    """Replace the secret; deliveries are signed with the new one from now on."""
    if not yes:
        click.confirm("replace the secret?", abort=True)
    made = connect().create("subscription", "secret")
    show(made, output, COLUMNS)
    _tell_secret(made, output)


@subscription.command()
def test() -> None:
    """Send a test event; `hubflow subscription deliveries` shows what came of it."""
    told = connect().create("subscription", "test")
    click.echo(f"event {told['event']} is on its way; `hubflow subscription deliveries` shows what came of it")


@subscription.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10000), help="At most this many.")
@output_option(name=True)
def deliveries(limit: int, output: str) -> None:
    """List deliveries, newest first."""
    found = connect().pages("deliveries", limit=limit)
    show(found, output, DELIVERY_COLUMNS, name="id", empty="nothing was delivered yet")
