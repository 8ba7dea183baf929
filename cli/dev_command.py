"""`hubflow dev`: the command around `cli.dev.development`."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.context import FILE, FOLDER, find, read
from cli.failure import CONFIGURATION, OK, UNREACHABLE, Failure, say_error

if TYPE_CHECKING:
    from cli.dev import Dev

STOP_WITHIN = 60
"""Seconds that --stop waits for everything to end."""


@click.command(epilog="""\b
Examples:
  hubflow dev                     everything in one process; Ctrl-C stops it
  hubflow dev --detach            the same in the background; `hubflow dev --stop` stops it
  hubflow dev --runtime process   jobs as plain processes, also where Docker is there

All state is in .hubflow/ (database, objects, keys, logs); remove the folder to start anew.""")  # fmt: skip
@click.option("--detach", is_flag=True, help="Return when everything is ready; it goes on in the background.")
@click.option("--stop", is_flag=True, help="Stop what was started on the state folder.")
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), default=FOLDER, show_default=True, metavar="DIR",
              help="Folder of all state.")  # fmt: skip
@click.option("--runtime", type=click.Choice(["auto", "docker", "process"]), default="auto", show_default=True,
              help="Where jobs run; auto: in containers if an engine answers, else as processes.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the console.  [default: 8080 or a free one]")
@click.option("--separate", is_flag=True, help="Each service in a process of its own; needs HUBFLOW_AMQP_URL.")
@click.option("--ready-to", type=int, hidden=True, help="File descriptor that is told when all is ready.")
def dev(
    detach: bool, stop: bool, state: Path, runtime: str, port: int | None, separate: bool, ready_to: int | None
) -> int:
    """Start everything on this machine, with nothing to install.

    A real PostgreSQL and a real S3, all services, a tenant `dev` and a token. Commands below the folder that holds the
    state folder `.hubflow` find the server and the token by themselves.
    """
    if stop:
        return _stop(_nearest(state))
    if running := _holder(state):
        return _already_running(state, running, detach)
    if detach:
        return _detach(state, [f"--runtime={runtime}", *([f"--port={port}"] if port else [])], separate)
    from cli.serving import run_loop
    from shared.errors import ConfigurationError, PermanentError, TemporaryError

    try:
        return run_loop(_foreground(state, runtime, port or None, separate, ready_to))
    except ConfigurationError as error:
        say_error(str(error))
        return CONFIGURATION
    except TemporaryError as error:
        raise Failure(str(error), hint=f"the logs are in {state}") from None
    except PermanentError as error:
        hint = "" if error.reason == "NotInstalled" else f"or start anew: remove {state}"
        raise Failure(str(error), hint=hint) from None


async def _foreground(state: Path, runtime: str, port: int | None, separate: bool, ready_to: int | None) -> int:
    began = time.monotonic()
    stopping = _stop_on_signals()
    from cli.dev import development

    if not (state / "postgres").exists():
        click.echo("first start: making a database ...", err=True)
    try:
        async with development(state, runtime, port=port, separate=separate) as running:
            facts = _facts(running, time.monotonic() - began)
            click.echo(facts)
            if ready_to is not None:
                with os.fdopen(ready_to, "w") as pipe:
                    json.dump({"facts": facts}, pipe)
            else:
                click.echo("Ctrl-C stops everything.")
            await running.services
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
    click.echo("stopped")
    return OK


def _stop_on_signals() -> asyncio.Event:
    """The first TERM or INT cancels the current task; later ones find the stopping under way."""
    stopping = asyncio.Event()
    task = asyncio.current_task()

    def stop() -> None:
        if stopping.is_set() or task is None:
            click.echo("still stopping: jobs go on, what is in hand is finished ...", err=True)
            return
        stopping.set()
        click.echo("\nstopping ...", err=True)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    return stopping


def _facts(running: Dev, seconds: float) -> str:
    """What people want to know after the start."""
    if running.runtime_kind == "docker":
        from shared.runtime.docker import DEFAULT_IMAGE

        image = running.environment.get("HUBFLOW_RUNTIME_DEFAULT_IMAGE") or DEFAULT_IMAGE
        where = (
            f"containers (Docker); scripts without a component in {image}\n"
            "             (HUBFLOW_RUNTIME_DEFAULT_IMAGE names another)"
        )
    else:
        where = (
            "PLAIN PROCESSES of this machine (no container engine answers, or --runtime process was given):\n"
            "             nothing isolates jobs from your files, images are not used, limits are not enforced"
        )
    public = running.environment.get("HUBFLOW_PUBLIC_URL", "")
    links = f"\n  links      {public}  (the same console, as job containers reach it)" if public else ""
    return (
        f"Hubflow is ready after {seconds:.1f} s\n"
        f"  console    {running.url}{links}\n"
        f"  jobs       {where}\n"
        f"  state      {running.state_dir}  (log: services.log)\n"
        f"  tenant     {running.tenant}\n"
        f"  token      in {running.state_dir / FILE}; commands below {running.state_dir.parent} find it by themselves\n"
        "Next: hubflow workflow apply FILE, then hubflow run start NAME --wait"
    )


# in the background


def _holder(state: Path) -> int | None:
    """The process that runs on this state folder, or None."""
    try:
        with (state / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        text = (state / "lock").read_text().strip()
        return int(text) if text.isdigit() else None
    return None


def _already_running(state: Path, pid: int, detach: bool) -> int:
    path = state / FILE
    url = read(path).url if path.exists() else "an address not yet known"
    if detach:
        click.echo(f"Hubflow is running already (process {pid}): {url}")
        return OK
    raise Failure(f"Hubflow is running already on {state} (process {pid}): {url}", hint="`hubflow dev --stop` stops it")


def _detach(state: Path, options: list[str], separate: bool) -> int:
    state.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "cli.main", "dev", f"--state={state.absolute()}", f"--ready-to={writer}", *options]
    if separate:
        command.append("--separate")
    log_path = state / "dev.log"
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[writer], start_new_session=True
        )
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()  # ends when the child is ready, or dead
    if told:
        click.echo(json.loads(told)["facts"])
        click.echo(f"It goes on in the background (process {child.pid}); `hubflow dev --stop` stops it.")
        return OK
    code = child.wait()
    click.echo(log_path.read_text(errors="replace"), nl=False, err=True)
    return code or UNREACHABLE


def _nearest(state: Path) -> Path:
    """The state folder that other commands started here would find, if the one asked for is not there."""
    above = find(Path.cwd()) if state == Path(FOLDER) and not state.exists() else None
    return above.parent if above else state


def _stop(state: Path) -> int:
    pid = _holder(state)
    if pid is None:
        click.echo(f"nothing runs on {state.absolute()}")
        return OK
    if not _end(pid):
        raise Failure(f"process {pid} has not ended within {STOP_WITHIN} s", hint=f"see {state / 'services.log'}")
    click.echo("stopped")
    return OK


def _end(pid: int) -> bool:
    """TERM a process and wait for its end."""
    pidfd_open: Any = getattr(os, "pidfd_open", None)
    try:
        handle = pidfd_open(pid) if pidfd_open else None
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError:
        raise Failure(f"process {pid} belongs to another user") from None
    if handle is not None:
        ready, _, _ = select.select([handle], [], [], STOP_WITHIN)
        os.close(handle)
        return bool(ready)
    deadline = time.monotonic() + STOP_WITHIN
    while time.monotonic() < deadline:  # no pidfd on this system: nothing to wait on
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
