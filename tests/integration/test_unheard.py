"""A run whose event was lost, or parked, goes on all the same."""

from __future__ import annotations

import uuid

import pytest

from services.scheduler.handlers import on_message
from services.scheduler.unheard import send_again
from shared.bus.memory import MemoryBus
from shared.bus.protocol import Consumer
from shared.bus.topology import TOPICS
from shared.db.database import Database, open_database
from shared.db.dead_letters import DatabaseDeadLetters
from shared.db.outbox import Relay
from shared.events import Event, JobFinished, RunCancelRequested
from tests.integration.scheduling import Scheduling
from tests.integration.test_scheduler import ONE_JOB


async def lost(database: Database, event: Event) -> None:
    """It was recorded and sent, and nobody has got it."""
    async with database.transaction() as tx:
        tx.tell(event)
    await database.execute("UPDATE events SET sent_at = now() - interval '1 hour' WHERE id = $1", event.id)


def of(run: uuid.UUID, kind: str) -> Event:
    if kind == "cancel":
        return RunCancelRequested(tenant="acme", run=run, by="ann")
    return JobFinished(tenant="acme", run=run, stage="s", job="a", attempt=1, state="succeeded")


@pytest.mark.parametrize(("kind", "state"), [("finish", "succeeded"), ("cancel", "cancelling")])
async def test_an_event_that_was_lost_is_sent_again_as_the_same_and_only_then(
    database: str, kind: str, state: str
) -> None:
    async with open_database(database) as opened:
        scheduling = Scheduling(opened)
        await scheduling.tenant()
        workflow = await scheduling.workflow(ONE_JOB)
        stuck, over, fine = [await scheduling.start(workflow) for _ in range(3)]
        await scheduling.finish(over, "a")
        await opened.execute("UPDATE events SET sent_at = now() - interval '1 hour'")
        event = of(stuck, kind)
        await lost(opened, event)
        await lost(opened, of(over, kind))
        assert await send_again(opened, sent_before=7200) == 0
        assert await send_again(opened) == 1
        bus = MemoryBus(DatabaseDeadLetters(opened))
        await bus.consume(Consumer("scheduler", TOPICS["scheduler"], on_message(scheduling.context)))
        opened.relay = Relay(opened, bus)
        before = [each.id for each in await scheduling.told(stuck, type(event))]
        assert await opened.relay.sweep(age=0) == 1
        await opened.relay.flush()
        await bus.stop_consuming()
        assert await scheduling.state(stuck) == state
        assert await scheduling.state(fine) == "pending"
        assert [each.id for each in await scheduling.told(stuck, type(event))] == before == [event.id]
        await opened.execute("UPDATE events SET sent_at = now() - interval '1 hour' WHERE sent_at IS NOT NULL")
        assert await send_again(opened) == 0
