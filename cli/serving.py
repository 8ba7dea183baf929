"""`hubflow serve` and `hubflow migrate`: the services of a real installation.

All services start with this one command; scaling out is the same program started more often.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.context import VARIABLES
from cli.failure import CONFIGURATION, USAGE, Failure, say_error

if TYPE_CHECKING:
    from shared.service import Service

Result = TypeVar("Result")

WAIT_SECONDS = 1.0
"""Between two looks of `migrate --wait`."""

SERVICES = {
    "trigger": "services.trigger.main:SERVICE",
    "scheduler": "services.scheduler.main:SERVICE",
    "executor": "services.executor.main:SERVICE",
    "status_watcher": "services.status_watcher.main:SERVICE",
    "log_collector": "services.log_collector.main:SERVICE",
    "notifier": "services.notifier.main:SERVICE",
    "console": "services.console.main:SERVICE",
}
"""The table of services: name -> where it is."""


def load_services(names: Sequence[str]) -> list[Service]:
    """Import services by name. Raises Failure naming every one that cannot be imported, and what is missing."""
    found, missing = [], []
    for name in names:
        module, _, attribute = SERVICES[name].partition(":")
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            missing.append(f"  {name}: {error}")
    if missing:
        raise Failure(
            "these services cannot be imported:\n" + "\n".join(missing),
            hint="install Hubflow whole (`pip install .` in its source), or name only services that are there",
            exit_code=CONFIGURATION,
        )
    return found


def all_settings() -> list[type[Any]]:
    """The settings of all services, of which one process loads only its own: deployments share one environment."""
    modules = {name: importlib.import_module(f"services.{name}.config") for name in SERVICES}
    return [getattr(module, f"{name.title().replace('_', '')}Settings") for name, module in modules.items()]


def service_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the services read, without the variables of the command itself."""
    return {name: value for name, value in environment.items() if name not in VARIABLES}


def _calm_garbage_collector() -> None:
    """What a service makes lives for a moment or for ever: look for garbage less often, and never at what was imported."""
    import gc

    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def run_loop(main: Coroutine[Any, Any, Result]) -> Result:
    """Run on uvloop where there is one: the services live on many small reads and writes, where it takes half the time."""
    import asyncio

    _calm_garbage_collector()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _chosen(names: Sequence[str]) -> list[str]:
    if "all" in names:
        return list(SERVICES)
    for name in names:
        if name not in SERVICES:
            from difflib import get_close_matches

            near = get_close_matches(name, SERVICES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise Failure(
                f"there is no service {name!r}", hint=f"{hint}known: all, {', '.join(SERVICES)}", exit_code=USAGE
            )
    return list(dict.fromkeys(names))


@click.command(epilog="""\b
Examples:
  hubflow serve all                        one process for everything
  hubflow serve scheduler executor         two services in this process
  hubflow serve all --check                verify the settings, start nothing

Settings are environment variables (docs/settings.md). Exit code 78: they are wrong.""")  # fmt: skip
@click.argument("names", nargs=-1, required=True, metavar="NAMES...|all")
@click.option("--check", is_flag=True, help="Verify the settings and end, without starting anything.")
def serve(names: tuple[str, ...], check: bool) -> int:
    """Run services of a real installation in this process, until a signal.

    NAMES: trigger, scheduler, executor, status_watcher, log_collector, notifier, console; or `all`.
    """
    chosen = _chosen(names)
    services = load_services(chosen)
    from shared import open_files
    from shared.errors import ConfigurationError, TemporaryError
    from shared.service import check as check_settings
    from shared.service import serve as serve_services

    environment = service_environment(os.environ)
    if not environment.get("HUBFLOW_AMQP_URL") and set(chosen) != set(SERVICES):
        alone = (
            "without HUBFLOW_AMQP_URL these services hear only one another, and what they tell is lost to the others"
        )
        click.echo(f"warning: {alone}; set it, or serve all in one process", err=True)
    try:
        if check:
            for warning in check_settings(services, environment, all_settings()):
                click.echo(f"warning: {warning}", err=True)
            click.echo(f"the settings of {', '.join(chosen)} are right")
        else:
            open_files.allow_all()
            run_loop(serve_services(services, environment, known=all_settings()))
    except ConfigurationError as error:
        return _wrong_settings(error)
    except TemporaryError as error:
        say_error(str(error), "start again when it answers; a supervisor (systemd, Kubernetes) does this by itself")
        return 1
    return 0


@click.command(epilog="""\b
Example:
  HUBFLOW_DATABASE_URL=postgresql://hubflow:...@db/hubflow hubflow migrate

Safe to run many times, and by many processes at once.""")  # fmt: skip
@click.option("--check", is_flag=True, help="Only tell what is missing; exit code 1 if something is.")
@click.option(
    "--wait", is_flag=True, help="Only wait until the database is there and somebody has brought it to this version."
)
def migrate(check: bool, wait: bool) -> int:
    """Bring the database to this version."""
    url = os.environ.get("HUBFLOW_DATABASE_URL", "")
    if not url.startswith(("postgresql://", "postgres://")):
        return _wrong_settings("HUBFLOW_DATABASE_URL is not set to a postgresql:// address")
    if check and wait:
        raise Failure("choose one of --check and --wait", exit_code=USAGE)
    from shared.errors import PermanentError, TemporaryError

    if wait:
        run_loop(_until_migrated(url))
        return 0
    try:
        names = run_loop(_pending(url) if check else _migrate(url))
    except (TemporaryError, PermanentError) as error:
        raise Failure(str(error)) from None
    word = "missing" if check else "applied"
    click.echo("\n".join(f"{word}: {name}" for name in names) or "the database is up to date")
    return 1 if check and names else 0


async def _until_migrated(url: str) -> None:
    """Ends when nothing is missing; a supervisor sets the limit of time."""
    import asyncio

    from shared.errors import TemporaryError

    told = ""
    while True:
        try:
            missing = await _pending(url)
            state = f"waiting for {', '.join(missing)}" if missing else ""
        except TemporaryError as error:
            state = f"waiting for the database: {error}"
        if not state:
            return
        if state != told:
            click.echo(state, err=True)
            told = state
        await asyncio.sleep(WAIT_SECONDS)


async def _migrate(url: str) -> list[str]:
    from shared.db.database import open_database
    from shared.db.migrate import migrate as apply

    async with open_database(url, max_connections=2) as database:
        return await apply(database)


async def _pending(url: str) -> list[str]:
    from shared.db.database import open_database
    from shared.db.migrate import pending

    async with open_database(url, max_connections=2) as database:
        return await pending(database)


def _wrong_settings(error: object) -> int:
    lines = str(error).splitlines()
    message = "the settings are wrong:\n" + "\n".join(f"  {line}" for line in lines)
    say_error(message, "nothing was started; `hubflow dev` needs no settings")
    return CONFIGURATION
