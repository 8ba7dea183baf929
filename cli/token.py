"""`hubflow token`: who may do what; and the secret key of an installation."""

from __future__ import annotations

import re

import click

from cli.api import connect
from cli.failure import USAGE, Failure
from cli.lazy import Group
from cli.output import Column, ago, output_option, show

SCOPES = ("read", "run", "write", "approve", "admin")
COLUMNS = (
    Column("NAME", "name"),
    Column("SCOPES", "scopes"),
    Column("CREATED", lambda row: ago(row.get("created_at"))),
    Column("EXPIRES", lambda row: row.get("expires_at") or "never"),
    Column("REVOKED", lambda row: ago(row.get("revoked_at"))),
    Column("ID", "id"),
)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
OPERATOR = click.option("--operator", is_flag=True, help="A token of no tenant, for operators.")


@click.group(cls=Group)
def token() -> None:
    """Create, list and revoke access tokens; make a secret key."""


def _path(operator: bool) -> str:
    return "operator-tokens" if operator else "tokens"


def seconds(text: str | None) -> float | None:
    """`30d`, `12h`, ... Raises Failure for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})([smhdwy])", text)
    if not match:
        raise Failure(f"{text!r} is no length of time", hint="write 12h, 30d or 1y", exit_code=USAGE)
    return float(int(match[1]) * _UNITS[match[2]])


@token.command(epilog="""\b
Examples:
  hubflow token create ci --scope run --expires 90d
  hubflow token create alice --scope approve""")  # fmt: skip
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), default=("read",), show_default=True,
              help="What it may do; repeatable. read: look, which all others may too; run: start, cancel, retry; "
              "write: workflows, secrets; approve: decide; admin: all.")  # fmt: skip
@click.option("--expires", metavar="TIME", help="12h, 30d, 1y.  [default: never]")
@OPERATOR
@output_option(table=False)
def create(name: str, scopes: tuple[str, ...], expires: str | None, operator: bool, output: str) -> None:
    """Create a token and show it: the only time that it is shown."""
    body = {"name": name, "scopes": list(dict.fromkeys(scopes)), "expires_in": seconds(expires)}
    made = connect().create(_path(operator), body=body)
    if output == "text":
        click.echo(f"token {name} ({', '.join(made['scopes'])}); it is not shown again:", err=True)
        click.echo(made["token"])
    else:
        show(made, output, COLUMNS)


@token.command("list")
@OPERATOR
@output_option(name=True)
def list_tokens(operator: bool, output: str) -> None:
    """List tokens; what they are is known only to their bearers."""
    show(connect().pages(_path(operator), limit=10000), output, COLUMNS, name="id")


@token.command()
@click.argument("id")
@OPERATOR
def revoke(id: str, operator: bool) -> None:
    """Revoke a token by its id (see `hubflow token list`); it is refused from now on."""
    revoked = connect().call("DELETE", _path(operator), id)
    click.echo(f"token {revoked['name']} revoked")


@token.command(epilog="""\b
Example:
  export HUBFLOW_SECRET_KEY=$(hubflow token key)""")  # fmt: skip
def key() -> None:
    """Make a secret key for a new installation (HUBFLOW_SECRET_KEY). Needs no server."""
    import base64
    import os

    # The same as shared.vault.new_key, without loading a cryptography library for 32 random bytes.
    click.echo(base64.urlsafe_b64encode(os.urandom(32)).decode())
