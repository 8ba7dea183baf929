"""Writes docs/cli.md from the commands themselves: `python -m cli.reference`. A test checks that it is fresh."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from cli.generated import write_or_check
from cli.main import hubflow

PLACE = Path(__file__).parents[1] / "docs" / "cli.md"

_HEAD = """# The command `hubflow`

<!-- Made by `python -m cli.reference` from the commands themselves; change them, not this file. -->

## Where the server is

`hubflow dev` starts a server on this machine and writes `.hubflow/context.json`; every command started in that folder or below
finds address, token and tenant there. Elsewhere say them:

| variable | option | meaning |
|---|---|---|
| `HUBFLOW_URL` | `--url` | address of the server |
| `HUBFLOW_TOKEN` | | who is asking; made by `hubflow token create` |
| `HUBFLOW_TENANT` | `--tenant` | which tenant is meant; only operators' tokens need it |
| `HUBFLOW_CONTEXT` | | another context file than the nearest one, such as `.hubflow/demo/context.json` |

The token of a context file is sent to the address of that file only; and `HUBFLOW_TOKEN` is not sent to the address of a file
that was merely found, which may have come with somebody's repository: name the server (`HUBFLOW_URL`, `--url`) or the file
(`HUBFLOW_CONTEXT`) with it. Found files that belong to another user are left out. (No option for the token: it would stand in lists of
processes.)

## Output

`-o table` (the default) is for people, `-o wide` shows more columns; `-o json` and `-o yaml` are the server's own documents and
stable; `-o name` shows one name a line, for scripts. Colours and the live tree appear on a terminal only; `NO_COLOR` turns
colours off. Data go to stdout, messages to stderr.

A RUN is named by its number, its id, or `@latest`.

## Exit codes

| code | meaning |
|---|---|
| 0 | ok; with `--wait` and `watch`: the run succeeded |
| 1 | the run failed; files have faults (`workflow validate`, `apply`); they differ (`workflow diff`); a server did not start (`dev`, `serve`); the database lacks something (`migrate --check`); a check failed (`doctor`) |
| 2 | wrong usage: unknown command or option, bad value, no server known |
| 3 | the run was cancelled |
| 4 | the run timed out |
| 5 | the server did not answer, or refused the request; the message says which |
| 78 | `serve`, `migrate`, `dev`: the settings are wrong, nothing was started |
| 130 | interrupted by Ctrl-C; a run that was waited for goes on |

## Commands

`hubflow demo` has a page of its own: [demo.md](demo.md).
"""  # noqa: E501 -- rows of a table


def document() -> str:
    """The whole of docs/cli.md."""
    index = [f"- [`{words}`](#{_anchor(words)}): {_first_sentence(command)}" for words, command in commands()]
    parts = [_HEAD, "\n".join(index), *(_section(words, command) for words, command in commands())]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def commands(group: click.Group = hubflow, path: str = "hubflow") -> Iterator[tuple[str, click.Command]]:
    """(words, command) of every command that is no group."""
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        elif command is not None and name != "demo":
            yield f"{path} {name}", command


def _section(words: str, command: click.Command) -> str:
    context = click.Context(command, info_name=words)
    usage = " ".join([words, *command.collect_usage_pieces(context)])
    lines = [f"### {words}", "", f"    {usage}", "", _prose(command.help or "")]
    rows = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    rows = [(option, help) for option, help in rows if "--help" not in option]
    if rows:
        lines += ["", "| option | |", "|---|---|", *(f"| `{_cell(option)}` | {_cell(help)} |" for option, help in rows)]
    if command.epilog:
        lines += _epilog(command.epilog)
    return "\n".join(lines)


def _prose(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _epilog(text: str) -> Iterator[str]:
    """Examples as code, what follows them as prose."""
    for block in text.replace("\b\n", "").split("\n\n"):
        lines = [line for line in block.splitlines() if line not in {"Example:", "Examples:"}]
        yield ""
        yield from (f"    {line.removeprefix('  ')}" if line.startswith("  ") else line for line in lines)


def _first_sentence(command: click.Command) -> str:
    return re.split(r"(?<=[.:;])\s", " ".join((command.help or "").split()), maxsplit=1)[0].rstrip(".:;")


def _anchor(words: str) -> str:
    return words.replace(" ", "-")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(write_or_check(PLACE, document()))
