"""Parked messages of the in-process bus, in the table `dead_events`. RabbitMQ keeps its own in the queue `hubflow.dead`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from shared.bus.protocol import DeadMessage
from shared.db.database import Database


class DatabaseDeadLetters:
    """See `shared.bus.memory.DeadLetters`. An event may be parked once for each queue; its row id is derived from both."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def park(self, message: DeadMessage) -> None:
        await self._database.execute(
            "INSERT INTO dead_events (id, event, queue, topic, body, reason, tries) VALUES ($1, $2, $3, $4, $5, $6, $7) "
            "ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, tries = excluded.tries, parked_at = now()",
            uuid.uuid5(message.id, message.queue), message.id, message.queue, message.topic, message.body,
            message.reason, message.tries,
        )  # fmt: skip

    async def oldest(self, limit: int) -> list[DeadMessage]:
        rows = await self._database.fetch("SELECT * FROM dead_events ORDER BY parked_at LIMIT $1", limit)
        return [_message(row) for row in rows]

    async def count(self) -> int:
        count: int = await self._database.fetchval("SELECT count(*) FROM dead_events")
        return count

    async def take(self, ids: Sequence[uuid.UUID]) -> list[DeadMessage]:
        rows = await self._database.fetch("SELECT * FROM dead_events WHERE event = ANY ($1)", list(ids))
        return [_message(row) for row in rows]

    async def forget(self, message: DeadMessage) -> None:
        await self._database.execute(
            "DELETE FROM dead_events WHERE event = $1 AND queue = $2", message.id, message.queue
        )


def _message(row: Any) -> DeadMessage:
    return DeadMessage(row["event"], row["queue"], row["topic"], row["body"], row["reason"], row["tries"])
