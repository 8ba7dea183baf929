"""The door: the table of commands, and how every one of them ends."""

from __future__ import annotations

import os
import sys

import click

from cli.failure import BROKEN_PIPE, INTERRUPTED, say_error
from cli.lazy import LazyGroup

COMMANDS = {
    "dev": ("cli.dev_command:dev", "Start everything on this machine, with nothing to install."),
    "demo": ("cli.demo:demo", "Watch a real project being built, tested, approved and delivered."),
    "workflow": ("cli.workflow:workflow", "Check, apply and compare workflow files."),
    "run": ("cli.run:run", "Start, watch, cancel, approve and retry runs; read their logs."),
    "component": ("cli.component:component", "Look into a component image, or run one here."),
    "artifact": ("cli.artifact:artifact", "List and fetch the files that runs have kept."),
    "secret": ("cli.secret:secret", "Set, list and delete secrets of a tenant."),
    "hook": ("cli.hook:hook", "Show the address and secret for a git repository's webhook."),
    "events": ("cli.events:events", "Show the events of a run; show and replay parked ones."),
    "subscription": ("cli.subscription:subscription", "Where the events of a tenant are sent as signed webhooks."),
    "token": ("cli.token:token", "Create, list and revoke access tokens; make a secret key."),
    "tenant": ("cli.tenant:tenant", "Create and list tenants, and set their quotas."),
    "serve": ("cli.serving:serve", "Run services of a real installation in this process."),
    "migrate": ("cli.serving:migrate", "Bring the database to this version."),
    "doctor": ("cli.doctor:doctor", "Check an installation on Kubernetes, and say how to mend it."),
    "version": ("cli.version:version", "Show the version of this command and of the server."),
}
"""Name -> (module:attribute, help in one line), in the order of `hubflow --help`."""

_EPILOG = """\b
Begin here:
  hubflow dev                       everything on this machine, in one process
  hubflow workflow apply build.yml  teach it a workflow
  hubflow run start build --wait    run it and watch

\b
Where and who (also read from .hubflow/context.json, which `hubflow dev` writes,
searched from the working directory upwards; HUBFLOW_CONTEXT names another file):
  HUBFLOW_URL or --url, HUBFLOW_TENANT or --tenant, and HUBFLOW_TOKEN, which is
  sent only where HUBFLOW_URL, --url or HUBFLOW_CONTEXT says the server

\b
Exit codes: 0 ok, 1 the run failed (or files have faults, or a check found some),
2 wrong usage, 3 run cancelled, 4 run timed out, 5 server not reached or request
refused, 78 wrong settings, 130 interrupted.
"""


@click.group(
    cls=LazyGroup, lazy=COMMANDS, epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.option("--url", envvar="HUBFLOW_URL", metavar="URL", help="Address of the Hubflow server.")
@click.option("--tenant", envvar="HUBFLOW_TENANT", metavar="NAME", help="The tenant; only operators need to say it.")
@click.pass_context
def hubflow(ctx: click.Context, url: str | None, tenant: str | None) -> None:
    """Hubflow runs DevOps workflows as containers: on a push, a webhook or a call; in stages, with pauses for people."""
    ctx.obj = {"url": url, "tenant": tenant}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code; nothing that users do shows a trace."""
    from shared.errors import HubflowError  # light: no driver behind it

    try:
        result = hubflow.main(arguments, prog_name="hubflow", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`). The interpreter must not complain about it at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except HubflowError as error:
        return _refused(error)


def _refused(error: Exception) -> int:
    from shared.errors import ConfigurationError

    say_error(str(error), getattr(error, "hint", ""))
    return 78 if isinstance(error, ConfigurationError) else 1


if __name__ == "__main__":
    sys.exit(main())
