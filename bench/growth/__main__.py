"""How cost grows, and what a run and an idle process cost. Quick looks by smaller numbers; the defaults take half an hour.

    python -m bench.growth [--part NAME ...] [--queued 10000] [--past 1000000] [--tenants 1000] [--rounds N]

Writes build/bench-growth.json; parts that are not measured keep their figures of before there, each with its date.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.growth import history, idle, per_run, queue, replicas, tenants
from bench.growth.place import end_in_order

PARTS: dict[str, Callable[[Path, argparse.Namespace], Awaitable[dict[str, Any]]]] = {
    "replicas": lambda folder, given: replicas.measure(folder, given.replicas, given.rounds),
    "per_run": lambda folder, given: per_run.measure(folder, given.rounds),
    "idle": lambda folder, given: idle.measure(folder, given.rounds, given.idle_seconds),
    "tenants": lambda folder, given: tenants.measure(folder, given.tenants, given.max_jobs),
    "queue": lambda folder, given: queue.measure(folder, given.queued),
    "history": lambda folder, given: history.measure(folder, given.past, given.rounds * 2),
}


async def main(given: argparse.Namespace) -> dict[str, Any]:
    end_in_order()
    result: dict[str, Any] = json.loads(given.output.read_text()) if given.output.exists() else {}
    for name in given.part or PARTS:
        print(f"measuring {name}", file=sys.stderr)
        before = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="hubflow-growth-") as folder:
            figures = await PARTS[name](Path(folder), given)
        result[name] = {
            "date": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}",
            "load_before": round(before, 1),
            **figures,
        }
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(result, indent=2) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """A line a figure, with dots for what lies within another."""
    lines = []
    for part, figures in result.items():
        lines.append(f"{part} ({figures['date']}, {figures['machine']}, load {figures['load_before']})")
        lines += [
            f"  {name:<44}{value}" for name, value in _flat(figures) if name not in {"date", "machine", "load_before"}
        ]
    return "\n".join(lines)


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, f"{value:,.2f}" if isinstance(value, float) else str(value)))
    return found


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--part", action="append", choices=list(PARTS))
    arguments.add_argument("--replicas", type=int, action="append", help="may be repeated (default: 1, 2, 4)")
    arguments.add_argument("--queued", type=int, default=10_000, help="runs in the queue")
    arguments.add_argument("--past", type=int, default=1_000_000, help="finished runs in the database")
    arguments.add_argument("--tenants", type=int, default=1_000)
    arguments.add_argument(
        "--max-jobs", type=int, default=16, help="limit of the installation beside the tenants' quotas"
    )
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--idle-seconds", type=float, default=30.0)
    arguments.add_argument("--output", type=Path, default=Path("build/bench-growth.json"))
    given = arguments.parse_args()
    given.replicas = given.replicas or [1, 2, 4]
    print(table(asyncio.run(main(given))))
