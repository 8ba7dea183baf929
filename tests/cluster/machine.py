"""A machine has one cluster, and one test session at a time uses it.

Bridge, addresses and ports are fixed, so two clusters cannot stand side by side; and tests kill the kubelet or restart the
API server, so two sessions would disturb each other. Both are said clearly instead of being found out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

RECORD = Path("/run/hubflow-cluster")
"""Holds the folder of the cluster that is up on this machine."""
_LOCK = Path("/run/hubflow-cluster.lock")
PATIENCE = 1200.0


class BusyError(Exception):
    """Somebody else uses this machine's cluster."""


@contextlib.contextmanager
def alone(patience: float = PATIENCE) -> Iterator[None]:
    """Hold the machine's cluster, whichever it is. Waits up to `patience` seconds and says so. Raises BusyError."""
    with _LOCK.open("a+") as lock:
        deadline = time.monotonic() + patience
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"{holder} uses this machine's test cluster: wait for it, end it, or give the tests another "
                        "cluster (HUBFLOW_TEST_KUBECONFIG)"
                    ) from None
                if not told:
                    print(f"cluster: waiting for {holder}, which uses it", file=sys.stderr, flush=True)
                    told = True
                time.sleep(0.5)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} ({' '.join(sys.argv)[:100]}, in {Path.cwd()})")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def folder_of_running() -> Path | None:
    """Folder of the cluster that is up, as far as is known."""
    try:
        folder = Path(RECORD.read_text().strip())
    except FileNotFoundError:
        return None
    return folder if (folder / "admin.kubeconfig").exists() else None
