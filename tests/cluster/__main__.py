"""`make cluster` and `make cluster-down`."""

from __future__ import annotations

import asyncio
import sys

from tests.cluster import FOLDER, programs
from tests.cluster.cluster import Cluster, unavailable
from tests.cluster.machine import BusyError, alone


def main(verb: str) -> int:
    if reason := unavailable():
        print(f"cluster: cannot be here: {reason}", file=sys.stderr)
        return 1
    if verb == "build":
        print(programs.build())
        return 0
    if verb == "up-unlocked":  # for tests, which hold the machine's cluster already
        asyncio.run(Cluster(FOLDER).up())
        return 0
    if verb == "status":
        print("up" if Cluster(FOLDER).is_up() else "down")
        return 0
    try:
        with alone(patience=0):
            if verb == "up":
                programs.build()
                asyncio.run(Cluster(FOLDER).up())
                print(f"cluster: up; KUBECONFIG={FOLDER / 'admin.kubeconfig'}")
            else:
                asyncio.run(Cluster(FOLDER).down())
                print("cluster: down")
    except BusyError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["up"], ["up-unlocked"], ["down"], ["build"], ["status"]):
        sys.exit("use: python -m tests.cluster up|down|build|status")
    sys.exit(main(sys.argv[1]))
