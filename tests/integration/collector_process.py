"""A log collector in a process of its own, for tests that kill it: says `follows` once it has taken over a log."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from services.log_collector import store
from services.log_collector.config import LogCollectorSettings
from services.log_collector.handlers import TASKS
from services.log_collector.main import context_of
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.config import load
from shared.db.database import open_database
from shared.db.dead_letters import DatabaseDeadLetters
from shared.log import configure
from shared.objects import open_object_store
from shared.runtime.process import ProcessRuntime
from shared.service import Host
from shared.settings import HostSettings, ObjectsSettings, RuntimeSettings, process_name
from shared.vault import Vault


async def main() -> None:
    configure("info", json=True)
    settings, objects_settings, runtime_settings, own = load(
        os.environ, HostSettings, ObjectsSettings, RuntimeSettings, LogCollectorSettings
    )
    async with open_database(settings.database_url) as database, open_object_store(objects_settings) as objects:
        bus = MemoryBus(DatabaseDeadLetters(database))
        host = Host(process_name(), settings, database, bus, SystemClock(), Vault(settings.secret_key), "")
        host._objects = objects
        host._runtime = ProcessRuntime(Path(runtime_settings.process_root), Path(runtime_settings.wrapper))
        context = context_of(host, own)
        await store.renew(database, host.name, own.lease_seconds)
        tasks = [asyncio.create_task(task(context)) for task in TASKS.values()]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, tasks[0].cancel)
        while not context.following:
            await asyncio.sleep(0.01)
        print("follows", flush=True)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    asyncio.run(main())
