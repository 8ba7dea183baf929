"""Real servers for tests, each an async context manager over a folder of its own, on free ports, ended by pid.

Nothing outlives a test run that is killed hard: the kernel ends each server with the process that started it, and for
dockerd, whose containers detach themselves, a supervisor does (supervisor.py).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's program itself; the one on the PATH changes to the user rabbitmq and to the machine's own configuration."""


def missing(*programs: str) -> str:
    """Why these servers cannot be started here ("" if they can): for the reason of a skip."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    absent = [program for program in programs if shutil.which(program) is None and not Path(program).exists()]
    if absent:
        return f"not installed: {', '.join(absent)} (as root on Debian, `make test` installs them)"
    if "dockerd" in programs and os.geteuid() != 0:
        return "dockerd needs root"
    return ""
