"""Short storms in `make test`; `make chaos` and `make chaos-kubernetes` are the long ones. Seeds that have found a bug are kept
here; one that has just failed is taken again until it passes (`build/chaos-seeds`), also when `make test` tries once more."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
from pathlib import Path

import pytest

from tests.chaos.report import Result, document, table
from tests.chaos.run import Order, chosen, storm
from tests.servers import RABBITMQ, missing
from tests.servers.kubernetes import Kubernetes

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(bool(missing(str(RABBITMQ), "epmd")), reason=f"rabbitmq: {missing(str(RABBITMQ), 'epmd')}"),
]
SEEDS = {"random": secrets.randbelow(1_000_000)}
FAILED = Path(__file__).parents[2] / "build" / "chaos-seeds"
ON_PODS = "kill:executor,kill:status_watcher,kill:log_collector,kill:scheduler,api-server,cluster:cut,cluster:refuse"


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_t25_a_storm_leaves_everything_as_it_must_be(seed: int, tmp_path: Path) -> None:
    """Starts its own servers, because it kills them; in an event loop of its own."""
    faults = chosen("kill,end,database,broker,objects,cut,half-open,clock,receiver")
    result = kept_storm(Order(40, seed, faults, pace=3.0, at_once=10, decks=1), tmp_path)
    assert result.findings.looked["runs"] >= 40


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
@pytest.mark.parametrize(
    ("runtime", "faults", "runs", "at_once"),
    [
        # A watch that is half-open is taken for dead after 75 seconds.
        ("kubernetes", f"{ON_PODS},cluster:delay,cluster:half-open", 15, 6),
        ("simulated", ON_PODS, 60, 20),
    ],
    ids=["kubernetes", "simulated"],
)
def test_t25_a_storm_over_pods_leaves_everything_as_it_must_be(
    kubernetes: Kubernetes, runtime: str, faults: str, runs: int, at_once: int, seed: int, tmp_path: Path
) -> None:
    """On the cluster of the other tests, whose API server it kills and whose watches it cuts."""
    if kubernetes.own is None:
        pytest.skip("kills the API server, and pods must reach this machine")
    order = Order(runs, seed, chosen(faults), runtime, pace=2.0, at_once=at_once, decks=1)
    result = kept_storm(order, tmp_path, kubernetes)
    assert result.findings.looked["runs"] >= runs
    assert result.findings.looked["pods"] >= runs, "runs without pods"


def kept_storm(order: Order, folder: Path, cluster: Kubernetes | None = None) -> Result:
    """A storm that has struck with each fault, and after which everything was as it must be. Else its seed is kept."""
    failed = FAILED / order.runtime
    failed.parent.mkdir(parents=True, exist_ok=True)
    if failed.exists():
        order = dataclasses.replace(order, seed=int(failed.read_text()))
    failed.write_text(str(order.seed))
    result = asyncio.run(storm(order, print, folder / "logs", cluster))
    print(table([result]))
    (folder / "chaos.json").write_text(json.dumps(document([result]), indent=2))
    assert result.findings.good, f"seed {order.seed}: {result.findings.found}"
    assert result.faults.keys() - {"removed-by-hand"} == order.faults - result.impossible.keys()
    failed.unlink()
    return result
