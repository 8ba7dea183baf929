"""Writes docs/reasons.md from `shared.states.Reason`: `python -m cli.reasons_reference`. `make check` checks it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import cast

from cli.generated import write_or_check
from services.scheduler.core import INFRASTRUCTURE_RETRIES
from shared.states import INFRASTRUCTURE_REASONS, Reason

PLACE = Path(__file__).parents[1] / "docs" / "reasons.md"

_HEAD = """# Reasons

<!-- Made by `python -m cli.reasons_reference` from shared/states.py; change that, not this file. -->

Why a run, stage or job is in its final state, or still waits: `hubflow run show RUN`, `reason` in the API and in events.
They are stable; the message beside one has the details. Symptoms are in [troubleshooting.md](troubleshooting.md), what stands
behind reasons on Kubernetes in [kubernetes.md](kubernetes.md#why-a-job-failed). A run that is paused waits with the reason
`Decision`: `hubflow run approve` or `reject`.

| reason | meaning | what to do |
|---|---|---|"""

REMEDIES: Mapping[Reason, str] = {
    Reason.EXIT_CODE: "read the end of the log: `hubflow run logs RUN JOB`",
    Reason.SIGNAL: "read the end of the log; if nothing there explains it, the job may have used too much memory",
    Reason.JOB_RESULT_FALSE: "the component says that it has failed: read the log",
    Reason.OOM_KILLED: "raise `resources.memory`, or let the job need less",
    Reason.OUTPUT_TOO_LARGE: "write large data to a file and keep it as an artifact",
    Reason.IMAGE_PULL: "check the image's name; for a private one set the secret `DOCKER_AUTH_CONFIG`",
    Reason.START_FAILED: "check `command` and `workdir`, and for which processor the image was built; of a service that was "
    "not ready, the message has its last words",
    Reason.PENDING_TIMEOUT: "was there room, and could the image be pulled in that time? Else raise `pending_timeout`",
    Reason.BAD_INPUT: "the message names it: set the secret, or mend the reference",
    Reason.UNSUPPORTED: "leave it out, run the job on another runtime, or ask the operator to allow it; the message says which",
    Reason.INIT_FAILED: "for the operator: can nodes pull the wrapper's image? `hubflow doctor`",
    Reason.RESTORE_FAILED: "do jobs reach the S3? `hubflow doctor`; a `fetch` that may be missing is `optional: true`",
    Reason.SAVE_FAILED: "check `paths` of the artifact (`required: false` if it may be missing); do jobs reach the S3?",
    Reason.WRAPPER_FAILED: "retry it; if it stays, tell the operator the message",
    Reason.JOB_TIMEOUT: "make the job quicker, or raise its `timeout`",
    Reason.RUN_TIMEOUT: "raise the workflow's `timeout`",
    Reason.DECISION_TIMEOUT: "start it again; `pause.timeout` and `pause.on_timeout` say how long and what then",
    Reason.NODE_LOST: "retry it; the node is the operator's to look at",
    Reason.EVICTED: "retry it; if it happens often, give the job `resources`, or the cluster room",
    Reason.CONTAINER_GONE: "did somebody delete it by hand? Else retry it",
    Reason.CANCELLED: "nothing; `hubflow run retry` runs again what did not succeed",
    Reason.SUPERSEDED: "nothing: look at the newer run",
    Reason.STAGE_FAILED: "look at what failed first; `hubflow run retry` runs the rest, too",
    Reason.CONDITION_FALSE: "nothing, if that is meant; else mend `when`",
    Reason.CONDITION_ERROR: "mend `when`; `has(...)` asks whether there is such an output",
    Reason.CARRIED_OVER: "nothing: its log and outputs are those of the earlier run",
    Reason.QUOTA: "wait, end other runs, or let an operator raise it: `hubflow tenant quota`",
    Reason.CAPACITY: "wait; for the operator: is `HUBFLOW_SCHEDULER_MAX_JOBS` too low, do all services run?",
    Reason.CONCURRENCY: "wait, or cancel the run that is named",
    Reason.RETRY_BACKOFF: "wait; `retries.backoff` says how long",
}
"""What people can do about each."""


def document() -> str:
    """The whole of docs/reasons.md."""
    told = meanings()
    rows = [f"| `{reason}` | {told[reason]} | {REMEDIES[reason]} |" for reason in Reason]
    own = ", ".join(f"`{reason}`" for reason in Reason if reason in INFRASTRUCTURE_REASONS)
    tail = (
        f"{own} are failures of the infrastructure:\nbefore the job's own code has started they are tried again, up to "
        f"{INFRASTRUCTURE_RETRIES} times, without using up its `retries`."
    )
    return "\n".join([_HEAD, *rows, "", tail]) + "\n"


def meanings() -> dict[Reason, str]:
    """The text below each reason in its source; at run time it is not kept."""
    cls = cast("ast.ClassDef", ast.parse(inspect.getsource(Reason)).body[0])
    return {
        Reason[name.id]: " ".join(text.split())
        for before, after in pairwise(cls.body)
        if isinstance(before, ast.Assign) and isinstance(name := before.targets[0], ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(text := after.value.value, str)
    }


if __name__ == "__main__":
    sys.exit(write_or_check(PLACE, document()))
