"""`python -m tests.chaos`: what `make chaos` runs."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from tests.chaos.report import Result, document, table
from tests.chaos.run import Order, chosen, default_runs, storm
from tests.chaos.storm import FAULTS
from tests.servers import RABBITMQ, missing
from tests.servers.kubernetes import missing as missing_kubernetes

PODS = ("pods", "kubernetes", "simulated")


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background has it ignored
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))  # unmount and tidy up, as with Ctrl-C
    if lacking := missing(str(RABBITMQ), "epmd"):
        print(f"chaos: {lacking}", file=sys.stderr)
        return 2
    parts = default_runs(given.runs, given.runtime)
    if any(runtime == "docker" for runtime, _ in parts) and (lacking := missing("dockerd", "containerd", "runc", "ip")):
        print(f"chaos: !!! no containers of an engine: {lacking}; all runs are plain processes", file=sys.stderr)
        parts = [("process", given.runs)]
    if given.runtime in PODS and (lacking := missing_kubernetes()):
        print(f"chaos: kubernetes: {lacking}", file=sys.stderr)
        return 2
    for library in ("aio_pika", "aiormq", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # that a broker is away is what we do to them
    results: list[Result] = []
    for runtime, runs in parts:
        at_once, pace = given.at_once, given.pace
        if runtime == "simulated":
            at_once, pace = (
                4 * at_once,
                2 * pace,
            )  # pods cost their nodes nothing; 2000 runs want time beside the recoveries
        order = Order(runs, given.seed, given.faults, runtime, pace, at_once)
        results.append(asyncio.run(storm(order, tell, given.output.parent / f"chaos-{runtime}")))
        print(table(results[-1:]), flush=True)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(document(results), indent=2) + "\n")
    good = all(result.findings.good for result in results)
    print(f"\nchaos: {'everything is as it must be' if good else 'NOT everything is as it must be'}; {given.output}")
    if not good:
        target = "chaos-kubernetes" if given.runtime in PODS else "chaos"
        print(f"chaos: the same storm again: make {target} RUNS={given.runs} SEED={given.seed} RUNTIME={given.runtime}")
    return 0 if good else 1


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _faults(words: str) -> frozenset[str]:
    try:
        return chosen(words)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error  # of a ValueError argparse keeps the words to itself


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument(
        "--faults", type=_faults, default="all", help=f"with commas, or their beginnings: {', '.join(FAULTS)}"
    )
    parser.add_argument("--runtime", choices=["both", "process", "docker", *PODS], default="both")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds between two faults, on average")
    parser.add_argument("--at-once", type=int, default=40, help="runs that are open at the same time")
    parser.add_argument("--output", type=Path, default=Path("build/chaos.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
