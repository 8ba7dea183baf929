"""What came of a storm: the table for people and build/chaos.json."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.evidence import KINDS, Findings

SHOWN = 12
"""Findings of one kind that are printed; the file has all."""


@dataclass(frozen=True, slots=True)
class Result:
    """One storm over one place."""

    runtime: str
    seed: int
    runs: int
    faults: Counter[str]
    impossible: dict[str, str]
    findings: Findings
    recoveries: Sequence[float]
    seconds: float


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of them lie; None of nothing."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def document(results: Sequence[Result]) -> dict[str, Any]:
    """build/chaos.json: counts over all storms, and each storm by itself."""
    recoveries = [each for result in results for each in result.recoveries]
    faults: Counter[str] = sum((result.faults for result in results), Counter())
    return {
        "seed": results[0].seed,
        "runs": sum(result.runs for result in results),
        "faults": dict(sorted(faults.items())),
        **{kind: sum(len(result.findings.found[kind]) for result in results) for kind in KINDS},
        "recovery_s": {"p50": _rounded(quantile(recoveries, 0.5)), "max": _rounded(max(recoveries, default=None))},
        "storms": [
            {
                "runtime": result.runtime, "runs": result.runs, "seconds": round(result.seconds, 1),
                "faults": dict(sorted(result.faults.items())), "faults_not_possible_here": result.impossible,
                "looked_at": dict(result.findings.looked),
                "findings": {kind: found for kind, found in result.findings.found.items() if found},
                "recovery_s": {
                    "p50": _rounded(quantile(result.recoveries, 0.5)), "max": _rounded(max(result.recoveries, default=None)),
                },
            }
            for result in results
        ],
    }  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """For people."""
    return "\n".join(line for result in results for line in _lines(result))


def _lines(result: Result) -> list[str]:
    findings = result.findings
    lines = [
        "",
        (
            f"{result.runtime}, seed {result.seed}, {result.seconds:.0f} s: {result.runs} runs, "
            f"{sum(result.faults.values())} faults"
        ),
        "  faults    " + ", ".join(f"{name} {count}" for name, count in sorted(result.faults.items())),
        "  looked at " + ", ".join(f"{count} {what}" for what, count in findings.looked.items()),
        f"  recovery  p50 {_said(quantile(result.recoveries, 0.5))}, max {_said(max(result.recoveries, default=None))}",
        *(f"  !!! NOT DONE: {name}: {why}" for name, why in result.impossible.items()),
        *(f"  {kind:12s}{len(findings.found[kind]) or 'none'}" for kind in KINDS),
    ]
    for kind, found in findings.found.items():
        lines += [f"  {kind}: {sentence}" for sentence in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  {kind}: and {len(found) - SHOWN} more")
    return lines


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _said(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} s"
