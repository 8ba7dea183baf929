"""Another service in another operating system process, for the runtime contract; usually about to be killed.

runtime_other.py PLACE start NAME TIMES SCRIPT SHARED    waits for a line on stdin, starts NAME TIMES times at once
runtime_other.py PLACE stop NAME GRACE                   stops, and ends at once
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from tests.contract.runtime_places import Place, spec


async def main(place: Place, verb: str, name: str, *arguments: str) -> None:
    runtime = place.open()
    await runtime.list()
    if verb == "stop":
        await runtime.stop(name, float(arguments[0]))
        # Not even the event loop is closed in an orderly way.
        os._exit(0)
    times, script, shared = arguments
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    wanted = spec(name, script, shared=shared)
    await asyncio.gather(*(runtime.start(wanted) for _ in range(int(times))))
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Place(*json.loads(sys.argv[1])), *sys.argv[2:]))
