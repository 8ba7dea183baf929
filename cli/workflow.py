"""`hubflow workflow`: check, apply, compare and list workflow files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cli.api import Refused, connect
from cli.failure import OK, RUN_FAILED, USAGE, Failure, say_error
from cli.lazy import Group
from cli.output import Column, ago, output_option, plain, show, show_document, styled

COLUMNS = (
    Column("NAME", "name"),
    Column("VERSION", "version"),
    Column("UPDATED", lambda row: ago(row.get("updated_at"))),
    Column("CREATED", lambda row: ago(row.get("created_at")), wide=True),
    Column("DESCRIPTION", "description"),
)
FILE = click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
_READ_LIMIT = (1 << 21) + 1
"""Bytes; the parser refuses less, but with a better sentence."""


@click.group(cls=Group)
def workflow() -> None:
    """Check, apply and compare workflow files."""


def _read(path: Path) -> tuple[bytes, str]:
    """The file and its name in messages. Raises Failure if it cannot be read."""
    if str(path) == "-":
        return sys.stdin.buffer.read(_READ_LIMIT), "<stdin>"
    try:
        with path.open("rb") as file:
            return file.read(_READ_LIMIT), str(path)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}", exit_code=USAGE) from None


@workflow.command(epilog="""\b
Examples:
  hubflow workflow validate hubflow.yaml
  hubflow workflow validate flows/*.yml -o json""")  # fmt: skip
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True), metavar="FILE...")
@output_option(table=False)
def validate(files: tuple[Path, ...], output: str) -> int:
    """Check workflow files, without a server: all faults at once, each with its place.

    Exit code 1 if there are any, 2 if a file cannot be read.
    """
    from shared.workflow.faults import Fault, WorkflowError
    from shared.workflow.parser import parse_workflow

    results: list[dict[str, Any]] = []
    texts = []
    exit_code = OK
    for path in files:
        try:
            parsed = parse_workflow(*_read(path))
            faults, good = parsed.warnings, True
            title = f"{path}: ok ({parsed.model.name})"
        except Failure as failure:
            exit_code = USAGE
            fault = Fault(str(path), 1, 1, "", failure.message)
            results.append({"file": str(path), "valid": False, "faults": [fault.as_dict()]})
            say_error(failure.message)
            continue
        except WorkflowError as error:
            faults, good = error.faults, False
            exit_code = max(exit_code, RUN_FAILED)
            count = sum(fault.severity == "error" for fault in faults)
            title = f"{path}: {count} fault{'s' if count != 1 else ''}"
        results.append({"file": str(path), "valid": good, "faults": [fault.as_dict() for fault in faults]})
        mark = styled("✔", "green") if good else styled("✖", "red")
        texts.append("\n\n".join([*(fault.render() for fault in faults), f"{mark} {title}"]))
    if texts or output != "text":
        show_document(results, output, "\n\n".join(texts))
    return exit_code


@workflow.command(epilog="""\b
Examples:
  hubflow workflow apply hubflow.yaml
  hubflow workflow apply hubflow.yaml --dry-run""")  # fmt: skip
@FILE
@click.option("--dry-run", is_flag=True, help="Check it on the server, record nothing.")
@output_option(name=True)
def apply(file: Path, dry_run: bool, output: str) -> None:
    """Make FILE the newest version of its workflow; a file that is the newest already changes nothing."""
    name, source = _checked(file)
    try:
        answer = connect().call(
            "PUT", "workflows", name, query={"dry_run": dry_run or None, "file": str(file)}, body=source.encode(),
            headers={"Content-Type": "application/yaml"},
        )  # fmt: skip
    except Refused as error:
        if error.code == "invalid-workflow":  # the server is of another version than this command
            error.exit_code = RUN_FAILED  # type: ignore[misc]
        raise
    for warning in answer.get("warnings") or ():
        click.echo(str(warning.get("rendered") or warning.get("message")), err=True)
    if output == "table":
        would = "would be " if dry_run else ""
        done = f"{would}{'applied as' if answer['changed'] else 'unchanged, it is'} version {answer['version']}"
        click.echo(f"workflow {plain(answer['name'])}: {done}")
    else:
        show(answer, output, COLUMNS)


def _checked(file: Path) -> tuple[str, str]:
    """(name, source) of a file that is right. Raises Failure with all its faults."""
    from shared.workflow.faults import WorkflowError
    from shared.workflow.parser import parse_workflow

    data, shown = _read(file)
    try:
        return parse_workflow(data, shown).model.name, data.decode()
    except WorkflowError as error:
        raise Failure(str(error), hint=error.hint) from None


@workflow.command("list")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10000), help="At most this many.")
@output_option(name=True)
def list_workflows(limit: int, output: str) -> None:
    """List workflows."""
    found = connect().pages("workflows", limit=limit)
    show(found, output, COLUMNS, empty="no workflows; `hubflow workflow apply FILE` makes one")


@workflow.command("show", epilog="""\b
Examples:
  hubflow workflow show build               the file itself
  hubflow workflow show build --version 3
  hubflow workflow show build --versions    all versions
  hubflow workflow show build -o json       as it was understood, with all defaults""")  # fmt: skip
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="This version.  [default: the newest]")
@click.option("--versions", is_flag=True, help="List the versions instead.")
@output_option(table=False)
def show_workflow(name: str, version: int | None, versions: bool, output: str) -> None:
    """Show a workflow's file."""
    api = connect()
    if versions:
        found = api.pages("workflows", name, "versions", limit=1000)
        columns = (
            Column("VERSION", "version"),
            Column("APPLIED", lambda row: ago(row.get("created_at"))),
            Column("BY", "created_by"),
            Column("DIGEST", lambda row: str(row.get("digest", ""))[:12]),
        )
        show(found, "table" if output == "text" else output, columns)
        return
    found = api.get("workflows", name, *(["versions", str(version)] if version else []))
    show_document(found, output, found["source"].rstrip("\n"))


@workflow.command(epilog="""\b
Example:
  hubflow workflow diff hubflow.yaml && echo nothing to apply""")  # fmt: skip
@FILE
def diff(file: Path) -> int:
    """Compare FILE with the newest version on the server. Exit code 1 if they differ."""
    import difflib

    name, source = _checked(file)
    try:
        newest = connect().get("workflows", name)
        old, title = newest["source"], f"{name} version {newest['version']}"
    except Refused as error:
        if error.code != "workflow-not-found":
            raise
        old, title = "", f"{name} (not there yet)"
    lines = list(difflib.unified_diff(old.splitlines(), source.splitlines(), title, str(file), lineterm=""))
    for line in lines:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        click.echo(styled(line, style))
    return RUN_FAILED if lines else OK


@workflow.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Delete a workflow. Its runs and versions stay readable; applying a file of that name brings it back."""
    if not yes:
        click.confirm(f"delete the workflow {name}?", abort=True)
    connect().call("DELETE", "workflows", name)
    click.echo(f"workflow {name} deleted")
