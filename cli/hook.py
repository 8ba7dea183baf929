"""`hubflow hook`: where git servers and other systems send their webhooks, and what they sign them with."""

from __future__ import annotations

from typing import Any

import click

from cli.api import connect
from cli.lazy import Group
from cli.output import output_option, plain, show_document


@click.group(cls=Group)
def hook() -> None:
    """Show the address and secret for a git repository's webhook."""


@hook.command("show", epilog="""\b
Example:
  hubflow hook show build""")  # fmt: skip
@click.argument("workflow")
@output_option(table=False)
def show_hook(workflow: str, output: str) -> None:
    """Show where to send webhooks that start WORKFLOW, and the secret to sign them with."""
    api = connect()
    found = api.get("workflows", workflow, "hook")
    show_document(found, output, _as_text(found))
    starts = api.get("workflows", workflow)["document"]["on"]
    if not starts["push"] and not starts["webhook"]:
        click.echo(f"\nNothing is started by them yet: the file of {plain(workflow)} has neither `on: push` nor "
                   "`on: webhook`.", err=True)  # fmt: skip


@hook.command(epilog="""\b
Example:
  hubflow hook rotate build --yes""")  # fmt: skip
@click.argument("workflow")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option(table=False)
def rotate(workflow: str, yes: bool, output: str) -> None:
    """Replace the secret. Senders that still sign with the old one are refused from now on."""
    if not yes:
        click.confirm(f"replace the hook secret of {workflow}?", abort=True)
    found = connect().create("workflows", workflow, "hook", "secret")
    show_document(found, output, _as_text(found))


def _as_text(found: dict[str, Any]) -> str:
    width = max(len(source) for source in found["urls"])
    lines = [f"{source.ljust(width)}  {plain(url)}" for source, url in found["urls"].items()]
    lines.append(f"{'secret'.ljust(width)}  {found['secret']}")
    if "github" in found["urls"]:
        lines.append("\nOn GitHub and Gitea: Settings, Webhooks, Add webhook: content type application/json, this secret,"
                     "\nthe push event.")  # fmt: skip
    if "generic" in found["urls"]:
        lines.append("\nAnything else sends JSON to the generic address, signed as Standard Webhooks say, or with the header"
                     "\nX-Hubflow-Signature-256: sha256=<HMAC-SHA256 of the body with the whole secret, in hex>.")  # fmt: skip
    return "\n".join(lines)
