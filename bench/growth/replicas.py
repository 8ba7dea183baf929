"""200 runs at once, with 1, 2 and 4 processes of each service, on the same machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.client import timed
from bench.growth.place import opened

AT_ONCE = 200


async def measure(folder: Path, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    figures = {}
    for replicas in counts:
        place_folder = folder / f"replicas-{replicas}"
        place_folder.mkdir()
        async with opened(place_folder, replicas=replicas) as place:
            seconds = statistics.median(await timed(lambda place=place: place.many(AT_ONCE), rounds))  # type: ignore[misc]
        figures[str(replicas)] = {"T_runs_per_s": AT_ONCE / seconds, "load": os.getloadavg()[0]}
    return figures
