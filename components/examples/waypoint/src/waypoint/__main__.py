"""`python -m waypoint`, or the built `waypoint.pyz`: serve links until somebody stops it."""

import argparse
import signal
from pathlib import Path
from typing import NoReturn

from waypoint import build_info
from waypoint.store import Store
from waypoint.web import Server


def main() -> None:
    version = build_info()["version"]
    parser = argparse.ArgumentParser(prog="waypoint", description="A small URL shortener.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes any free one (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("links.jsonl"), help="file of links (default: %(default)s)")
    parser.add_argument("--version", action="version", version=version)
    options = parser.parse_args()
    store = Store(options.data)
    server = Server((options.host, options.port), store)
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"waypoint {version} listens on {server.url}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("waypoint stops", flush=True)
    finally:
        server.server_close()
        store.close()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
