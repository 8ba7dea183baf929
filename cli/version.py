"""`hubflow version`."""

from __future__ import annotations

import click

from cli.failure import Failure
from cli.output import output_option, show_document


@click.command(epilog="""\b
Example:
  hubflow version -o json""")  # fmt: skip
@output_option(table=False)
def version(output: str) -> None:
    """Show the version of this command and, if one is known and answers, of the server."""
    from importlib.metadata import version as installed

    from cli.api import connect

    facts = {"client": installed("hubflow"), "server": "", "url": ""}
    try:
        api = connect()
        facts["url"] = api.context.url
        facts["server"] = str(api.get("openapi.json")["info"]["version"])
    except (Failure, KeyError, TypeError):
        facts["server"] = "no answer" if facts["url"] else "none known"
    show_document(facts, output, f"hubflow {facts['client']}\nserver  {facts['server']}  {facts['url']}".rstrip())
