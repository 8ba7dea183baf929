"""Every crash point of every service, on the main line over separate processes (`shared/crash.py`).

For each point all services are started with it, each to die when it comes there; whoever dies is started again as usual. Runs
go on until everybody has died. Then every run is right, and each attempt's code ran once.
"""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest

from services.notifier.core import DELAYS
from shared.bus.topology import TOPICS
from shared.crash import Point
from shared.db.database import Database, open_database
from shared.embedded import S3Address
from tests.e2e.system import FRONT, SERVICES, System, open_system
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.servers

PROCESSES = ("front", *(name for name in SERVICES if name not in FRONT))
_OF_THE_BUS = frozenset({Point.BEFORE_ACK, Point.AFTER_ACK})
WITHIN = 90.0
LATER = [(Point.BEFORE_COMMIT, 3), (Point.AFTER_COMMIT, 2), (Point.AFTER_COMMIT, 5), (Point.AFTER_WRITE, 3)]
"""The same at a later time: a scheduler's first commit is a run's beginning, the next are its jobs' ends and its pause."""


def passes(process: str, point: Point) -> bool:
    """Whether a process comes to a point on the main line. Who hears nothing acknowledges nothing; notifier changes no
    state and tells nothing as long as receivers answer: what it does when one does not has a test of its own."""
    if process == "notifier":
        return point in {*_OF_THE_BUS, Point.AFTER_WRITE}
    if point is Point.AFTER_WRITE:
        return process not in {"front", "scheduler"}  # which always tell what they have changed
    return point not in _OF_THE_BUS or process in TOPICS


WORKFLOW = """
name: crashing
env: {WITNESS: %s}
stages:
- name: make
  jobs:
  - name: make
    script: |
      echo "$HUBFLOW_RUN $HUBFLOW_JOB $HUBFLOW_ATTEMPT" >> "$WITNESS"
      echo "[JOB_OUT] COUNT = 42"
    outputs: [COUNT]
- name: ask
  type: pause
  pause: {timeout: 500ms, on_timeout: approve}
- name: take
  jobs:
  - name: take
    inputs: {COUNT: "${{ jobs.make.outputs.COUNT }}"}
    script: |
      echo "$HUBFLOW_RUN $HUBFLOW_JOB $HUBFLOW_ATTEMPT" >> "$WITNESS"
      echo "count is $COUNT"
"""


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, module_database: str, s3: S3Address, rabbitmq: RabbitMQ
) -> AsyncIterator[System]:
    broker, folder = await rabbitmq.new_vhost(), tmp_path_factory.mktemp("crashing")
    async with open_system(folder, module_database, s3, broker) as opened:
        await opened.apply(WORKFLOW % (folder / "witness"))
        receiver = {
            "url": "http://127.0.0.1:9/nobody",
            "types": ["run.finished"],
        }  # notifier has something to read
        await opened.api("PUT", "/api/v1/subscription", receiver)
        yield opened


@pytest.mark.parametrize(("point", "times"), [*((point, 1) for point in Point), *LATER])
async def test_t25_every_process_dies_at_this_point_and_every_run_ends_right(
    system: System, point: Point, times: int
) -> None:
    armed = {name for name in PROCESSES if passes(name, point)}
    for name in sorted(armed):
        system.kill(name)
        system.start(name, crash_at=f"{point}:{times}")
    await system.ready(dying=True)
    runs, alive = [], set(armed)
    deadline = asyncio.get_running_loop().time() + WITHIN
    while alive and asyncio.get_running_loop().time() < deadline:
        runs.append(await started_patiently(system, f"{point}-{times}-{len(runs)}", alive))
        alive -= await restarted(system, alive, seconds=3)
    assert not alive, f"they never came to {point} for the {times}. time"
    for run in runs:
        await ends_right(system, run)
    counts = Counter((system.folder / "witness").read_text().splitlines())
    assert set(counts.values()) == {1}, "each attempt's code runs once"
    for run in runs:
        assert counts[f"{run} make 1"] == counts[f"{run} take 1"] == 1


@pytest.mark.parametrize("point", [point for point in Point if not passes("notifier", point)])
async def test_t25_notifier_dies_at_this_point_while_it_gives_a_delivery_up(system: System, point: Point) -> None:
    run = await system.start_run("crashing")
    await ends_right(system, run)
    async with (
        open_database(system.environment["HUBFLOW_DATABASE_URL"], max_connections=2) as database,
        asyncio.timeout(WITHIN),
    ):
        while not (found := await deliveries_of(database, run)):
            await asyncio.sleep(0.05)
        [delivery] = found
        system.kill("notifier")
        await database.execute("UPDATE deliveries SET tries = $2 WHERE id = $1", delivery["id"], len(DELAYS))
        system.start("notifier", crash_at=point.value)
        while not await restarted(system, {"notifier"}, seconds=0.5):
            await its_time_has_come(database, delivery["id"])
        while (await deliveries_of(database, run))[0]["state"] != "failed":
            await its_time_has_come(database, delivery["id"])
            await asyncio.sleep(0.1)
        while not await database.fetchval(
            "SELECT bool_and(sent_at IS NOT NULL) FROM events WHERE type = 'delivery.failed'"
        ):
            await asyncio.sleep(0.1)
        told = await database.fetch("SELECT body FROM events WHERE type = 'delivery.failed'")
    ids = [msgpack.unpackb(row["body"])["delivery"] for row in told]
    assert ids.count(str(delivery["id"])) == 1, "that it was given up is told once"


async def deliveries_of(database: Database, run: str) -> list[Any]:
    return await database.fetch(
        "SELECT d.id, d.state FROM deliveries d JOIN events e ON e.id = d.event WHERE e.run = $1", uuid.UUID(run)
    )


async def its_time_has_come(database: Database, delivery: uuid.UUID) -> None:
    """What a delay, or the lease of a dead process, would take half a minute for."""
    await database.execute("UPDATE deliveries SET next_try_at = now() WHERE id = $1 AND state = 'waiting'", delivery)


async def started_patiently(system: System, key: str, alive: set[str]) -> str:
    """The id of a run, although who starts it may die of it: asked again with the same Idempotency-Key."""
    while True:
        try:
            status, answer = await system.ask(
                "POST", "/api/v1/workflows/crashing/runs", {}, headers={"Idempotency-Key": key}
            )
        except (aiohttp.ClientError, json.JSONDecodeError):
            alive -= await restarted(system, alive & {"front"}, seconds=0.2)
            continue
        if status < 500:
            assert status == 201, answer
            return str(answer["id"])


async def restarted(system: System, names: set[str], seconds: float) -> set[str]:
    """Those of the processes that have killed themselves within some seconds; they are started again, unarmed."""
    dead: set[str] = set()
    deadline = asyncio.get_running_loop().time() + seconds
    while names - dead and asyncio.get_running_loop().time() < deadline:
        for name in names - dead:
            code = system.exit_code(name)
            if code is not None:
                assert code == -signal.SIGKILL, f"{name} ended with {code}:\n{system.log(name)[-3000:]}"
                system.restart(name)
                dead.add(name)
        await asyncio.sleep(0.05)
    return dead


async def ends_right(system: System, run: str) -> None:
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                view = await system.wait(run, seconds=WITHIN)
                log = await system.log_of(run, "take")
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)  # a front that has just been started again
    assert view["state"] == "succeeded", view
    assert log == "count is 42\n"
    for job in ("make", "take"):
        attempts = (await system.api("GET", f"/api/v1/runs/{run}/jobs/{job}"))["attempts"]
        assert [each["state"] for each in attempts] == ["succeeded"]


def test_each_process_passes_some_points_and_each_point_is_passed() -> None:
    """The table above leaves out nothing by accident."""
    left_out = {(process, str(point)) for process in PROCESSES for point in Point if not passes(process, point)}
    assert left_out == {
        ("front", "before-ack"), ("front", "after-ack"), ("status_watcher", "before-ack"), ("status_watcher", "after-ack"),
        ("front", "after-write"), ("scheduler", "after-write"),
        *(("notifier", f"{when}-{what}") for when, what in
          (("before", "commit"), ("after", "commit"), ("after", "publish"), ("after", "mark"))),
    }  # fmt: skip


def test_a_crash_point_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    from shared.config import load
    from shared.errors import ConfigurationError
    from shared.settings import HostSettings

    environment = {
        "HUBFLOW_DATABASE_URL": "postgresql://h/d",
        "HUBFLOW_SECRET_KEY": "k",
        "HUBFLOW_CRASH_AT": "somewhere",
    }
    with pytest.raises(ConfigurationError, match="before-commit"):
        load(environment, HostSettings)
