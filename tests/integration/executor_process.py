"""One handling of one job.ready in a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgpack

from services.executor.components import Components
from services.executor.config import ExecutorSettings
from services.executor.handlers import Context, on_job_ready
from shared.clock import SystemClock
from shared.config import load
from shared.db.database import open_database
from shared.events import JobReady, from_map
from shared.log import configure
from shared.objects import open_object_store
from shared.runtime.process import ProcessRuntime
from shared.settings import HostSettings, ObjectsSettings, RuntimeSettings
from shared.vault import Vault


async def main(event_id: str) -> None:
    configure("info", json=True)
    host, objects_settings, runtime_settings = load(os.environ, HostSettings, ObjectsSettings, RuntimeSettings)
    async with open_database(host.database_url) as database, open_object_store(objects_settings) as objects:
        runtime = ProcessRuntime(
            Path(runtime_settings.process_root), Path(runtime_settings.wrapper), search_path=os.environ["PATH"]
        )
        event = from_map(msgpack.unpackb(await database.fetchval("SELECT body FROM events WHERE id = $1", event_id)))
        assert isinstance(event, JobReady)
        context = Context.of(
            database=database, runtime=runtime, objects=objects, vault=Vault(host.secret_key), clock=SystemClock(),
            settings=ExecutorSettings(), components=Components(None, required=False),
            public_url=lambda: "https://hub.example.test",
        )  # fmt: skip
        print("begins", flush=True)
        await on_job_ready(event, context)
        await runtime.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
