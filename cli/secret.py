"""`hubflow secret`: values that jobs get and nobody sees again; and their encryption with a new key."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from cli.api import connect
from cli.failure import CONFIGURATION, USAGE, Failure
from cli.lazy import Group
from cli.output import Column, ago, output_option, show

if TYPE_CHECKING:
    from shared.db.reencryption import Reencrypted
    from shared.vault import Vault

COLUMNS = (Column("NAME", "name"), Column("UPDATED", lambda row: ago(row.get("updated_at"))))


@click.group(cls=Group)
def secret() -> None:
    """Set, list and delete secrets of a tenant; encrypt those of all tenants with a new key."""


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


@secret.command(epilog="""\b
Example:
  HUBFLOW_SECRET_KEY=NEW,OLD hubflow secret reencrypt

When all services have these keys; "Rotating secrets" in docs/install-kubernetes.md has all steps.""")  # fmt: skip
def reencrypt() -> int:
    """Encrypt everything in the database anew with the first key of HUBFLOW_SECRET_KEY.

    For operators: it needs no server but the database, HUBFLOW_DATABASE_URL. Safe to run many times, and to end at any moment.
    """
    url = os.environ.get("HUBFLOW_DATABASE_URL", "")
    if not url.startswith(("postgresql://", "postgres://")):
        raise Failure("HUBFLOW_DATABASE_URL is not set to a postgresql:// address", exit_code=CONFIGURATION)
    from cli.serving import run_loop
    from shared.vault import Vault

    done = run_loop(_reencrypt(url, Vault(os.environ.get("HUBFLOW_SECRET_KEY", ""))))
    click.echo(f"{done.changed} of {done.rows} secrets were encrypted anew")
    if done.unreadable:
        raise Failure(
            "none of the keys can read\n" + "\n".join(f"  {each}" for each in done.unreadable),
            hint="add the key that they were written with to HUBFLOW_SECRET_KEY, or set them again",
        )
    return 0


async def _reencrypt(url: str, vault: Vault) -> Reencrypted:
    from shared.db.database import open_database
    from shared.db.reencryption import reencrypt as go_through

    async with open_database(url, max_connections=1) as database:
        return await go_through(database, vault)
