"""Temporal: its dev server on a file, and one worker of the Python SDK as it comes.

python -m bench.peers.temporal_peer worker|client
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from bench.peers.driver import JOBS, RUNS_AT_ONCE, nothing, serve
from bench.peers.temporal_jobs import ACTIVITY, QUEUE, Jobs

job = activity.defn(name=ACTIVITY)(nothing)


async def worker(client: Client) -> None:
    with ThreadPoolExecutor(100) as threads:  # as many as activities may run at once by default
        await Worker(client, task_queue=QUEUE, workflows=[Jobs], activities=[job], activity_executor=threads).run()


async def ask(client: Client) -> None:
    async def run(name: str) -> None:
        await client.execute_workflow(Jobs.run, args=list(JOBS[name]), id=uuid.uuid4().hex, task_queue=QUEUE)

    async def many() -> None:
        await asyncio.gather(*(run("L1") for _ in range(RUNS_AT_ONCE)))

    await serve({"L1": lambda: run("L1"), "L10": lambda: run("L10"), "F100": lambda: run("F100"), "T": many})


async def main(role: str) -> None:
    client = await Client.connect(os.environ["PEER_SERVER"])
    await {"worker": worker, "client": ask}[role](client)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
