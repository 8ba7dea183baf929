"""A short storm in `make test`; `make chaos` is the long one. A seed that has found a bug is kept here."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path

import pytest

from tests.chaos.report import document, table
from tests.chaos.run import Order, chosen, storm
from tests.servers import RABBITMQ, missing

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(bool(missing(str(RABBITMQ), "epmd")), reason=f"rabbitmq: {missing(str(RABBITMQ), 'epmd')}"),
    pytest.mark.xdist_group("rabbitmq"),
]
SEEDS = {"random": secrets.randbelow(1_000_000)}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_t25_a_storm_leaves_everything_as_it_must_be(seed: int, tmp_path: Path) -> None:
    """Starts its own servers, because it kills them; in an event loop of its own."""
    faults = chosen("kill,end,database,broker,objects,cut,half-open,clock,receiver")
    result = asyncio.run(storm(Order(40, seed, faults, pace=3.0, at_once=10), print, tmp_path / "logs"))
    print(table([result]))
    (tmp_path / "chaos.json").write_text(json.dumps(document([result]), indent=2))
    assert result.findings.good, f"seed {seed}: {result.findings.found}"
    assert result.findings.looked["runs"] >= 40
    assert sum(result.faults.values()) >= 5
