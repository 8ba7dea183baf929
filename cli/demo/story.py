"""What the demo does, in order, and what must be true of it. docs/demo.md tells it to people."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import click

from cli import logs, tree
from cli.api import Api
from cli.context import Context
from cli.demo import browser, evidence
from cli.demo.checks import Checks
from cli.demo.command import Options
from cli.demo.image import TOOLBOX, Image, prepare_image
from cli.demo.repository import NAME, Repository, git, git_server, make_repository
from cli.demo.watching import Watching, is_paused, never
from cli.dev import Dev, development
from cli.failure import Failure
from cli.output import duration, plain, styled

COMPONENTS = Path(__file__).resolve().parents[2] / "components"
WORKFLOW_FILE = "hubflow.yaml"
BRANCH = "try-it"
CANCEL_WITHIN = 30.0
"""Seconds that a run gets to end when the demo is interrupted."""
_STARTED = re.compile(r"Hubflow: started, run (\d+)")
_APPROVE = re.compile(r"^Approve: (\S+)$", re.MULTILINE)

ONLY_CHECKED = {
    "lint": "succeeded", "unit tests": "succeeded", "version": "skipped", "package": "skipped", "ask": "skipped",
    "deploy": "skipped", "tell": "skipped",
}  # fmt: skip
"""States of the jobs of a push to a branch."""
BEFORE_DECISION = ONLY_CHECKED | {
    "version": "succeeded", "package": "succeeded", "ask": "succeeded", "deploy": "waiting", "tell": "waiting",
}  # fmt: skip
DELIVERED = BEFORE_DECISION | {"deploy": "succeeded", "tell": "skipped"}


@dataclass
class Scene:
    """What the steps share."""

    dev: Dev
    api: Api
    http: aiohttp.ClientSession
    repository: Repository
    hook_url: str = ""
    checks: Checks = field(default_factory=Checks)
    watching: dict[str, Watching] = field(default_factory=dict)
    """Runs on the screen, by number: one that goes on after a pause shows only what is new."""
    active: str = ""
    """Id of the run that would have to be cancelled if the demo ended now."""

    async def ask(self, *path: str, **query: Any) -> Any:
        """A document of the API."""
        return await asyncio.to_thread(lambda: self.api.get(*path, **query))

    async def log_of(self, run: str, job: str, *, follow: bool = False) -> str:
        """What a job has printed, whole. `follow`: the job may have ended only now, and its last words be on their way."""
        read = lambda: b"".join(logs.read(self.api, run, job, follow=follow))  # noqa: E731
        return (await asyncio.to_thread(read)).decode("utf-8", "replace")


async def tell(options: Options) -> int:
    """The whole demo. Returns 0 if every check held, else 1."""
    began = time.monotonic()
    example = COMPONENTS / "examples" / NAME
    if not example.is_dir():
        raise Failure("the example project is not there", hint="run the demo from a checkout of Hubflow's repository")
    async with _prepared(options, example) as scene:
        branch = await _push_a_branch(scene)
        release = await _push_main(scene)
        release = await _decide(scene, release)
        await _look_at_everything(scene, branch, release)
        _sum_up(scene, release, time.monotonic() - began, options)
        if options.keep:
            _say(f"\n  Hubflow goes on at {scene.dev.url}; Ctrl-C ends it.")
            await scene.dev.services
    return 1 if scene.checks.broken else 0


@contextlib.asynccontextmanager
async def _prepared(options: Options, example: Path) -> AsyncIterator[Scene]:
    """Everything that must be there before the first push; taken down at the end, however that comes."""
    _step("Hubflow starts: PostgreSQL, S3 and all services")
    settings = {"HUBFLOW_RUNTIME_DEFAULT_IMAGE": options.image or TOOLBOX}
    async with contextlib.AsyncExitStack() as stack:
        with _timed():
            dev = await stack.enter_async_context(development(options.state, options.runtime, settings=settings))
        if dev.runtime_kind == "docker":
            stack.push_async_callback(_remove_containers, dev)
        await _place_for_jobs(dev, options)
        folder = options.state / "git"
        repository = await make_repository(folder, example)
        address = dev.bridge_address if re.fullmatch(r"[\d.]+", dev.bridge_address) else "127.0.0.1"
        port = await stack.enter_async_context(git_server(folder, address))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        api = Api(Context(dev.url, dev.token, dev.tenant))
        stack.callback(api.close)
        scene = Scene(dev, api, http, repository)
        await _apply(scene, f"git://{dev.bridge_address or address}:{port}/{NAME}.git")
        try:
            yield scene
        finally:
            if scene.active:
                await asyncio.shield(_cancel(scene))


async def _place_for_jobs(dev: Dev, options: Options) -> None:
    if dev.runtime_kind == "docker":
        _step("the jobs' image")
        with _timed():
            builder = COMPONENTS / "toolbox" / "build.py"
            docker_host = dev.environment["HUBFLOW_RUNTIME_DOCKER_HOST"]
            image: Image = await prepare_image(docker_host, builder, options.state, options.image)
            _say(f"jobs are containers of {image.name} ({image.how}); nothing is pulled")
        return
    _say(styled("NO CONTAINERS: jobs run as plain processes of this machine, as you, with your files.", "yellow"))
    why = "--runtime process was given" if options.runtime == "process" else "no container engine answers"
    _say(f"({why}; with an engine each job would be a container of its own)")


async def _apply(scene: Scene, clone_url: str) -> None:
    """Make the project's workflow known, and let the repository tell of pushes."""
    _step(f"the workflow file {WORKFLOW_FILE} is applied, the repository gets a webhook")
    with _timed():
        source = (scene.repository.work / WORKFLOW_FILE).read_text()
        headers = {"Content-Type": "application/yaml"}
        call = scene.api.call
        applied = await asyncio.to_thread(lambda: call("PUT", "workflows", NAME, body=source, headers=headers))
        hook = await scene.ask("workflows", NAME, "hook")
        path = hook["urls"]["gitea"].split("/hooks/", 1)[1]
        scene.hook_url = f"{scene.dev.url}/hooks/{path}"
        scene.repository.install_hook(scene.hook_url, hook["secret"], clone_url)
        _say(f"workflow {NAME}, version {applied['version']}; the hook posts to {scene.hook_url}")
        _say(f"jobs clone from {clone_url}")


# the story


async def _push_a_branch(scene: Scene) -> tree.Run:
    """A branch is only checked."""
    work = scene.repository.work
    await git("checkout", "--quiet", "-b", BRANCH, cwd=work)
    readme = work / "README.md"
    readme.write_text(readme.read_text().replace("# Waypoint", "# Waypoint\n\nReleased by Hubflow.", 1))
    await scene.repository.commit("Say in the README who releases us")
    number = await _push(scene, BRANCH)
    run = await _watch(scene, number)
    scene.checks.equal("the branch's run has succeeded", run["state"], "succeeded")
    scene.checks.states("lint and unit tests have run, everything else was skipped", run, ONLY_CHECKED)
    return run


async def _push_main(scene: Scene) -> tree.Run:
    """What lands on main is built, and waits for a decision."""
    work = scene.repository.work
    await git("checkout", "--quiet", "main", cwd=work)
    await git("merge", "--quiet", "--no-ff", f"--message=Merge {BRANCH}", BRANCH, cwd=work)
    number = await _push(scene, "main")
    run = await _watch(scene, number, until_paused=True)
    scene.checks.equal("the run waits for a decision", run["state"], "paused")
    scene.checks.states("everything before the decision has succeeded, deploy waits", run, BEFORE_DECISION)
    return run


async def _push(scene: Scene, branch: str) -> str:
    """Push, show what the hook says to the pusher, and return the number of the run that it started."""
    _step(f"git push origin {branch}")
    with _timed():
        said = await scene.repository.push(branch)
        for line in said:
            _say(f"remote: {line}")
    found = next((match for line in said if (match := _STARTED.match(line))), None)
    if not scene.checks.that(
        f"the push of {branch} was told by a signed webhook and started a run", found is not None, said
    ):
        raise Failure("the push has started no run", hint=f"see {scene.dev.state_dir / 'services.log'}")
    return found[1] if found else ""


async def _watch(scene: Scene, number: str, *, until_paused: bool = False) -> tree.Run:
    scene.active = str((await scene.ask("runs", number))["id"])
    watching = scene.watching.setdefault(number, Watching(scene.api, scene.active))
    run = await watching.until(is_paused if until_paused else never)
    if run["state"] in tree.FINAL:
        scene.active = ""
    return run


async def _decide(scene: Scene, run: tree.Run) -> tree.Run:
    """Follow the link that the pause stage's job has printed, as a person would, and watch the rest."""
    _step("the link in the log of `ask` is opened, as in a browser")
    checks, run_id = scene.checks, str(run["id"])
    if run["state"] != "paused":
        return run
    link = _APPROVE.search(await scene.log_of(run_id, "ask", follow=True))
    if not checks.that("the job of the pause stage has printed a link for approval", link is not None):
        return run
    url = link[1] if link else ""
    _say(url)
    checks.that("the link is safe to paste anywhere (no & blank quote or >)", not re.search("[&\\s\"'>)]", url), url)
    opened = await browser.open_page(scene.http, url)
    form = next((form for form in opened.page.forms if form.button("approve")), None)
    button = form.button("approve") if form is not None else None
    asks = opened.status == 200 and str(run["number"]) in opened.page.text
    if not (
        checks.that("the link shows a page that asks about this run", asks, f"{opened.status} {opened.page.text}")
        and checks.that("the page has a button to approve", form is not None and button is not None, opened.page.forms)
    ):
        return run
    assert form is not None and button is not None  # noqa: S101, PT018 -- checked in the line before
    _say(f"the page says: {opened.page.text[:300]}")
    state = (await scene.ask("runs", run_id))["state"]
    checks.equal("opening the page has decided nothing", state, "paused")
    pressed = await browser.press(scene.http, url, form, button)
    checks.equal("pressing the button is accepted", pressed.status, 200)
    _say(f"the page says: {pressed.page.text[:300]}")
    run = await _watch(scene, str(run["number"]))
    again = await browser.open_page(scene.http, url)
    checks.that("the link cannot decide twice, and says what was decided", not again.page.forms, again.page.text)
    return run


async def _look_at_everything(scene: Scene, branch: tree.Run, release: tree.Run) -> None:
    """The checks on what is left when all is over."""
    _step("was it all true?")
    work = scene.repository.work
    checks = scene.checks
    checks.equal("the run of main has succeeded", release["state"], "succeeded")
    checks.states("all of its jobs are in the states they should be in", release, DELIVERED)
    expected = await _version_of(work)
    jobs = {name: await scene.ask("runs", str(release["id"]), "jobs", name) for name in DELIVERED}
    outputs = {name: job.get("outputs") or {} for name, job in jobs.items()}
    checks.equal("the output VERSION is the version of the pushed commit", outputs["version"].get("VERSION"), expected)
    checks.that(
        "an output of several lines came through", "\n" in outputs["version"].get("NOTES", ""), outputs["version"]
    )
    checks.equal("the deployed service told that version over HTTP", outputs["deploy"].get("SERVED_VERSION"), expected)
    decision = next(stage["decision"] for stage in release["stages"] if stage["name"] == "release") or {}
    checks.equal("the decision is on record", decision.get("action"), "approve")
    await _look_at_logs(scene, release)
    await evidence.artifact(scene, str(release["id"]), outputs["package"])
    await _look_at_hooks(scene, release)
    await evidence.events(scene, (branch, release))


async def _look_at_logs(scene: Scene, release: tree.Run) -> None:
    last_words = {
        "lint": "no faults", "unit tests": "failed: none", "version": "[JOB_OUT] VERSION = ", "package": "build: dist/",
        "ask": "Approve: http", "deploy": "smoke: end: 0",
    }  # fmt: skip
    kept = {job: await scene.log_of(str(release["id"]), job) for job in last_words}
    missing = {job: kept[job][-200:] for job, words in last_words.items() if words not in kept[job]}
    scene.checks.that("the log of every job is kept and has its last words", not missing, missing)
    cached = "0 modules run" in kept["unit tests"]
    scene.checks.that("the unit tests found the cache and ran nothing twice", cached, kept["unit tests"][-400:])


async def _look_at_hooks(scene: Scene, release: tree.Run) -> None:
    """The same webhook once more, and a forged one."""
    delivery = scene.repository.last_delivery()
    said = await scene.repository.redeliver(delivery)
    repeated = "duplicate" in said and f"run {release['number']}" in said
    scene.checks.that("the same webhook sent again is known as a duplicate", repeated, said)
    forged = {"X-Gitea-Event": "push", "X-Gitea-Delivery": "forged", "X-Gitea-Signature": "00" * 32}
    async with scene.http.post(scene.hook_url, json={"ref": "refs/heads/main"}, headers=forged) as answer:
        scene.checks.equal("a forged webhook is refused", answer.status, 401)
    newest = await scene.ask("runs", workflow=NAME, limit=1)
    scene.checks.equal("neither has started a run", newest["items"][0]["number"], release["number"])


async def _version_of(work: Path) -> str:
    """The version that tools/version.py gives the developer's own checkout."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(work / "tools/version.py"), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().strip()


# the end


def _sum_up(scene: Scene, release: tree.Run, seconds: float, options: Options) -> None:
    _step("how long the jobs took")
    for job in tree.jobs(release):
        if job["started_at"] and job["finished_at"]:
            waited = evidence.seconds(job["ready_at"], job["started_at"])
            ran = evidence.seconds(job["started_at"], job["finished_at"])
            _say(f"{plain(job['name']):<12} started after {duration(waited):>5}, ran {duration(ran):>5}")
    checks = scene.checks
    total = checks.held + len(checks.broken)
    verdict = "all checks held" if not checks.broken else f"{len(checks.broken)} of {total} checks did NOT hold"
    click.echo(styled(f"\n{verdict}, {total} in all, after {duration(seconds)}", "red" if checks.broken else "green"))
    for what in checks.broken:
        _say(f"✖ {what}")
    _what_next(options, broken=bool(checks.broken))


def _what_next(options: Options, *, broken: bool) -> None:
    shown = options.state.relative_to(Path.cwd()) if options.state.is_relative_to(Path.cwd()) else options.state
    tries = [
        ("hubflow demo --keep", "the same, and Hubflow goes on; then, in another terminal:"),
        (
            f"export HUBFLOW_CONTEXT={shown}/context.json",
            "  look around with `hubflow run list`, `hubflow run show @latest`",
        ),
        (f"less components/examples/{NAME}/{WORKFLOW_FILE}", "the workflow file, with comments"),
        ("less docs/demo.md", "what has happened, and where to look"),
    ]
    if broken:
        tries.insert(0, (f"less {shown}/services.log", "what the services say"))
    width = max(len(command) for command, _ in tries)
    click.echo("\nTry next:")
    for command, why in tries:
        _say(f"{command.ljust(width)}  {why}")


async def _cancel(scene: Scene) -> None:
    """End the run that is under way, so that no container goes on when the demo is gone."""
    run, api = scene.active, scene.api.again()

    def cancel() -> None:
        with contextlib.suppress(Failure):
            api.create("runs", run, "cancel", body={"reason": "the demo was ended"})
            api.wait(CANCEL_WITHIN, "runs", run)

    await asyncio.to_thread(cancel)
    api.close()


async def _remove_containers(dev: Dev) -> None:
    """Take the finished jobs' containers from the engine: nobody will ask for them any more."""
    from shared.config import load
    from shared.errors import HubflowError
    from shared.runtime.select import config_of, open_runtime
    from shared.settings import RuntimeSettings

    (settings,) = load(dev.environment, RuntimeSettings)
    runtime = await open_runtime(config_of(settings))
    try:
        await asyncio.gather(*(runtime.remove(container.name) for container in await runtime.list()))
    except HubflowError as error:
        _say(f"containers may be left on the engine: {error}")
    finally:
        await runtime.close()


# words


def _step(title: str) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    click.echo("\n" + click.style(f"── {title} ".ljust(width, "─"), bold=True))
    sys.stdout.flush()


def _say(text: str) -> None:
    click.echo(f"  {text}")
    sys.stdout.flush()


@contextmanager
def _timed() -> Iterator[None]:
    began = time.monotonic()
    yield
    _say(styled(f"({duration(time.monotonic() - began)})", "bright_black"))
