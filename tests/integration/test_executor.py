"""The executor on a real database, runtime, wrapper and S3."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.executor import handlers
from services.executor.components import Components
from services.executor.config import ExecutorSettings
from services.executor.core import Component
from services.executor.handlers import (
    CONSUMER,
    Context,
    handle,
    on_job_ready,
    on_job_stop_requested,
    on_run_finished,
)
from services.executor.main import open_executor
from services.executor.store import run_so_far
from services.status_watcher.config import StatusWatcherSettings
from services.status_watcher.core import SHARES
from services.status_watcher.handlers import Context as WatcherContext
from services.status_watcher.handlers import tell, watch
from services.status_watcher.sharing import Shares
from shared import object_keys
from shared.batching import Batcher
from shared.bus.protocol import Consumer, Message
from shared.embedded import S3Address
from shared.errors import PermanentError, TemporaryError
from shared.events import JobFinished, JobReady, JobSubmitted, RunCreated, RunFinished, encode
from shared.oci import open_registry_client, parse_reference
from shared.outcomes import Outcome, record_outcomes
from shared.runtime.protocol import ContainerSpec, Observation, Phase
from tests.cluster.images import job_images
from tests.integration.jobs import ROOT, TENANT, House, container_of, opened_house, tasks_of, until
from tests.integration.scheduling import Hands
from tests.servers.pushing import push_image
from tests.servers.registry import started_registry

SIMPLE = """
name: simple
env: {GLOBAL: world}
stages:
  - name: build
    jobs:
      - name: hello
        env: {WHO: "${GLOBAL}"}
        script: 'echo "hello $WHO $HUBFLOW_JOB $_WORKFLOW_FLAG_CACHE"; echo "[JOB_OUT] A = 1"'
"""


@pytest.fixture
async def house(database: str, s3: S3Address, tmp_path: Path) -> AsyncIterator[House]:
    async with opened_house(database, s3, tmp_path) as opened:
        yield opened


def executor_of(house: House, runtime: object = None) -> Context:
    host = house.host
    return Context.of(
        database=host.database, runtime=runtime or host.runtime, objects=host.objects, vault=host.vault, clock=host.clock,
        settings=ExecutorSettings(), components=Components(None, required=False),
        public_url=lambda: host.public_url,
    )  # fmt: skip


@asynccontextmanager
async def watching(house: House) -> AsyncIterator[None]:
    host = house.host
    context = WatcherContext("here", host.database, host.runtime, host.objects, StatusWatcherSettings(), Shares(SHARES))
    async with tasks_of(watch(context), tell(context)):
        yield


async def log_of(house: House, ready: JobReady) -> bytes:
    return b"".join([chunk async for chunk in house.host.runtime.logs(container_of(ready))])


async def test_a_job_runs_from_ready_to_its_outcome(house: House) -> None:
    ready = await house.ready(await house.run(SIMPLE), "hello")
    async with watching(house):
        await on_job_ready(ready, executor_of(house))
        outcome = await house.finished(ready)
    assert (outcome["state"], outcome["exit_code"], outcome["outputs"]) == ("succeeded", 0, {"A": "1"})
    assert await log_of(house, ready) == b"hello world hello false\n[JOB_OUT] A = 1\n"
    submitted = await house.told(ready.run, JobSubmitted)
    assert [event.container for event in submitted] == [container_of(ready)]
    assert submitted[0].cause == ready.id
    finished = await house.told(ready.run, JobFinished)
    assert [(event.state, event.outputs, event.started) for event in finished] == [("succeeded", ["A"], True)]


async def test_t23_the_same_start_twice_and_by_two_replicas_makes_one_container(house: House) -> None:
    ready = await house.ready(await house.run(SIMPLE.replace("echo", "sleep 0.3; echo", 1)), "hello")
    one, two = executor_of(house), executor_of(house)
    await asyncio.gather(*(on_job_ready(ready, each) for each in (one, two, one, two)))
    assert len(await house.host.runtime.list()) == 1
    assert len(await house.told(ready.run, JobSubmitted)) == 1
    async with watching(house):
        await house.finished(ready)
    await on_job_ready(ready, one)  # delivered once more, long after
    assert (await log_of(house, ready)).count(b"hello") == 2  # `hello world hello`: one line
    assert len(await house.told(ready.run, JobSubmitted)) == 1


@pytest.fixture
async def private(tmp_path: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """An image that its registry gives to one account only, which may have been pulled with it by a node; and the account."""
    auth = {"username": "u", "password": "word"}
    async with started_registry(tmp_path / "private", users={"u": "word"}) as closed, open_registry_client() as client:
        image = f"{closed.host}/team/tool:1"
        await push_image(client, parse_reference(image), *job_images()[0].pushable(), auth)
        yield image, auth


@pytest.mark.parametrize("absent", [False, True])
async def test_who_is_refused_an_image_has_it_asked_for_again(
    private: tuple[str, dict[str, str]], *, absent: bool
) -> None:
    image, auth = private
    wrong: list[dict[str, str] | None] = [None, auth | {"password": "no"}]
    asked = image.replace("tool", "absent") if absent else image
    async with Components.open("kubernetes", "", "checked") as components:
        assert (await components.of(image, auth, needed=False)).command == ("/bin/echo", "from the image")
        for other in [auth] if absent else wrong:
            assert (await components.of(asked, other, needed=False)) == Component(refused=True)
            assert await components.refused(asked, other)
            with pytest.raises(PermanentError, match="not known" if absent else "refused") as refused:
                await Components(components._lookup, required=True).of(asked, other, needed=True)
            assert refused.value.reason == "ImagePull"
        assert not await components.refused(image, auth)
    # Where the node asks the registry itself, or nobody does, and on an engine, which has images that no registry knows.
    for runtime, pull in (("kubernetes", "always"), ("kubernetes", "missing"), ("docker", "checked")):
        async with Components.open(runtime, "", pull) as components:
            for other in wrong:
                assert await components.of(image, other, needed=False) == Component()


async def test_a_node_is_told_whose_image_it_must_ask_for(house: House, private: tuple[str, dict[str, str]]) -> None:
    image, auth = private
    source = f"""
name: w
stages: [{{name: s, jobs: {{j: {{script: 'true', component: {image}, services: [{{name: db, image: {image}}}]}}}}}}]
"""
    specs: list[ContainerSpec] = []

    class Noting:
        name = "kubernetes"

        async def start(self, spec: ContainerSpec) -> None:
            specs.append(spec)

    async with Components.open("kubernetes", "", "checked") as components:
        executor = dataclasses.replace(executor_of(house, Noting()), components=components)
        ready = await house.ready(await house.run(source), "j")
        await on_job_ready(ready, executor)
        await house.tenant(DOCKER_AUTH_CONFIG=json.dumps({"auths": {image.partition("/")[0]: auth}}))
        await on_job_ready(await house.ready(ready.run, "j", 2), executor)
    assert [(each.ask_registry, each.services[0].ask_registry) for each in specs] == [(True, True), (False, False)]


async def test_only_who_starts_for_the_second_time_says_so(house: House) -> None:
    """The runtime then looks whether the container was removed by hand meanwhile."""
    ready = await house.ready(await house.run(SIMPLE), "hello")
    said: list[bool] = []

    class Away:
        name = "process"

        async def start(self, spec: ContainerSpec) -> None:
            said.append(spec.again)
            raise TemporaryError("the engine is away")

    for _ in range(2):
        with pytest.raises(TemporaryError):
            await on_job_ready(ready, executor_of(house, Away()))
    assert said == [False, True]


async def test_a_start_that_finds_no_room_is_left_to_the_scheduler_and_not_parked(house: House) -> None:
    """A quota of the cluster that stayed used up made a dead letter of each reminder, one every 30 seconds."""
    ready = await house.ready(await house.run(SIMPLE), "hello")
    bus, tries = house.host.bus, 0

    class Full:
        name = "process"
        begun: Observation | None = None

        async def start(self, spec: ContainerSpec) -> None:
            nonlocal tries
            tries += 1
            raise TemporaryError("exceeded quota")

        async def inspect(self, name: str) -> Observation | None:
            return self.begun

    runtime = Full()
    handler = partial(handle, context=executor_of(house, runtime))
    await bus.consume(Consumer(CONSUMER, ["*.job.ready"], handler, retry_delays=(0.01,) * 5))
    told = Message(ready.id, ready.topic, encode(ready))
    await asyncio.wait_for(bus.publish(told), 20)
    assert (tries, await bus.dead()) == (3, [])
    await asyncio.wait_for(bus.publish(told), 20)  # the reminder
    assert (tries, await bus.dead()) == (6, [])
    # So is one whose image is being pulled while a container without content holds its name.
    runtime.begun = Observation(container_of(ready), "u", Phase.PENDING, {})
    await asyncio.wait_for(bus.publish(told), 20)
    assert (tries, await bus.dead()) == (9, [])
    # What has begun may end before a reminder comes, and must be told then: it is tried like anything else.
    runtime.begun = dataclasses.replace(runtime.begun, phase=Phase.RUNNING)
    await asyncio.wait_for(bus.publish(told), 20)
    assert [each.tries for each in await bus.dead()] == [6]


async def test_a_reminder_of_a_start_that_goes_on_here_takes_no_place(house: House) -> None:
    """While an image is pulled one comes every 30 seconds, and each would take the container over from the others."""
    ready = await house.ready(await house.run(SIMPLE), "hello")
    begun, pulled, starts = asyncio.Event(), asyncio.Event(), 0

    class Pulling:
        name = "process"

        async def start(self, spec: ContainerSpec) -> None:
            nonlocal starts
            starts += 1
            begun.set()
            await pulled.wait()

    executor = executor_of(house, Pulling())
    first = asyncio.create_task(on_job_ready(ready, executor))
    await begun.wait()
    await asyncio.wait_for(on_job_ready(ready, executor), 5)
    assert (starts, first.done()) == (1, False)
    pulled.set()
    await first
    assert len(await house.told(ready.run, JobSubmitted)) == 1
    assert executor.starting == set()


@pytest.mark.parametrize("suspended", [False, True])
async def test_what_was_stopped_between_claim_and_start_claims_again(house: House, *, suspended: bool) -> None:
    """Another process may have started the attempt meanwhile and removed it, or told that nothing of it has run. While a
    machine is suspended, only its clock goes on."""
    ready = await house.ready(await house.run(SIMPLE), "hello")
    hands = Hands()
    claimed_before: list[bool] = []

    class Stopping:
        stopped = False

        @property
        def name(self) -> str:
            """What is asked between claim and start."""
            if not self.stopped:
                self.stopped = True
                if suspended:
                    hands.turn(60)
                else:
                    time.sleep(0.6)
            return "process"

        async def start(self, spec: ContainerSpec) -> None:
            """Like that of plain processes it never waits."""
            claimed_before.append(spec.again)

    executor = dataclasses.replace(
        executor_of(house, Stopping()), clock=hands, settings=ExecutorSettings(start_seconds=20 if suspended else 0.5)
    )
    await on_job_ready(ready, executor)
    assert claimed_before == [True]
    assert len(await house.told(ready.run, JobSubmitted)) == 1


class Hanging:
    """A runtime whose starts of these containers never return: their registry takes the connection and no more."""

    name = "process"

    def __init__(self, runtime: Any, hang: set[str]) -> None:
        self._runtime, self._hang = runtime, hang
        self.starting: set[str] = set()

    async def start(self, spec: ContainerSpec) -> None:
        if spec.name in self._hang:
            self.starting.add(spec.name)
            await asyncio.Event().wait()
        await self._runtime.start(spec)

    def __getattr__(self, name: str) -> object:
        return getattr(self._runtime, name)


async def test_t59_starts_that_hang_hold_up_neither_stops_nor_for_long_other_jobs(house: House) -> None:
    """As many as are started at a time; the consumer is the executor's own."""
    source = SIMPLE.replace('echo "hello', 'trap "exit 0" TERM; while :; do sleep 0.05; done; echo "hello')
    running, *hanging, plain = [await house.ready(await house.run(source), "hello") for _ in range(4)]
    runtime = Hanging(house.host.runtime, {container_of(ready) for ready in hanging})
    house.host._runtime = runtime  # type: ignore[assignment]
    settings = ExecutorSettings(concurrency=2, start_seconds=1.0)
    async with open_executor(house.host, settings) as parts, watching(house):
        await house.host.bus.consume(parts.consumers[0])
        for ready in (running, *hanging):
            house.host.bus.publish(Message(ready.id, ready.topic, encode(ready)))

        async def all_hang() -> bool:
            return len(runtime.starting) == 2 and bool(await house.told(running.run, JobSubmitted))

        await until(all_hang)
        stop = await house.stop(running)
        await asyncio.wait_for(house.host.bus.publish(Message(stop.id, stop.topic, encode(stop))), 5)
        assert (await house.finished(running, 5))["state"] == "cancelled"
        await asyncio.wait_for(house.host.bus.publish(Message(plain.id, plain.topic, encode(plain))), 5)
        assert await house.told(plain.run, JobSubmitted)
        stop = await house.stop(plain)
        await house.host.bus.publish(Message(stop.id, stop.topic, encode(stop)))
        await house.finished(plain)
        await house.host.bus.close()


async def test_the_age_of_a_start_is_how_long_it_has_waited_for_its_turn(house: House) -> None:
    """By it one sees that there are too few executors: nothing waits in the broker that fits into their hands."""

    def noted() -> float:
        return REGISTRY.get_sample_value("hubflow_event_age_seconds_count", {"queue": CONSUMER}) or 0.0

    ready, before = await house.ready(await house.run(SIMPLE), "hello"), noted()
    async with open_executor(house.host, ExecutorSettings(concurrency=1)) as parts, watching(house):
        turns = parts.consumers[0].handler.keywords["context"].turns  # type: ignore[attr-defined]
        async with turns.taken("other", 10.0):
            await house.host.bus.consume(parts.consumers[0])
            told = house.host.bus.publish(Message(ready.id, ready.topic, encode(ready)))

            async def waits() -> bool:
                return bool(turns._waiting)

            await until(waits)
            assert noted() == before
        await asyncio.wait_for(told, 20)
        assert noted() == before + 1
        await house.finished(ready)
        await house.host.bus.close()


async def test_t24_a_start_that_was_not_told_is_told_by_the_next_delivery(house: House) -> None:
    ready = await house.ready(await house.run(SIMPLE), "hello")

    class DiedError(Exception):
        pass

    async def dies(batch: object) -> None:
        raise DiedError

    context = executor_of(house)
    dying = Context(**{**{name: getattr(context, name) for name in Context.__slots__}, "submissions": Batcher(dies)})
    with pytest.raises(DiedError):
        await on_job_ready(ready, dying)
    async with watching(house):
        await house.finished(ready)  # T26: it ends before anybody has told that it was submitted
    assert await house.told(ready.run, JobSubmitted) == []
    await on_job_ready(ready, context)
    assert len(await house.told(ready.run, JobSubmitted)) == 1
    assert len(await house.host.runtime.list()) == 1


async def test_t31_what_must_not_start_does_not(house: House) -> None:
    ready = await house.ready(await house.run(SIMPLE), "hello")
    stop = await house.stop(ready)
    context = executor_of(house)
    await asyncio.gather(on_job_stop_requested(stop, context), on_job_ready(ready, context))
    await on_job_stop_requested(stop, context)
    assert await house.host.runtime.list() == []
    (finished,) = await house.told(ready.run, JobFinished)
    assert (finished.state, finished.started) == ("cancelled", False)


async def test_t31_what_runs_is_stopped(house: House) -> None:
    source = SIMPLE.replace('echo "hello', 'trap "exit 0" TERM; while :; do sleep 0.05; done; echo "hello')
    ready = await house.ready(await house.run(source), "hello")
    context = executor_of(house)
    async with watching(house):
        await on_job_ready(ready, context)
        await until(lambda: house.outcome(ready))
        await on_job_stop_requested(await house.stop(ready), context)
        outcome = await house.finished(ready)
    assert outcome["state"] == "cancelled"


@pytest.mark.parametrize("tried_before", [0, 60])
async def test_t31_a_stop_that_comes_between_claim_and_start_is_not_forgotten(house: House, tried_before: int) -> None:
    """A start that is tried again counts from its last claim: else a stop would tell that nothing had run, and then it ran."""
    ready = await house.ready(await house.run(SIMPLE.replace("echo", "sleep 60; echo", 1)), "hello")
    if tried_before:
        await house.database.execute("UPDATE attempts SET claimed_at = now() - make_interval(secs => $1)", tried_before)
    context = executor_of(house)
    runtime = house.host.runtime

    class Slow:
        """The scheduler stops the attempt while the runtime starts it."""

        name = "process"

        async def start(self, spec: object) -> None:
            stop = await house.stop(ready)
            with pytest.raises(TemporaryError):
                await on_job_stop_requested(stop, context)
            await runtime.start(spec)

        def __getattr__(self, name: str) -> object:
            return getattr(runtime, name)

    async with watching(house):
        await on_job_ready(ready, executor_of(house, Slow()))
        outcome = await house.finished(ready)
    assert outcome["state"] == "cancelled"


async def test_a_claimed_attempt_that_never_came_is_cancelled_and_cannot_start_later(house: House) -> None:
    ready = await house.ready(await house.run(SIMPLE), "hello")
    await house.database.execute("UPDATE attempts SET claimed_at = now() - interval '31 s'")
    context = executor_of(house)
    await on_job_stop_requested(await house.stop(ready), context)
    assert (await house.outcome(ready))["state"] == "cancelled"
    await on_job_ready(ready, context)
    assert await house.host.runtime.list() == []


async def test_what_can_never_start_fails_with_its_reason_once(house: House) -> None:
    source = """
name: broken
inputs: {V: ""}
stages:
  - name: s
    jobs:
      a: {env: {X: "${{ git.branch }}"}, script: "true"}
      b: {component: busybox, command: ["true"]}
      c: {component: "${{ inputs.V }}"}
"""
    run = await house.run(source, inputs={"V": ""})
    for job, reason in (("a", "BadInput"), ("b", "Unsupported"), ("c", "BadInput")):
        ready = await house.ready(run, job)
        await on_job_ready(ready, executor_of(house))
        await on_job_ready(ready, executor_of(house))
        outcome = await house.outcome(ready)
        assert (outcome["state"], outcome["reason"]) == ("failed", reason), outcome["message"]
    assert [event.started for event in await house.told(run, JobFinished)] == [False, False, False]
    assert "`component` came to nothing: ${{ inputs.V }}" in outcome["message"]


async def test_t36_secrets_are_read_anew_at_every_attempt(house: House) -> None:
    source = """
name: secretive
stages:
  - name: s
    jobs: {a: {env: {X: "${{ secrets.TOKEN }}"}, script: 'echo "[JOB_OUT] SEEN = $X"; exit 1'}}
"""
    run = await house.run(source)
    context = executor_of(house)
    async with watching(house):
        for attempt, value in enumerate(("first", "second"), 1):
            await house.tenant(TOKEN=value)
            ready = await house.ready(run, "a", attempt)
            await on_job_ready(ready, context)
            assert (await house.finished(ready))["outputs"] == {"SEEN": value}


async def test_outputs_artifacts_and_caches_reach_later_jobs(house: House) -> None:
    source = """
name: chain
stages:
  - name: first
    jobs:
      make:
        script: |
          mkdir -p dist deps; echo built > dist/app; echo dep > deps/lib
          echo "[JOB_OUT] VERSION = 1.2"
        outputs: [VERSION]
        artifacts: {name: app, paths: [dist]}
        cache: {name: deps, paths: [deps]}
  - name: second
    jobs:
      use:
        env: {VERSION: "${{ jobs.make.outputs.VERSION }}"}
        fetch: {artifact: app, path: got}
        cache: {name: deps, paths: [deps]}
        script: 'echo "[JOB_OUT] ALL = $VERSION $(cat got/dist/app) $(cat deps/lib)"'
"""
    run = await house.run(source)
    context = executor_of(house)
    async with watching(house):
        make = await house.ready(run, "make")
        await on_job_ready(make, context)
        outcome = await house.finished(make)
        assert outcome["state"] == "succeeded", dict(outcome)
        await house.database.execute("UPDATE jobs SET state = 'succeeded' WHERE run = $1 AND name = 'make'", run)
        use = await house.ready(run, "use")
        await on_job_ready(use, context)
        outcome = await house.finished(use)
    assert outcome["outputs"] == {"ALL": "1.2 built dep"}, dict(outcome)
    (artifact,) = await house.database.fetch("SELECT * FROM artifacts WHERE run = $1", run)
    assert artifact["object_key"] == object_keys.artifact(TENANT, run, "make", 1, "app")
    stored = await house.host.objects.head(artifact["object_key"])
    assert stored is not None
    assert stored.size == artifact["bytes"] > 0
    assert artifact["files"] >= 1
    cache = object_keys.run_cache(TENANT, run, "deps")
    assert await house.host.objects.head(cache) is not None
    await on_run_finished(RunFinished(tenant=TENANT, run=run, state="succeeded"), context)
    assert await house.host.objects.head(cache) is None
    assert await house.host.objects.head(artifact["object_key"]) is not None


async def test_t35_the_run_so_far_has_one_outcome_of_a_carried_over_job(house: House) -> None:
    """The one of the attempt that was carried over, in whatever order PostgreSQL finds them."""
    source = "name: carried\nstages: [{name: one, jobs: {make: {script: 'true'}}}]\n"
    first, second = await house.run(source), await house.run(source)
    for attempt, state in ((2, "succeeded"), (1, "failed")):
        await house.database.execute(
            "INSERT INTO attempt_outcomes (container, run, job, attempt, state, finished_at, outputs) "
            "VALUES ($1, $2, 'make', $3, $4, now(), $5)",
            f"carried-{attempt}", first, attempt, state, {"VERSION": f"1.{attempt}"},
        )  # fmt: skip
    await house.database.execute(
        "UPDATE jobs SET state = 'succeeded', attempt = 2, carried_from = $2 WHERE run = $1", second, first
    )
    jobs, _ = await run_so_far(house.database, second)
    assert [(row["name"], row["outputs"]) for row in jobs] == [("make", {"VERSION": "1.2"})]


async def test_caches_of_any_name_end_with_their_run(house: House) -> None:
    job = """{script: 'echo x > f', cache: [{name: "${{ inputs.V }}", paths: [f]}, {name: plain, paths: [f]}]}"""
    source = f"name: odd\ninputs: {{V: {{}}}}\nstages: [{{name: s, jobs: {{a: {job}}}}}]\n"
    run = await house.run(source, inputs={"V": "\x1b[0m"})
    context = executor_of(house)
    async with watching(house):
        ready = await house.ready(run, "a")
        await on_job_ready(ready, context)
        await house.finished(ready)
    prefix = object_keys.run_caches(TENANT, run)
    assert len([each async for each in house.host.objects.list(prefix)]) == 2
    await on_run_finished(RunFinished(tenant=TENANT, run=run, state="succeeded"), context)
    assert [each async for each in house.host.objects.list(prefix)] == []


async def test_shared_directory_lives_as_long_as_the_run(house: House) -> None:
    script = 'echo x >> "$WORKFLOW_CACHE/f"; echo "[JOB_OUT] N = $(wc -l < "$WORKFLOW_CACHE/f")"'
    job = f"inputs: {{_WORKFLOW_FLAG_CACHE: 'TRUE'}}, script: '{script}'"
    run = await house.run(f"name: shares\nstages: [{{name: s, jobs: {{a: {{{job}}}, b: {{{job}}}}}}}]\n")
    context = executor_of(house)
    async with watching(house):
        for name in ("a", "b"):
            ready = await house.ready(run, name)
            await on_job_ready(ready, context)
            outcome = await house.finished(ready)
    assert outcome["outputs"]["N"].strip() == "2"
    assert (house.runtime_root / "shared" / str(run)).exists()
    for _ in range(2):
        await on_run_finished(RunFinished(tenant=TENANT, run=run, state="succeeded"), context)
    assert not (house.runtime_root / "shared" / str(run)).exists()


async def test_a_script_longer_than_an_argument_may_be_runs(house: House) -> None:
    filler = "".join(f"# {'ü' * 50} {number}\n" for number in range(1600))
    script = f'echo first\n{filler}echo "$# last"\nfalse\necho never'
    indented = "".join(f"            {line}\n" for line in script.splitlines())
    source = f"name: long\nstages:\n  - name: s\n    jobs:\n      a:\n        script: |\n{indented}"
    ready = await house.ready(await house.run(source), "a")
    async with watching(house):
        await on_job_ready(ready, executor_of(house))
        outcome = await house.finished(ready)
    assert await log_of(house, ready) == b"first\n0 last\n"
    assert outcome["exit_code"] == 1


async def test_pause_links_decide_about_their_stage(house: House) -> None:
    source = """
name: asks
stages:
  - name: ask
    type: pause
    jobs:
      a:
        script: |
          echo "[JOB_OUT] LINK = $_WORKFLOW_FLOW_PAUSE_HOOK_RESUME_API"
          echo "[JOB_OUT] SAME = $HUBFLOW_APPROVE_URL"
"""
    ready = await house.ready(await house.run(source), "a")
    async with watching(house):
        await on_job_ready(ready, executor_of(house))
        outputs = (await house.finished(ready))["outputs"]
    link = outputs["LINK"]
    assert outputs["SAME"] == link
    assert not set(link) & set("&' \">")
    prefix, _, token = link.rpartition("/")
    assert prefix == "https://hub.example.test/d"
    assert house.host.vault.open_link("decision", token + ")", house.host.clock.now()) == f"{ready.run}:ask:approve"


async def test_run_flow_starts_another_workflow_once(house: House) -> None:
    await house.run(SIMPLE)
    job = "{component: hub/tencenthub/run_flow, inputs: {FLOW_ID: acme/x/simple}}"
    source = f"name: caller\nstages: [{{name: s, jobs: {{a: {job}}}}}]\n"
    ready = await house.ready(await house.run(source), "a")
    for _ in range(2):
        await on_job_ready(ready, executor_of(house))
    outcome = await house.outcome(ready)
    assert outcome["state"] == "succeeded", outcome["message"]
    runs = await house.database.fetch(
        "SELECT id FROM runs WHERE workflow = 'simple' AND trigger ->> 'type' = 'run_flow'"
    )
    assert [str(row["id"]) for row in runs] == [outcome["outputs"]["RUN"]]
    assert len(await house.told(runs[0]["id"], RunCreated)) == 1


async def test_run_flow_that_was_cancelled_meanwhile_starts_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.run(SIMPLE)
    job = "{component: hub/tencenthub/run_flow, inputs: {FLOW_ID: acme/x/simple}}"
    ready = await house.ready(await house.run(f"name: caller\nstages: [{{name: s, jobs: {{a: {job}}}}}]\n"), "a")
    start = handlers.start_other_workflow

    async def beaten(*arguments: Any) -> dict[str, str]:
        async with house.database.transaction() as tx:
            await record_outcomes(tx, [Outcome(container=container_of(ready), state="cancelled", started=False)])
        return await start(*arguments)

    monkeypatch.setattr(handlers, "start_other_workflow", beaten)
    await on_job_ready(ready, executor_of(house))
    assert (await house.outcome(ready))["state"] == "cancelled"
    assert await house.database.fetchval("SELECT count(*) FROM runs WHERE trigger ->> 'type' = 'run_flow'") == 0


async def test_t24_executor_killed_between_start_and_telling(house: House) -> None:
    """kill -9 at different moments of the start; a new process goes on with the same event."""
    for delay in (0.0005, 0.004):
        ready = await house.ready(await house.run(SIMPLE), "hello")
        for attempt in range(2):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.integration.executor_process", str(ready.id), cwd=ROOT,
                env=house.environment, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            assert await process.stdout.readline() == b"begins\n"
            if attempt == 0:
                await asyncio.sleep(delay)  # the moment of the murder
                with contextlib.suppress(ProcessLookupError):  # it was quicker
                    process.send_signal(signal.SIGKILL)
            assert await process.wait() in ({0} if attempt else {0, -signal.SIGKILL})
        async with watching(house):
            assert (await house.finished(ready))["state"] == "succeeded"
        assert (await log_of(house, ready)).count(b"hello world") == 1
        assert len(await house.told(ready.run, JobSubmitted)) == 1
        assert len(await house.told(ready.run, JobFinished)) == 1


async def test_a_start_asks_once_before_and_tells_once_after(house: House) -> None:
    """The hot path of a plain job: one claim, no S3, one transaction after the start."""
    ready = await house.ready(await house.run(SIMPLE), "hello")
    context = executor_of(house)
    steps: list[str] = []

    class Counting:
        def __init__(self, inner: object, name: str) -> None:
            self.inner, self.name = inner, name

        def __getattr__(self, attribute: str) -> object:
            if attribute != "name":
                steps.append(f"{self.name}.{attribute}")
            return getattr(self.inner, attribute)

    counting = Context.of(
        database=Counting(context.database, "database"), runtime=context.runtime,
        objects=Counting(context.objects, "objects"), vault=context.vault, clock=context.clock, settings=context.settings,
        components=context.components, public_url=context.public_url,
    )  # fmt: skip
    await on_job_ready(ready, counting)
    assert steps == ["database.fetch", "database.change"]


async def test_services_on_plain_processes_are_refused_in_words(house: House) -> None:
    run = await house.run(
        "name: w\nstages: [{name: s, jobs: {j: {script: 'true', services: {db: {image: 'pg:16', ready: 5432}}}}}]\n"
    )
    ready = await house.ready(run, "j")
    await on_job_ready(ready, executor_of(house))
    outcome = await house.outcome(ready)
    assert (outcome["state"], outcome["reason"]) == ("failed", "Unsupported")
    assert "db" in outcome["message"]
    assert "Kubernetes" in outcome["message"]
    assert await house.host.runtime.list() == []
