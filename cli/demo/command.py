"""The command around the story: its options, the state folder, and how it ends."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

import click

from cli.context import FOLDER
from cli.failure import CONFIGURATION, INTERRUPTED, Failure, say_error


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line. `image`: the user's own, or ""."""

    state: Path
    runtime: str
    image: str
    keep: bool


@click.command(epilog="""\b
Examples:
  hubflow demo                     containers if an engine answers, else processes
  hubflow demo --runtime process   jobs as plain processes although an engine is there
  hubflow demo --image IMAGE       jobs in an image of yours: a shell, git and Python 3.11

Exit code 0 only if every check held. docs/demo.md tells what happens and where to look.""")  # fmt: skip
@click.option("--runtime", type=click.Choice(["auto", "docker", "process"]), default="auto", show_default=True,
              help="Where jobs run; auto: in containers if an engine answers, else as processes.")  # fmt: skip
@click.option(
    "--image", default="", metavar="IMAGE", help="Image of the jobs.  [default: made from this machine's files]"
)
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), default=Path(FOLDER, "demo"), show_default=True,
              metavar="DIR", help="Folder of all state.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Go on running afterwards, to look around; Ctrl-C ends it.")
def demo(runtime: str, image: str, state: Path, keep: bool) -> int:
    """Watch a real project being built, tested, approved and delivered.

    Starts everything, makes a git repository from an example project, pushes to it, and follows the run to its end.
    """
    from cli.serving import run_loop
    from shared.errors import ConfigurationError, PermanentError, TemporaryError

    options = Options(state.absolute(), runtime, image, keep)
    try:
        return run_loop(_until_signal(options))
    except ConfigurationError as error:
        say_error(str(error))
        return CONFIGURATION
    except (TemporaryError, PermanentError) as error:
        raise Failure(
            str(error), hint=f"see the logs in {options.state}, or remove that folder to begin anew"
        ) from None


async def _until_signal(options: Options) -> int:
    """The story; the first Ctrl-C or TERM ends it and waits until everything is cleaned up."""
    from cli.demo.story import tell

    stopped = asyncio.Event()
    telling = asyncio.create_task(tell(options), name="demo")

    def stop() -> None:
        if stopped.is_set():
            click.echo("still cleaning up ...", err=True)
            return
        stopped.set()
        click.echo("\nstopping: what runs is cancelled, then everything ends ...", err=True)
        telling.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        return await telling
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        return INTERRUPTED
