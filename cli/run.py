"""`hubflow run`: start, watch, cancel, decide, retry; and read logs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from cli import tree
from cli.api import Api, connect
from cli.failure import OK, USAGE, Failure
from cli.lazy import Group
from cli.output import Column, ago, elapsed, marks_ok, output_option, plain, show, show_document

COLUMNS = (
    Column("NUMBER", "number"),
    Column("WORKFLOW", "workflow"),
    Column("STATE", "state"),
    Column("STARTED BY", lambda run: started_by(run.get("trigger") or {})),
    Column("AGE", lambda run: ago(run.get("created_at"))),
    Column("TOOK", lambda run: elapsed(run.get("started_at"), run.get("finished_at"))),
    Column("VERSION", "version", wide=True),
    Column("ID", "id", wide=True),
    Column("WHY", lambda run: run.get("message") or run.get("reason")),
)


def started_by(trigger: dict[str, Any]) -> str:
    """`push main`, `api token:ci`, ..."""
    git = trigger.get("git") or {}
    detail = git.get("branch") or git.get("tag") or git.get("ref") or trigger.get("by") or ""
    return f"{trigger.get('type', '')} {str(detail).removeprefix('refs/heads/').removeprefix('refs/tags/')}".strip()


@click.group(cls=Group)
def run() -> None:
    """Start, watch, cancel, approve and retry runs; read their logs."""


@run.command(epilog="""\b
Examples:
  hubflow run start build
  hubflow run start build -i VERSION=1.2 -i DEBUG=true --wait
  hubflow run start build --ref refs/heads/main --wait --logs""")  # fmt: skip
@click.argument("workflow")
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="KEY=VALUE", help="An input of the workflow; repeatable."
)
@click.option("--ref", default="", help="Git ref: refs/heads/main, a branch, or a commit.")
@click.option("--commit", default="", help="Git commit in full.")
@click.option("--clone-url", default="", help="Repository that the jobs clone.")
@click.option("--wait", is_flag=True, help="Watch the run to its end; the exit code mirrors it.")
@click.option("--logs", "with_logs", is_flag=True, help="With the lines that its jobs print (implies --wait).")
@output_option(name=True)
def start(
    workflow: str,
    inputs: tuple[str, ...],
    ref: str,
    commit: str,
    clone_url: str,
    wait: bool,
    with_logs: bool,
    output: str,
) -> int:
    """Start a run of WORKFLOW."""
    body: dict[str, Any] = {"inputs": assignments(inputs, "-i")}
    body |= {key: value for key, value in (("ref", ref), ("commit", commit), ("clone_url", clone_url)) if value}
    api = connect()
    started = api.create("workflows", workflow, "runs", body=body)
    if wait or with_logs:
        from cli.waiting import wait_for

        return wait_for(api, str(started["id"]), with_logs=with_logs)
    if output == "table":
        click.echo(f"run {plain(started['workflow'])} #{started['number']} started ({started['id']})")
        click.echo(f"`hubflow run watch {started['number']}` shows it", err=True)
    else:
        show(started, output, COLUMNS, name="number")
    return OK


def assignments(pairs: Sequence[str], option: str) -> dict[str, str]:
    """KEY=VALUE arguments as a map. Raises Failure for anything else, and for a key given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Failure(
                f"{option} {pair!r} is not of the form KEY=VALUE", hint=f"{option} NAME=value", exit_code=USAGE
            )
        if key in found:
            raise Failure(f"{option} {key} is given twice", exit_code=USAGE)
        found[key] = value
    return found


@run.command("list", epilog="""\b
Examples:
  hubflow run list
  hubflow run list --workflow build --state failed -o wide""")  # fmt: skip
@click.option("--workflow", help="Only runs of this workflow.")
@click.option("--state", multiple=True, help="Only runs in this state; repeatable.",
              type=click.Choice(["active", "pending", "running", "paused", "cancelling", *sorted(tree.FINAL)]))  # fmt: skip
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10000), help="At most this many.")
@output_option(name=True)
def list_runs(workflow: str | None, state: tuple[str, ...], limit: int, output: str) -> None:
    """List runs, newest first."""
    found = connect().pages("runs", limit=limit, workflow=workflow, state=",".join(state))
    show(found, output, COLUMNS, name="number", empty="no runs; `hubflow run start WORKFLOW` starts one")


@run.command("show", epilog="""\b
Examples:
  hubflow run show @latest
  hubflow run show 12 -o json
  hubflow run show 12 unit           one job: its inputs, outputs and attempts""")  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.argument("job", required=False)
@output_option(table=False)
def show_run(run_ref: str, job: str | None, output: str) -> None:
    """Show a run with its stages and jobs, or one JOB of it. RUN is a number, an id, or @latest."""
    api = connect()
    found = api.get("runs", run_ref)
    if job:
        (wanted,) = _wanted_jobs(found, job, failed=False)
        found = api.get("runs", str(found["id"]), "jobs", wanted["name"])
        show_document(found, output, _job_as_text(found) if output == "text" else "")
        return
    show_document(found, output, _as_text(found) if output == "text" else "")


def _job_as_text(job: Mapping[str, Any]) -> str:
    facts = [f"{plain(job['name'])}  {job['state']}, of stage {plain(job['stage'])}"]
    if job["component"]:
        facts.append(f"component  {plain(job['component'])}")
    for title in ("inputs", "outputs"):
        pairs = [f"{plain(name)} = {plain(value)}" for name, value in job[title].items()]
        facts += [f"{'' if at else title:<10} {pair}" for at, pair in enumerate(pairs)]
    for at, attempt in enumerate(job["attempts"]):
        took = elapsed(attempt["started_at"], attempt["ended_at"])
        how = " ".join(filter(None, (attempt["state"] or "not over", took and f"after {took}", attempt["reason"])))
        facts.append(f"{'' if at else 'attempts':<10} {attempt['attempt']}: {plain(how)}")
        for words in (attempt["message"], *attempt["warnings"]):
            facts += [f"{'':<13} {plain(line)}" for line in str(words).splitlines()]
    return "\n".join(facts)


def _as_text(found: tree.Run) -> str:
    facts = [
        f"id         {found['id']}",
        f"version    {found.get('version')}",
        f"started    by {plain(started_by(found.get('trigger') or {}))}, {ago(found.get('created_at'))}",
    ]
    if found.get("inputs"):
        facts.append(f"inputs     {plain(found['inputs'])}")
    if found.get("retry_of"):
        facts.append(f"retries    {found['retry_of']}")
    text = tree.as_text(found, datetime.now(UTC), ascii=not marks_ok()) + "\n\n" + "\n".join(facts)
    hints = [hint for stage in tree.undecided_stages(found) for hint in tree.pause_hints(found, stage)]
    return "\n".join([text, *([""] if hints else []), *hints])


@run.command(epilog="""\b
Example:
  hubflow run watch @latest --logs""")  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.option("--logs", "with_logs", is_flag=True, help="With the lines that its jobs print.")
def watch(run_ref: str, with_logs: bool) -> int:
    """Watch a run to its end; the exit code mirrors it. RUN is a number, an id, or @latest."""
    from cli.waiting import wait_for

    api = connect()
    return wait_for(api, str(api.get("runs", run_ref)["id"]), with_logs=with_logs)


@run.command(epilog="""\b
Examples:
  hubflow run logs 12                the logs of all jobs that have started
  hubflow run logs 12 unit -f        one job, until it ends
  hubflow run logs @latest --failed  only those of what failed""")  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.argument("job", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the jobs have ended.")
@click.option("--failed", is_flag=True, help="Only jobs that failed.")
@click.option("--attempt", type=click.IntRange(min=1), help="This attempt of the job.  [default: the last]")
def logs(run_ref: str, job: str | None, follow: bool, failed: bool, attempt: int | None) -> None:
    """Show what jobs have printed. RUN is a number, an id, or @latest."""
    if attempt and not job:
        raise Failure("--attempt needs a JOB", exit_code=USAGE)
    api = connect()
    found = api.get("runs", run_ref)
    wanted = _wanted_jobs(found, job, failed)
    if follow and not job and not failed:
        from cli.waiting import wait_for

        wait_for(api, str(found["id"]), with_logs=True)
        return
    for each in wanted:
        if len(wanted) > 1:
            click.echo(f"=== {plain(each['stage'])} / {plain(each['name'])}  {each['state']}")
        _print_log(api, str(found["id"]), each["name"], attempt, follow)


def _wanted_jobs(found: tree.Run, job: str | None, failed: bool) -> list[Any]:
    everything = list(tree.jobs(found))
    if job:
        wanted = [each for each in everything if each["name"] == job]
        if not wanted:
            from difflib import get_close_matches

            names = [each["name"] for each in everything]
            near = get_close_matches(job, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its jobs: {', '.join(names) or 'none yet'}"
            raise Failure(f"run #{found['number']} has no job {job!r}", hint=hint, exit_code=USAGE)
        return wanted
    if failed:
        wanted = tree.failed_jobs(found)
        if not wanted:
            click.echo(f"no job of run #{found['number']} has failed", err=True)
        return list(wanted)
    wanted = [each for each in everything if each.get("attempt")]
    if not wanted:
        click.echo(f"no job of run #{found['number']} has started", err=True)
    return wanted


def _print_log(api: Api, run_id: str, job: str, attempt: int | None, follow: bool) -> None:
    from cli.logs import read

    out = sys.stdout.buffer
    sys.stdout.flush()
    last = b"\n"
    for chunk in read(api, run_id, job, attempt=attempt, follow=follow):
        out.write(chunk)
        out.flush()
        last = chunk
    if sys.stdout.isatty() and not last.endswith(b"\n"):
        click.echo()


@run.command(epilog="""\b
Example:
  hubflow run cancel 12 --why "wrong branch" """)  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.option("--why", default="", help="Kept with the run.")
def cancel(run_ref: str, why: str) -> None:
    """Cancel a run: its containers are stopped, nothing new starts. RUN is a number, an id, or @latest."""
    answer = connect().create("runs", run_ref, "cancel", body={"reason": why})
    click.echo(f"run #{answer['number']} is being cancelled")


def _decide(run_ref: str, stage: str | None, action: str, comment: str) -> None:
    api = connect()
    if stage is None:
        found = api.get("runs", run_ref)
        paused = [each["name"] for each in tree.paused_stages(found)]
        if len(paused) != 1:
            raise _undecidable(found, paused, "reject" if action == "cancel" else action)
        stage = paused[0]
    answer = api.create("runs", run_ref, "stages", stage, "decision", body={"action": action, "comment": comment})
    click.echo(f"stage {plain(stage)} of run #{answer['number']}: {'approved' if action == 'approve' else 'rejected'}")


def _undecidable(found: tree.Run, paused: list[str], verb: str) -> Failure:
    """No stage was named, and none or several wait. The stages of a run that goes on may be decided early."""
    number, state = found["number"], found["state"]
    coming = [each["name"] for each in found.get("stages") or () if each["type"] == "pause"]
    if paused:
        message, hint = f"run #{number} waits in several stages: {', '.join(paused)}", paused[0]
    elif state in tree.FINAL:
        message, hint = f"run #{number} is over ({state.replace('_', ' ')}), there is nothing to decide", ""
    elif coming:
        message, hint = f"run #{number} is {state} and waits for no decision", coming[0]
    else:
        message, hint = f"run #{number} has no pause stage, there is nothing to decide", ""
    early = "" if paused else ", to decide early"
    command = f"hubflow run {verb} {number} {shlex.quote(plain(hint))}"
    return Failure(message, hint=f"name the stage{early}: {command}" if hint else "", exit_code=USAGE)


@run.command(epilog="""\b
Examples:
  hubflow run approve 12
  hubflow run approve 12 release --comment "looks good" """)  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.argument("stage", required=False)
@click.option("--comment", default="", help="Kept with the decision.")
def approve(run_ref: str, stage: str | None, comment: str) -> None:
    """Let a paused stage go on. RUN is a number, an id, or @latest; STAGE may be left out if one waits."""
    _decide(run_ref, stage, "approve", comment)


@run.command(epilog="""\b
Example:
  hubflow run reject 12 release --comment "not on a Friday" """)  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.argument("stage", required=False)
@click.option("--comment", default="", help="Kept with the decision.")
def reject(run_ref: str, stage: str | None, comment: str) -> None:
    """End a run at a paused stage. RUN is a number, an id, or @latest; STAGE may be left out if one waits."""
    _decide(run_ref, stage, "cancel", comment)


@run.command(epilog="""\b
Example:
  hubflow run retry @latest --wait""")  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.option("--wait", is_flag=True, help="Watch the new run to its end; the exit code mirrors it.")
@output_option(name=True)
def retry(run_ref: str, wait: bool, output: str) -> int:
    """Run again what did not succeed, as a new run; what succeeded is kept. RUN is a number, an id, or @latest."""
    api = connect()
    started = api.create("runs", run_ref, "retry")
    if wait:
        from cli.waiting import wait_for

        return wait_for(api, str(started["id"]), with_logs=False)
    if output == "table":
        click.echo(f"run {plain(started['workflow'])} #{started['number']} started, it retries run {run_ref}")
    else:
        show(started, output, COLUMNS, name="number")
    return OK
