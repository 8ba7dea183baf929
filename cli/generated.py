"""Documents that are made from the code: writing them, and asking whether they are what the code says."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(place: Path, text: str) -> int:
    """Write the file; with `--check` on the command line only tell, by the exit code 1, that it is out of date."""
    if "--check" in sys.argv[1:]:
        return 0 if place.exists() and place.read_text("utf-8") == text else 1
    place.write_text(text, "utf-8")
    return 0
