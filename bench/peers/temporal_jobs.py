"""Temporal's workflow, in a module of its own: its sandbox imports the module of a workflow anew for each run."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow

QUEUE = "bench"
ACTIVITY = "job"


@workflow.defn
class Jobs:
    @workflow.run  # type: ignore[untyped-decorator]
    async def run(self, jobs: int, serial: bool) -> None:
        if serial:
            for _ in range(jobs):
                await self._job()
        else:
            await asyncio.gather(*(self._job() for _ in range(jobs)))

    async def _job(self) -> None:
        await workflow.execute_activity(ACTIVITY, start_to_close_timeout=timedelta(minutes=1))
