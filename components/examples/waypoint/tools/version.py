"""Prints the version of this checkout: `1.4+12.g1a2b3c4` is release line 1.4, the 12th commit, whose id begins so."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = "1.4"


def git(*arguments: str) -> str:
    """What git answers."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    print(f"{LINE}+{git('rev-list', '--count', 'HEAD')}.g{git('rev-parse', '--short=7', 'HEAD')}")
