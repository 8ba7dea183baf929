"""`hubflow doctor`: checks an installation on Kubernetes and the cluster under it, and says how to mend what is wrong.

`cluster`, `permissions` and `workplace` ask the API server. What can only be seen from inside, two pods look at: they run this
very command with `--inside` (`inside`), one with the services' settings, one as a job would be, and leave what they have seen
in their termination message (`probe`). What it means is decided by pure functions (`meaning`).
"""

from __future__ import annotations

from typing import Any

import click

from cli.output import output_option, show
from cli.serving import run_loop


@click.command(epilog="""\b
Examples:
  hubflow doctor                          with the kubeconfig of this machine
  hubflow doctor --no-pods                only what the API server knows
  hubflow doctor -o json

It changes nothing; its two pods go when they have looked. Exit code 1: something has failed.""")  # fmt: skip
@click.option(
    "--kubeconfig", metavar="FILE", default="", help="Empty: the pod's own account, KUBECONFIG, ~/.kube/config."
)
@click.option("--context", metavar="NAME", default="", help="Context of the kubeconfig.")
@click.option("--namespace", metavar="NAME", default="hubflow", show_default=True, help="Where the services are.")
@click.option(
    "--no-pods", is_flag=True, help="Start no pods: S3, RabbitMQ, PostgreSQL, names and clocks are not looked at."
)
@click.option("--inside", type=click.Choice(["services", "job"]), hidden=True)
@output_option()
def doctor(kubeconfig: str, context: str, namespace: str, no_pods: bool, inside: str | None, output: str) -> int:
    """Check an installation on Kubernetes, and say how to mend what is wrong."""
    if inside is not None:
        from cli.doctor import inside as within

        within.leave(run_loop(within.look(inside)))
        return 0
    from cli.doctor.examination import examine
    from cli.doctor.finding import COLUMNS, State
    from shared.log import configure
    from shared.runtime.kubernetes_access import Access

    configure("error")
    findings = run_loop(examine(Access(kubeconfig, context), namespace, pods=not no_pods))
    rows: list[dict[str, Any]] = [finding.row() for finding in findings]
    show(rows, output, COLUMNS, name="check")
    return 1 if any(finding.state is State.FAILED for finding in findings) else 0
