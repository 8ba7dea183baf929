"""Celery: a prefork worker as it comes, tasks in a quorum queue of RabbitMQ, results in PostgreSQL.

    celery --app bench.peers.celery_peer worker      the worker
    python -m bench.peers.celery_peer                the client

Durable as Hubflow is: publishing is confirmed, messages are persistent, a task is acknowledged after it was done. The client
looks for results in the table by itself: `AsyncResult.get` would look twice a second, and over a new connection each time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import psycopg2
from celery import Celery, chain, group

from bench.peers.driver import JOBS, RUNS_AT_ONCE, nothing, serve

LOOK_EVERY = 0.005
PATIENCE_SECONDS = 100.0

app = Celery("bench", broker=os.environ["PEER_AMQP_URL"], backend="db+" + os.environ["PEER_DATABASE_URL"])
app.conf.update(
    task_default_queue_type="quorum",
    task_acks_late=True,
    broker_transport_options={"confirm_publish": True},
    worker_hijack_root_logger=False,
)
job = app.task(nothing, name="nothing")


class Results:
    """The table in which Celery stores results."""

    def __init__(self) -> None:
        assert app.AsyncResult("none").state == "PENDING"  # Celery makes its tables when it looks the first time
        self._connection = psycopg2.connect(os.environ["PEER_DATABASE_URL"].replace("+psycopg2", ""))
        self._connection.autocommit = True

    async def come(self, tasks: Sequence[str]) -> None:
        """Return once each of these tasks was done."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self._done(tasks) < len(tasks):
                await asyncio.sleep(LOOK_EVERY)

    def _done(self, tasks: Sequence[str]) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM celery_taskmeta WHERE task_id = ANY(%s) AND status = 'SUCCESS'", (list(tasks),)
            )
            return int(cursor.fetchone()[0])


async def main() -> None:
    results = Results()

    async def one() -> None:
        await results.come([job.delay().id])

    async def in_a_row() -> None:
        await results.come([chain(*(job.si() for _ in range(JOBS["L10"][0]))).apply_async().id])

    async def at_once() -> None:
        tasks = group(job.si() for _ in range(JOBS["F100"][0])).apply_async()
        await results.come([task.id for task in tasks.children])

    async def many() -> None:
        await results.come([job.delay().id for _ in range(RUNS_AT_ONCE)])

    await serve({"L1": one, "L10": in_a_row, "F100": at_once, "T": many})


if __name__ == "__main__":
    asyncio.run(main())
