"""One storm from beginning to end: open the place, let runs and faults go, wait until it is quiet, look at the evidence."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import aio_pika
import aiohttp

from shared.db.database import Database, open_database
from shared.objects import open_object_store
from shared.settings import ObjectsSettings
from tests.chaos import evidence
from tests.chaos.ears import Subscriber, Witness, declare_queue, opened_receiver
from tests.chaos.load import Load, Planned, plan
from tests.chaos.place import EXPECTED_WORDS, LETTERS, Place, opened_place, ready, start_all
from tests.chaos.pods import PodEngine
from tests.chaos.report import Result
from tests.chaos.storm import FAULTS, ONLY_IF_NAMED, Storm
from tests.chaos.workflows import KINDS, SIMULATED_KINDS
from tests.cluster.images import job_images, wrapper_image
from tests.servers.dockerd import Dockerd, started_dockerd
from tests.servers.images import TEST_IMAGES, write_archive
from tests.servers.kubernetes import WRAPPER, Kubernetes, found_kubernetes

SETTLE_SECONDS = 240.0
"""How long everything may take to be given back. The longest parts: a webhook's third try (two and a half minutes after its
first), and half a minute for which finished containers are kept."""
TOLD_EVERY = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted."""

    runs: int
    seed: int
    faults: frozenset[str] = frozenset(FAULTS) - ONLY_IF_NAMED
    runtime: str = "process"
    pace: float = 2.0
    """Seconds between two faults, on average."""
    at_once: int = 40
    """Runs that are open at the same time."""
    decks: int | None = None
    """How many decks of faults are played at most; None: until the runs are over."""


def chosen(words: str) -> frozenset[str]:
    """Names of faults from what the user wrote: `all` (but those that have to be named), names, and beginnings of them (`kill`,
    `disk`), with commas.
    Raises ValueError for what fits none."""
    if words in {"", "all"}:
        return frozenset(FAULTS) - ONLY_IF_NAMED
    if words == "none":
        return frozenset()
    found: set[str] = set()
    for word in words.split(","):
        fitting = {name for name in FAULTS if name == word or name.startswith(f"{word}:")}
        if not fitting:
            near = get_close_matches(word, {*FAULTS, *(name.partition(":")[0] for name in FAULTS)}, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"there is no fault {word!r}; {hint}there are: {', '.join(FAULTS)}")
        found |= fitting
    return frozenset(found)


async def storm(
    order: Order, told: Callable[[str], None], keep: Path | None = None, cluster: Kubernetes | None = None
) -> Result:
    """Run one storm. `keep`: leave the logs of the services there. `cluster`: with the images of the tests; None: find one."""
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        # Not below the folder of the caller: the database's user (nobody) must reach it, and sockets have short names.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="hubflow-chaos-", ignore_cleanup_errors=True))
        )
        folder.chmod(0o755)
        if keep is not None:
            stack.callback(_keep_logs, folder, keep)
        engine: Dockerd | PodEngine | None = None
        if order.runtime == "docker":
            engine = await stack.enter_async_context(_engine(folder))
        elif order.runtime in {"kubernetes", "simulated"}:
            engine = await stack.enter_async_context(_pods(folder, cluster, simulated=order.runtime == "simulated"))
        place = await stack.enter_async_context(opened_place(folder, engine))
        told(f"{order.runtime}: {order.runs} runs, seed {order.seed}; servers are up, logs in {folder}")
        return await _storm(order, place, told, begun)


async def _storm(order: Order, place: Place, told: Callable[[str], None], begun: float) -> Result:
    rng = random.Random(order.seed)
    witness = Witness(place.folder / "witness", place.engine, place.environment["HUBFLOW_RUNTIME_INSTALLATION"])
    heard = Subscriber()
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(opened_receiver(random.Random(rng.getrandbits(64))))
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        await start_all(place)
        await _bind(place)
        background = [asyncio.create_task(heard.listen(place.environment["HUBFLOW_AMQP_URL"]), name="subscriber")]
        background.append(asyncio.create_task(witness.watch(), name="witness"))
        background.append(asyncio.create_task(place.supervise(), name="supervisor"))
        stack.callback(lambda: [task.cancel() for task in background])
        repertoire = SIMULATED_KINDS if order.runtime == "simulated" else KINDS
        load = Load(place, http, rng.getrandbits(64), repertoire)
        await load.prepare("" if place.engine is not None else str(witness.path), receiver)
        faults = Storm(
            place,
            load,
            receiver,
            random.Random(rng.getrandbits(64)),
            order.faults,
            order.pace,
            order.decks,
            lambda line: told(f"    {line}"),
        )
        planned = plan(order.runs, random.Random(rng.getrandbits(64)), repertoire)
        await _let_go(order, load, faults, planned, told)
        told(f"{load.progress()}; calm now: everything is mended, it settles")
        await _mend(place)
        findings = await _look(place, load, heard, witness, receiver, told)
        struck = faults.struck
        if load.removed:
            struck["removed-by-hand"] = load.removed
        return Result(
            order.runtime, order.seed, len(load.runs), struck, faults.impossible, findings, faults.recoveries,
            time.monotonic() - begun,
        )  # fmt: skip


async def _let_go(
    order: Order, load: Load, faults: Storm, planned: Sequence[Planned], told: Callable[[str], None]
) -> None:
    """Runs and faults at the same time, until the last run is over."""
    calm = asyncio.Event()
    begun = time.monotonic()

    async def tell() -> None:
        while True:
            await asyncio.sleep(TOLD_EVERY)
            told(f"{time.monotonic() - begun:5.0f} s  {load.progress()}, {sum(faults.struck.values())} faults")

    telling = asyncio.create_task(tell(), name="progress")
    raging = asyncio.create_task(faults.rage(calm), name="storm") if order.faults else None
    going = asyncio.create_task(load.go(planned, order.at_once), name="load")
    try:
        # A storm that fails is a fault of ours, and the load would wait for what nobody mends any more.
        await asyncio.wait([going, *([raging] if raging else [])], return_when=asyncio.FIRST_COMPLETED)
        if raging and raging.done():
            raging.result()
        await going
        calm.set()
        if raging:
            await raging
    finally:
        for task in (telling, going, raging):
            if task:
                task.cancel()


async def _mend(place: Place) -> None:
    for link in place.links.values():
        link.heal()
    for replica in place.dead():
        place.start(replica.name, replica.letter)
    await ready(place)


async def _look(
    place: Place, load: Load, heard: Subscriber, witness: Witness, receiver: object, told: Callable[[str], None]
) -> evidence.Findings:
    findings = evidence.Findings()
    async with open_database(place.database.dsn, max_connections=4) as database:
        await _settle(findings, place, database, heard, told)
        said = witness.said()
        await evidence.look_at_runs(findings, load, said)
        await evidence.look_at_pods(findings, place)
        evidence.look_at_limits(findings, load, said)
        await evidence.look_at_events(findings, database, load, heard)
        evidence.look_at_webhooks(findings, heard, receiver)  # type: ignore[arg-type]
        settings = ObjectsSettings(
            endpoint=place.s3.endpoint, region=place.s3.region, bucket="chaos",
            access_key=place.s3.access_key, secret_key=place.s3.secret_key,
        )  # fmt: skip
        async with open_object_store(settings) as objects:
            await evidence.look_at_objects(findings, database, objects)
    for client in load.clients.values():
        if client.internal_errors:
            findings.add("wrong_state", f"the API answered 500 {client.internal_errors} times")
    for words in place.fallen:
        if EXPECTED_WORDS not in words:
            findings.add("wrong_state", f"a process ended by itself: {words}")
    findings.looked["processes that gave up at their start"] = sum(EXPECTED_WORDS in words for words in place.fallen)
    findings.looked.update(evidence.logged_errors(place))
    return findings


async def _settle(
    findings: evidence.Findings, place: Place, database: Database, heard: Subscriber, told: Callable[[str], None]
) -> None:
    """Wait until nothing is under way; what still is after a long time is left over."""
    # A fourth try comes ten minutes after the third: nobody waits for that here, but it must be written down as due.
    await database.execute(
        "UPDATE deliveries SET next_try_at = now() WHERE state = 'waiting' AND holder IS NULL AND tries > 2"
    )
    deadline, said = time.monotonic() + SETTLE_SECONDS, time.monotonic()
    while left := await evidence.unsettled(place, database):
        if time.monotonic() > deadline:
            for what, count in left.items():
                findings.add("leftovers", f"{count} {what}")
            return
        if time.monotonic() > said + TOLD_EVERY:
            said = time.monotonic()
            told("settling: " + ", ".join(f"{count} {what}" for what, count in left.items()))
        await asyncio.sleep(0.5)


async def _bind(place: Place) -> None:
    """The customer's queue is there before the first event."""
    connection = await aio_pika.connect(place.environment["HUBFLOW_AMQP_URL"])
    async with connection:
        await declare_queue(await connection.channel())


@asynccontextmanager
async def _engine(folder: Path) -> AsyncIterator[Dockerd]:
    async with started_dockerd(folder / "dockerd") as engine:
        await engine.load(write_archive(folder / "images.tar", TEST_IMAGES))
        yield engine


@asynccontextmanager
async def _pods(folder: Path, cluster: Kubernetes | None, *, simulated: bool) -> AsyncIterator[PodEngine]:
    async with AsyncExitStack() as stack:
        if cluster is None:
            cluster = await stack.enter_async_context(found_kubernetes())
            await cluster.load([wrapper_image(WRAPPER), *job_images()], folder)
        engine = PodEngine(cluster, simulated=simulated)
        stack.push_async_callback(engine.close)
        await engine.prepare()
        yield engine


def _keep_logs(folder: Path, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for log in _logs(folder):
        (keep / log.name).write_bytes(log.read_bytes())


def _logs(folder: Path) -> Iterable[Path]:
    yield from folder.glob("*.log")
    yield from (path for path in [folder / "witness"] if path.exists())
    yield from (folder / "disks").glob("*/*/*.log")


def default_runs(runs: int, runtime: str) -> list[tuple[str, int]]:
    """Which share of the runs goes where: with `both`, a fifth in containers of a real engine; with `pods`, as many on a real
    node, and twenty times as many on simulated ones."""
    if runtime == "pods":
        return [("kubernetes", runs), ("simulated", 20 * runs)]
    if runtime != "both":
        return [(runtime, runs)]
    engine = max(1, runs // 5)
    return [("process", runs - engine), ("docker", engine)]


def enough_rights() -> str:
    """Why not everything can be done here; "" if it can."""
    return "" if os.geteuid() == 0 else "not root: no full disks, and no Docker engine"


__all__ = ["LETTERS", "Order", "chosen", "default_runs", "enough_rights", "storm"]
