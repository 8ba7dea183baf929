"""A scheduler on a real database, without the services around it: tests play trigger, executor and status_watcher."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from services.scheduler.config import SchedulerSettings
from services.scheduler.handlers import Context, admit_waiting, on_events, on_time
from shared.db.database import Database
from shared.events import (
    Event,
    JobFinished,
    JobReady,
    JobSubmitted,
    RunCancelRequested,
    RunCreated,
    StageDecided,
    from_map,
)
from shared.runs import NUMBER, NewRun, create_run
from shared.workflow.parser import parse_workflow
from shared.workflow.plan import plan


class Hands:
    """A clock whose hands the test turns."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def turn(self, seconds: float) -> None:
        self.offset += timedelta(seconds=seconds)


class Scheduling:
    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        self.clock = Hands()
        self.context = Context(database, self.clock, SchedulerSettings(**settings))
        self._handled: set[uuid.UUID] = set()

    async def tenant(self, name: str = "acme", **quota: int) -> None:
        await self.database.execute(
            "INSERT INTO tenants (name, quota) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET quota = excluded.quota",
            name,
            quota,
        )

    async def tenants(self, *names: str, source: str) -> None:
        """Tenants without quotas, each with this workflow."""
        for name in names:
            await self.tenant(name)
            await self.workflow(source, name)

    async def workflow(self, source: str, tenant: str = "acme") -> str:
        model = parse_workflow(source, "test.yaml").model
        async with self.database.transaction() as tx:
            await tx.connection.execute(
                "INSERT INTO workflows (tenant, name, version, hook_secret) VALUES ($1, $2, 1, '')", tenant, model.name
            )
            await tx.connection.execute(
                "INSERT INTO workflow_versions (tenant, workflow, version, source, document, plan, digest, created_by) "
                "VALUES ($1, $2, 1, $3, $4, $5, '', 'test')",
                tenant, model.name, source, model.model_dump(mode="json"), plan(model).to_json(),
            )  # fmt: skip
        return model.name

    async def start(self, workflow: str, tenant: str = "acme", **values: Any) -> uuid.UUID:
        """Record a run and let the scheduler hear of it."""
        run = await self.record(workflow, tenant, **values)
        await self.hear(await self.told(run, RunCreated))
        return run

    async def number(self) -> int:
        """Of a run that is yet to be recorded."""
        number: int = await self.database.fetchval(f"SELECT {NUMBER}")
        return number

    async def record(self, workflow: str, tenant: str = "acme", number: int | None = None, **values: Any) -> uuid.UUID:
        """A run of which the scheduler has not heard yet."""
        async with self.database.transaction() as tx:
            run, _ = await create_run(
                tx,
                NewRun(
                    **{
                        "tenant": tenant,
                        "workflow": workflow,
                        "version": 1,
                        "trigger": {"type": "api"},
                        "inputs": {},
                        **values,
                    }
                ),
                number,
            )
        return run

    async def hear(self, events: list[Any]) -> None:
        if events:
            await on_events(events, self.context)

    async def told(self, run: uuid.UUID, kind: type[Event] | None = None) -> list[Any]:
        """What was told about a run so far, in order of seq."""
        import msgpack

        rows = await self.database.fetch("SELECT body, seq FROM events WHERE run = $1 ORDER BY seq", run)
        events = [dataclasses.replace(from_map(msgpack.unpackb(row["body"])), seq=row["seq"]) for row in rows]
        return [event for event in events if kind is None or isinstance(event, kind)]

    async def ready(self, run: uuid.UUID) -> list[tuple[str, int]]:
        return [(event.job, event.attempt) for event in await self.told(run, JobReady)]

    async def finish(self, run: uuid.UUID, job: str, state: str = "succeeded", **values: Any) -> None:
        event = [event for event in await self.told(run, JobReady) if event.job == job][-1]
        place = {"tenant": event.tenant, "run": run, "stage": event.stage, "job": job, "attempt": event.attempt}
        reason = "" if state == "succeeded" else "ExitCode"
        await self.hear([JobFinished(**place, state=state, **{"reason": reason, **values})])

    async def submit(self, run: uuid.UUID, job: str) -> None:
        """An executor has started the job's container."""
        event = [event for event in await self.told(run, JobReady) if event.job == job][-1]
        place = {"tenant": event.tenant, "run": run, "stage": event.stage, "job": job, "attempt": event.attempt}
        await self.hear([JobSubmitted(**place, container=f"{run}-{job}")])

    async def decide(self, run: uuid.UUID, stage: str, action: str) -> None:
        await self.hear([StageDecided(tenant="acme", run=run, stage=stage, action=action, by="ann")])

    async def cancel(self, run: uuid.UUID) -> None:
        await self.hear([RunCancelRequested(tenant="acme", run=run, by="ann")])

    async def forward_requests(self, run: uuid.UUID) -> None:
        """Deliver what the scheduler asked of itself (superseded runs)."""
        fresh = [event for event in await self.told(run, RunCancelRequested) if event.id not in self._handled]
        self._handled |= {event.id for event in fresh}
        await self.hear(fresh)

    async def time(self, seconds: float) -> None:
        self.clock.turn(seconds)
        while await on_time(self.context):
            pass

    async def admission(self) -> None:
        await admit_waiting(self.context, None)

    async def run(self, run: uuid.UUID) -> Any:
        return await self.database.fetchrow("SELECT * FROM runs WHERE id = $1", run)

    async def state(self, run: uuid.UUID) -> str:
        return str((await self.run(run))["state"])

    async def jobs(self, run: uuid.UUID) -> dict[str, str]:
        rows = await self.database.fetch("SELECT name, state FROM jobs WHERE run = $1 ORDER BY position", run)
        return {row["name"]: row["state"] for row in rows}
