"""Runs and attempts in a real database, the scheduler played by the test; real runtime, wrapper, S3 and bus around them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.db.database import Database, open_database
from shared.db.dead_letters import DatabaseDeadLetters
from shared.db.outbox import Relay
from shared.embedded import S3Address
from shared.events import Event, JobReady, JobStopRequested, JobSubmitted, from_map
from shared.objects import open_object_store
from shared.runs import NewRun, create_run
from shared.runtime.process import ProcessRuntime
from shared.runtime.protocol import container_name
from shared.service import Host
from shared.settings import HostSettings, ObjectsSettings
from shared.vault import Vault, new_key
from shared.workflow.parser import parse_workflow
from shared.workflow.plan import plan

ROOT = Path(__file__).parents[2]
WRAPPER = ROOT / "wrapper" / "bin" / "hubflow-wrapper-linux-amd64"
TENANT = "acme"


def objects_settings(s3: S3Address, bucket: str = "") -> ObjectsSettings:
    return ObjectsSettings(
        endpoint=s3.endpoint, region=s3.region, bucket=bucket or f"t{secrets.token_hex(6)}",
        access_key=s3.access_key, secret_key=s3.secret_key,
    )  # fmt: skip


@dataclass
class House:
    """A host as `shared.service` makes it, and what the scheduler would do."""

    host: Host
    dsn: str
    key: str
    objects_settings: ObjectsSettings
    runtime_root: Path

    @property
    def database(self) -> Database:
        return self.host.database

    @property
    def environment(self) -> dict[str, str]:
        """For services in processes of their own."""
        return {
            **os.environ,
            "HUBFLOW_DATABASE_URL": self.dsn, "HUBFLOW_SECRET_KEY": self.key, "HUBFLOW_HTTP_PORT": "0",
            "HUBFLOW_S3_ENDPOINT": self.objects_settings.endpoint, "HUBFLOW_S3_BUCKET": self.objects_settings.bucket,
            "HUBFLOW_S3_ACCESS_KEY": self.objects_settings.access_key,
            "HUBFLOW_S3_SECRET_KEY": self.objects_settings.secret_key,
            "HUBFLOW_RUNTIME_KIND": "process", "HUBFLOW_RUNTIME_PROCESS_ROOT": str(self.runtime_root),
            "HUBFLOW_RUNTIME_WRAPPER": str(WRAPPER), "HUBFLOW_LOG_LEVEL": "info",
        }  # fmt: skip

    async def tenant(self, name: str = TENANT, **values: str) -> None:
        """A tenant with these secrets."""
        await self.database.execute("INSERT INTO tenants (name) VALUES ($1) ON CONFLICT DO NOTHING", name)
        for secret, value in values.items():
            await self.database.execute(
                "INSERT INTO secrets (tenant, name, value) VALUES ($1, $2, $3) "
                "ON CONFLICT (tenant, name) DO UPDATE SET value = excluded.value, updated_at = now()",
                name, secret, self.host.vault.encrypt(value),
            )  # fmt: skip

    async def run(self, source: str, *, inputs: dict[str, str] | None = None, trigger: Any = None) -> uuid.UUID:
        """A run of the workflow whose stages and jobs are there, all waiting."""
        await self.tenant()
        model = parse_workflow(source, "test.yaml").model
        async with self.database.transaction() as tx:
            await tx.connection.execute(
                "INSERT INTO workflows (tenant, name, version, hook_secret) VALUES ($1, $2, 1, '') ON CONFLICT DO NOTHING",
                TENANT, model.name,
            )  # fmt: skip
            await tx.connection.execute(
                "INSERT INTO workflow_versions (tenant, workflow, version, source, document, plan, digest, created_by) "
                "VALUES ($1, $2, 1, $3, $4, $5, md5($3), 'test') ON CONFLICT DO NOTHING",
                TENANT, model.name, source, model.to_json(), plan(model).to_json(),
            )  # fmt: skip
            run, _ = await create_run(tx, NewRun(TENANT, model.name, 1, trigger or {"type": "api"}, inputs or {}))
            for index, stage in enumerate(model.stages):
                await tx.connection.execute(
                    "INSERT INTO stages (run, position, name, state) VALUES ($1, $2, $3, 'waiting')",
                    run,
                    index,
                    stage.name,
                )
            for index, (stage, job) in enumerate(model.jobs()):
                await tx.connection.execute(
                    "INSERT INTO jobs (run, position, tenant, stage, name, state) VALUES ($1, $2, $3, $4, $5, 'waiting')",
                    run, index, TENANT, stage.name, job.name,
                )  # fmt: skip
        return run

    async def ready(self, run: uuid.UUID, job: str, attempt: int = 1) -> JobReady:
        """What the scheduler does when an attempt may start."""
        stage = await self.database.fetchval(
            "UPDATE jobs SET state = 'ready', attempt = $3 WHERE run = $1 AND name = $2 RETURNING stage",
            run,
            job,
            attempt,
        )
        event = JobReady(tenant=TENANT, run=run, stage=stage, job=job, attempt=attempt)
        async with self.database.transaction() as tx:
            await tx.connection.execute(
                "INSERT INTO attempts (container, run, job, attempt) VALUES ($1, $2, $3, $4)",
                container_name(str(run), job, attempt), run, job, attempt,
            )  # fmt: skip
            tx.tell(event)
        return event

    async def stop(self, ready: JobReady, grace: float = 2.0) -> JobStopRequested:
        """What the scheduler does when an attempt must end."""
        event = JobStopRequested(
            tenant=TENANT, run=ready.run, stage=ready.stage, job=ready.job, attempt=ready.attempt, grace=grace
        )
        async with self.database.transaction() as tx:
            await tx.connection.execute(
                "UPDATE attempts SET stop_requested_at = now() WHERE container = $1", container_of(ready)
            )
            tx.tell(event)
        return event

    async def told(self, run: uuid.UUID, kind: type[Event] = Event) -> list[Any]:
        """What was told about the run, in order."""
        rows = await self.database.fetch("SELECT body FROM events WHERE run = $1 ORDER BY seq", run)
        events = [from_map(msgpack.unpackb(row["body"])) for row in rows]
        return [event for event in events if isinstance(event, kind)]

    async def outcome(self, ready: JobReady) -> Any:
        return await self.database.fetchrow("SELECT * FROM attempt_outcomes WHERE container = $1", container_of(ready))

    async def finished(self, ready: JobReady, timeout: float = 20.0) -> Any:
        """The outcome, once it is told."""

        async def look() -> Any:
            row = await self.outcome(ready)
            return row if row and row["finished_at"] else None

        return await until(look, timeout)


def container_of(event: Any) -> str:
    return container_name(str(event.run), event.job, event.attempt)


def submitted(ready: JobReady) -> JobSubmitted:
    return JobSubmitted(
        tenant=ready.tenant, run=ready.run, stage=ready.stage, job=ready.job, attempt=ready.attempt,
        container=container_of(ready),
    )  # fmt: skip


async def until(look: Callable[[], Awaitable[Any]], timeout: float = 20.0) -> Any:
    """Wait for the world outside (a process, a row of another's): the first true answer of `look`."""
    async with asyncio.timeout(timeout):
        while not (answer := await look()):
            await asyncio.sleep(0.01)
    return answer


@contextlib.asynccontextmanager
async def opened_house(dsn: str, s3: S3Address, folder: Path) -> AsyncIterator[House]:
    key = new_key()
    async with open_database(dsn, max_connections=10) as database:
        settings = objects_settings(s3)
        async with open_object_store(settings) as objects:
            runtime = ProcessRuntime(folder / "rt", WRAPPER, search_path=os.environ["PATH"])
            bus = MemoryBus(DatabaseDeadLetters(database))
            database.relay = Relay(database, bus)
            host_settings = HostSettings(database_url=dsn, secret_key=key)
            host = Host("here", host_settings, database, bus, SystemClock(), Vault(key), "https://hub.example.test")
            host._objects, host._runtime = objects, runtime
            try:
                yield House(host, dsn, key, settings, folder / "rt")
            finally:
                for seen in await runtime.list():
                    await runtime.remove(seen.name)
                await bus.close()
                await runtime.close()


@contextlib.asynccontextmanager
async def tasks_of(*coroutines: Any) -> AsyncIterator[None]:
    """Run these until the block ends; one that fails fails the test."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
