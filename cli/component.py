"""`hubflow component`: look into a component's image, and run one here. Both need no server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.failure import OK, RUN_FAILED, RUN_TIMED_OUT, UNREACHABLE, Failure
from cli.lazy import Group
from cli.output import output_option, plain, printable, show_document
from cli.run import assignments
from shared.component_label import ComponentLabel, Declared, read_label

if TYPE_CHECKING:
    from cli.component_image import ImageFacts
    from shared.runtime.protocol import ContainerSpec, Observation, Runtime

_INSTALLATION = "component-run"
"""Marks containers of `component run`, so that no server on the same engine takes them for its own."""
_OUTPUT_LIMITS = {"value_bytes": 65536, "keys": 256, "total_bytes": 262144}
_GRACE = 10.0


@click.group(cls=Group)
def component() -> None:
    """Look into a component image, or run one here."""


@component.command(epilog="""\b
Examples:
  hubflow component inspect registry.example/tools/maven:3
  hubflow component inspect my-component:dev --local""")  # fmt: skip
@click.argument("image")
@click.option("--local", is_flag=True, help="Ask the container engine of this machine instead of the registry.")
@output_option(table=False)
def inspect(image: str, local: bool, output: str) -> None:
    """Show what IMAGE says of itself: inputs, outputs, and the command that would run."""
    facts = asyncio.run(_facts(image, local))
    label = read_label(facts.labels)
    document = facts.as_dict() | {"component": None if label is None else asdict(label)}
    show_document(document, output, _as_text(facts, label))


async def _facts(image: str, local: bool) -> ImageFacts:
    from cli.component_image import from_engine, from_registry
    from shared.errors import HubflowError

    try:
        return await (from_engine if local else from_registry)(image)
    except HubflowError as error:
        hint = "" if local else "an image that is only on this machine is shown with --local"
        raise Failure(str(error), hint=getattr(error, "hint", "") or hint, exit_code=UNREACHABLE) from None


def _as_text(facts: ImageFacts, label: ComponentLabel | None) -> str:
    lines = [
        f"image       {plain(facts.reference)}",
        f"digest      {plain(facts.digest or 'not known')}",
        f"platform    {plain(facts.platform)}",
        f"entrypoint  {_words(facts.entrypoint)}",
        f"command     {_words(facts.command)}",
        f"workdir     {plain(facts.workdir or '/')}",
        f"user        {plain(facts.user or 'root')}",
    ]
    if not facts.entrypoint and not facts.command:
        lines.append("            (an image without a command cannot be run; a job must name one)")
    if label is None:
        return "\n".join([*lines, "", "no component: the image has no label TencentHubComponent"])
    if label.description:
        lines += ["", plain(label.description)]
    lines += _declared("inputs", label.inputs) + _declared("outputs", label.outputs)
    lines += [f"warning: {plain(warning)}" for warning in label.warnings]
    if label.raw:
        lines += ["", "the label as it is:", printable(label.raw)]
    return "\n".join(lines)


def _words(words: Sequence[str]) -> str:
    import shlex

    return plain(shlex.join(words)) if words else "none"


def _declared(title: str, items: Sequence[Declared]) -> list[str]:
    if not items:
        return []
    width = max(len(each.name) for each in items)
    rows = [
        f"  {each.name.ljust(width)}  {plain(each.description)}"
        + (f"  [default: {plain(each.default)}]" if each.default is not None else "")
        for each in items
    ]
    return ["", f"{title}:", *(row.rstrip() for row in rows)]


@component.command("run", epilog="""\b
Examples:
  hubflow component run my-component:dev -i CMD="make test"
  hubflow component run my-component:dev -i GIT_CLONE_URL=... -o json > outputs.json""")  # fmt: skip
@click.argument("image")
@click.option("-i", "--input", "inputs", multiple=True, metavar="KEY=VALUE", help="An input; repeatable.")
@click.option("--timeout", type=click.FloatRange(min=1), default=3600.0, show_default=True, help="Seconds it may take.")
@output_option(table=False)
def run_component(image: str, inputs: tuple[str, ...], timeout: float, output: str) -> int:
    """Run IMAGE once as a job would run it, on the container engine of this machine.

    Its log goes to stderr, its outputs to stdout. Exit code: 0 if it succeeded, 1 if it failed, 4 if it took too long, 5 if no
    engine answers.
    """
    from shared.errors import ConfigurationError, PermanentError, TemporaryError

    try:
        seen = asyncio.run(_run(image, assignments(inputs, "-i"), timeout))
    except TemporaryError as error:
        raise Failure(str(error), hint="is it running? DOCKER_HOST names another one", exit_code=UNREACHABLE) from None
    except (ConfigurationError, PermanentError) as error:
        raise Failure(str(error)) from None
    result = seen.result or {}
    outputs = result.get("outputs") or {}
    show_document(
        {"exit_code": seen.exit_code, "outcome": result.get("outcome"), "outputs": outputs}, output,
        "\n".join(f"{plain(key)} = {printable(value)}" for key, value in outputs.items()),
    )  # fmt: skip
    return _verdict(seen, result)


def _verdict(seen: Observation, result: Any) -> int:
    if result.get("outcome") == "timed_out":
        click.echo("it took too long", err=True)
        return RUN_TIMED_OUT
    if seen.exit_code == 0 and result.get("job_result") is not False and result.get("outcome", "exited") == "exited":
        click.echo("succeeded", err=True)
        return OK
    why = seen.message or (f"exit code {seen.exit_code}" if seen.exit_code else "it printed JOB_RESULT = false")
    click.echo(f"failed: {plain(why)}", err=True)
    return RUN_FAILED


async def _run(image: str, inputs: dict[str, str], timeout: float) -> Observation:
    label = await _local_label(image)
    for warning in label.warnings:
        click.echo(f"warning: {plain(warning)}", err=True)
    async with _runtime() as runtime:
        spec = _spec(image, label.defaults | inputs, [each.name for each in label.outputs], timeout)
        try:
            await runtime.start(spec)
            async for chunk in runtime.logs(spec.name, follow=True):
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
            return await _outcome(runtime, spec.name)
        finally:
            await runtime.remove(spec.name)


async def _local_label(image: str) -> ComponentLabel:
    """Its defaults matter: some components refuse to start without them."""
    from cli.component_image import from_engine, from_registry
    from shared.errors import HubflowError

    for source in (from_engine, from_registry):
        try:
            return read_label((await source(image)).labels) or ComponentLabel()
        except HubflowError:
            continue
    return ComponentLabel(warnings=("the image's label cannot be read beforehand: no defaults are applied",))


@asynccontextmanager
async def _runtime() -> AsyncIterator[Runtime]:
    from shared.runtime.select import config_of, open_runtime
    from shared.settings import RuntimeSettings, engine_host

    settings = RuntimeSettings(kind="docker", docker_host=engine_host(os.environ), installation=_INSTALLATION)
    runtime = await open_runtime(config_of(settings))
    try:
        yield runtime
    finally:
        await runtime.close()


def _spec(image: str, env: dict[str, str], outputs: list[str], timeout: float) -> ContainerSpec:
    from shared.runtime.protocol import ContainerSpec, container_name

    name = container_name(os.urandom(8).hex(), Path(image).name, 1)
    document = {
        "version": 1,
        "attempt": name,
        "command": [],
        "env": env,
        "timeout_s": timeout,
        "grace_s": _GRACE,
        "declared_outputs": outputs,
        "output_limits": _OUTPUT_LIMITS,
    }
    labels = {"tenant": "local", "run": "local", "job": "component", "attempt": "1"}
    return ContainerSpec(name, image, document, labels)


async def _outcome(runtime: Runtime, name: str) -> Observation:
    """Its log has ended; its result follows at once."""
    from shared.errors import TemporaryError
    from shared.runtime.protocol import Phase

    async for seen in runtime.watch():
        if seen.name == name and seen.phase in {Phase.FINISHED, Phase.GONE}:
            return seen
    raise TemporaryError("the engine stopped telling about containers")
