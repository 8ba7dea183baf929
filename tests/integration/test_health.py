"""/readyz of processes whose object storage or engine is away, or slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.console.main import SERVICE as CONSOLE
from services.executor.main import SERVICE as EXECUTOR
from services.log_collector.main import SERVICE as LOG_COLLECTOR
from services.trigger.main import SERVICE as TRIGGER
from shared import service
from shared.embedded import S3Address
from shared.service import Service
from tests.chaos.proxy import Proxy
from tests.integration.jobs import WRAPPER, until
from tests.integration.serving import Answer, Served, by_wire, serving


def environment(s3: S3Address, wire: Proxy, folder: Path) -> dict[str, str]:
    return {
        **by_wire(s3, wire),
        "HUBFLOW_RUNTIME_KIND": "process", "HUBFLOW_RUNTIME_PROCESS_ROOT": str(folder / "jobs"),
        "HUBFLOW_RUNTIME_WRAPPER": str(WRAPPER),
    }  # fmt: skip


async def ready(served: Served) -> Answer:
    return await served.operator.call("GET", "/readyz")


@pytest.mark.parametrize("which", [EXECUTOR, LOG_COLLECTOR], ids=lambda each: each.name)
async def test_who_lives_on_object_storage_is_not_ready_without_it(
    database: str, s3: S3Address, wire: Proxy, tmp_path: Path, which: Service
) -> None:
    async with serving(database, [which], environment(s3, wire, tmp_path)) as served:
        answer = await ready(served)
        assert (answer.status, answer.body["checks"]["objects"]) == (200, "ok")
        wire.refuse()
        answer = await ready(served)
        assert answer.status == 503
        assert "object storage does not answer" in answer.body["checks"]["objects"]
        assert {name for name, said in answer.body["checks"].items() if said == "ok"} == {
            "process", "database", "bus", "runtime",
        }  # fmt: skip
        wire.heal()

        async def again() -> bool:
            return (await ready(served)).status == 200

        await until(again)


async def test_object_storage_that_says_nothing_is_given_up_in_time(
    database: str, s3: S3Address, wire: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(database, [EXECUTOR], environment(s3, wire, tmp_path)) as served:
        assert (await ready(served)).status == 200
        monkeypatch.setattr(service, "PING_SECONDS", 0.5)
        wire.swallow()
        answer = await ready(served)
        assert (answer.status, answer.body["checks"]["objects"]) == (503, "no answer within 0.5 seconds")


@pytest.mark.parametrize("services", [[CONSOLE], [TRIGGER, CONSOLE, EXECUTOR]], ids=["console", "several"])
async def test_the_api_stays_ready_and_says_what_is_missing(
    database: str, s3: S3Address, wire: Proxy, tmp_path: Path, services: list[Service]
) -> None:
    async with serving(database, services, environment(s3, wire, tmp_path)) as served:
        wire.refuse()
        answer = await ready(served)
        assert answer.status == 200
        assert "object storage does not answer" in answer.body["checks"]["objects"]


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({"DOCKER_HOST": "unix:///nowhere/usual.sock"}, "/nowhere/usual.sock"),
        (
            {"DOCKER_HOST": "unix:///nowhere/usual.sock", "HUBFLOW_RUNTIME_DOCKER_HOST": "unix:///nowhere/own.sock"},
            "/nowhere/own.sock",
        ),
    ],
)
async def test_the_engine_is_where_the_setting_or_else_docker_host_says(
    database: str, s3: S3Address, wire: Proxy, tmp_path: Path, variables: dict[str, str], asked: str
) -> None:
    settings = {**environment(s3, wire, tmp_path), "HUBFLOW_RUNTIME_KIND": "docker", **variables}
    async with serving(database, [EXECUTOR], settings) as served:
        assert asked in (await ready(served)).body["checks"]["runtime"]
