"""`hubflow secret`: values that jobs get and nobody sees again."""

from __future__ import annotations

import sys

import click

from cli.api import connect
from cli.failure import USAGE, Failure
from cli.lazy import Group
from cli.output import Column, ago, output_option, show

COLUMNS = (Column("NAME", "name"), Column("UPDATED", lambda row: ago(row.get("updated_at"))))


@click.group(cls=Group)
def secret() -> None:
    """Set, list and delete secrets of a tenant."""


@secret.command("set", epilog="""\b
Examples:
  hubflow secret set REGISTRY_PASSWORD                      asks, without showing it
  pass show registry | hubflow secret set REGISTRY_PASSWORD --from-stdin""")  # fmt: skip
@click.argument("name")
@click.option("--from-stdin", is_flag=True, help="Read the value from stdin; one newline at its end is left out.")
def set_secret(name: str, from_stdin: bool) -> None:
    """Set a secret. The value is no argument, so that it stands in no shell history and no list of processes."""
    if from_stdin or not sys.stdin.isatty():
        try:
            value = sys.stdin.buffer.read(1 << 20).decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise Failure("the value is not UTF-8", hint="store binary values in base64", exit_code=USAGE) from None
    else:
        value = click.prompt("value", hide_input=True, confirmation_prompt=True, err=True)
    if not value:
        raise Failure("the value is empty", hint=f"`hubflow secret delete {name}` removes a secret", exit_code=USAGE)
    connect().call("PUT", "secrets", name, body={"value": value})
    click.echo(f"secret {name} set")


@secret.command("list")
@output_option(name=True)
def list_secrets(output: str) -> None:
    """List the names of secrets; values are never shown."""
    show(
        connect().pages("secrets", limit=10000),
        output,
        COLUMNS,
        empty="no secrets; `hubflow secret set NAME` makes one",
    )


@secret.command()
@click.argument("name")
def delete(name: str) -> None:
    """Delete a secret."""
    connect().call("DELETE", "secrets", name)
    click.echo(f"secret {name} deleted")
