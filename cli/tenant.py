"""`hubflow tenant`: for operators."""

from __future__ import annotations

from typing import Any

import click

from cli.api import connect
from cli.failure import USAGE, Failure
from cli.lazy import Group
from cli.output import Column, ago, output_option, show, size

QUOTA = ("runs", "jobs", "cpu_millis", "memory_bytes")


def _limit(name: str) -> Any:
    def text(row: dict[str, Any]) -> Any:
        value = (row.get("quota") or {}).get(name)
        if value is None:
            return "unlimited"
        if name == "memory_bytes":
            return size(value)
        return f"{value / 1000:g}" if name == "cpu_millis" else value

    return text


COLUMNS = (
    Column("NAME", "name"),
    Column("RUNS", _limit("runs")),
    Column("JOBS", _limit("jobs")),
    Column("CPU", _limit("cpu_millis")),
    Column("MEMORY", _limit("memory_bytes")),
    Column("AGE", lambda row: ago(row.get("created_at"))),
)


@click.group(cls=Group)
def tenant() -> None:
    """Create and list tenants, and set their quotas. Needs an operator's token."""


def quota_options(function: Any) -> Any:
    """What a tenant's jobs may use at the same time."""
    for option in (
        click.option("--memory", metavar="SIZE", help="Memory of all its jobs: 16Gi, 512Mi; or `unlimited`."),
        click.option("--cpu", metavar="CPUS", help="CPUs of all its jobs: 4, 0.5, 1500m; or `unlimited`."),
        click.option("--jobs", metavar="N", help="Containers; or `unlimited`."),
        click.option("--runs", metavar="N", help="Runs that are under way; or `unlimited`."),
    ):
        function = option(function)
    return function


def _quota(given: dict[str, str | None]) -> dict[str, int | None]:
    """The limits that were given; None: unlimited. Raises Failure for what is no amount."""
    from shared.workflow.quantities import parse_cpu, parse_memory

    readers = {"runs": _count, "jobs": _count, "cpu": parse_cpu, "memory": parse_memory}
    names = {"runs": "runs", "jobs": "jobs", "cpu": "cpu_millis", "memory": "memory_bytes"}
    found: dict[str, int | None] = {}
    for option, text in given.items():
        if text is None:
            continue
        try:
            found[names[option]] = None if text == "unlimited" else readers[option](text)
        except ValueError as error:
            expected = (getattr(error, "context", None) or {}).get("expected", "")
            raise Failure(
                f"--{option}: {error}", hint=f"{expected}, or `unlimited`".lstrip(", "), exit_code=USAGE
            ) from None
    return found


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError("a whole number is needed")
    return int(text)


@tenant.command(epilog="""\b
Example:
  hubflow tenant create acme --jobs 20 --cpu 8 --memory 16Gi""")  # fmt: skip
@click.argument("name")
@quota_options
@output_option(name=True)
def create(name: str, output: str, **limits: str | None) -> None:
    """Create a tenant. What is not limited is unlimited."""
    quota = {key: value for key, value in _quota(limits).items() if value is not None}
    made = connect().create("tenants", body={"name": name, "quota": quota})
    if output == "table":
        click.echo(f"tenant {made['name']} created")
    else:
        show(made, output, COLUMNS)


@tenant.command("list")
@output_option(name=True)
def list_tenants(output: str) -> None:
    """List tenants."""
    show(connect().pages("tenants", limit=10000), output, COLUMNS, empty="no tenants")


@tenant.command("show")
@click.argument("name", required=False)
@output_option(name=True)
def show_tenant(name: str | None, output: str) -> None:
    """Show a tenant; without NAME, the token's own."""
    api = connect()
    show(api.get("tenants", name) if name else api.get("tenant"), output, COLUMNS)


@tenant.command(epilog="""\b
Examples:
  hubflow tenant quota acme --jobs 50         the other limits stay
  hubflow tenant quota acme --cpu unlimited""")  # fmt: skip
@click.argument("name")
@quota_options
@output_option(name=True)
def quota(name: str, output: str, **limits: str | None) -> None:
    """Change a tenant's quota; limits that are not named stay."""
    api = connect()
    wanted = _quota(limits)
    if not wanted:
        raise Failure("no limit was given", hint="--runs, --jobs, --cpu or --memory", exit_code=USAGE)
    now = {key: value for key, value in api.get("tenants", name)["quota"].items() if key in QUOTA}
    changed = api.call("PUT", "tenants", name, "quota", body=now | wanted)
    show(changed, output, COLUMNS)
