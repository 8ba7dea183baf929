"""Keeps dockerd and all below it: `python -I -S supervisor.py FOLDER[:FOLDER] NETWORK... -- PROGRAM ARGUMENT...` (root).

Containers detach themselves from dockerd and would go on for ever after a killed test run. This process adopts every
descendant (the kernel hands orphans to it), and reads standard input, whose other end only the test run holds:
a line `start` starts the program again after it ended; end of file means that the test run is gone, however it went:
then everything is killed, what is mounted below the folders is unmounted, the network bridges are removed, and so is the
second folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_MNT_DETACH = 2


def main() -> None:
    split = sys.argv.index("--")
    folders, *bridges = sys.argv[1:split]
    command = sys.argv[split + 1 :]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of our input ends us
    start(command)
    lines = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.2)
        reap()
        if not readable:
            continue
        chunk = os.read(0, 4096)
        if not chunk:
            break
        lines += chunk
        while b"\n" in lines:
            line, _, lines = lines.partition(b"\n")
            if line == b"start":
                start(command)
    clean_up(libc, folders.split(":"), bridges)


def start(command: list[str]) -> None:
    subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def clean_up(libc: ctypes.CDLL, folders: list[str], bridges: list[str]) -> None:
    deadline = time.monotonic() + 20
    while (found := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.02)
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted(
        (point for point in mounted if any(point.startswith(folder + "/") for folder in folders)), reverse=True
    ):
        libc.umount2(point.encode(), _MNT_DETACH)
    for bridge in bridges:
        subprocess.run(["ip", "link", "delete", bridge], stderr=subprocess.DEVNULL, check=False)
    for folder in folders[1:]:
        shutil.rmtree(folder, ignore_errors=True)


def descendants(root: int) -> list[int]:
    """Pids of all processes below `root`; orphans count, as we are the one who inherits them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    main()
