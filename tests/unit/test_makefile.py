"""The Makefile's own help, which is what `make` alone does."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_help_only_prints() -> None:
    """An unescaped backtick in it once ran `make clean`."""
    shown = subprocess.run(["make", "-n", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make clean" in shown
    assert "`" not in shown.replace("\\`", "")
