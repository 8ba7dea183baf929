"""Starts a built program and uses it as a visitor would: `python3 tools/smoke.py dist --version V --digest sha256:...`.

Fails unless the file is the one that was built, tells its version, makes a link, follows it, and stops when told.
"""

import argparse
import hashlib
import http.client
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HELLO = re.compile(r"waypoint (\S+) listens on http://([\d.]+):(\d+)")
TARGET = "https://example.org/a/rather/long/address?with=parameters"


def ask(host: str, port: int, method: str, path: str, body: str | None = None) -> tuple[int, str, str]:
    """(status, Location, body) of one request."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Location", ""), answer.read().decode()
    finally:
        connection.close()


def expect(what: str, found: object, wanted: object) -> None:
    """Say what was looked at; end the program if it is not as it should be."""
    if found != wanted:
        sys.exit(f"smoke: {what}: {found!r} instead of {wanted!r}")
    print(f"smoke: {what}: {found}", flush=True)


def use(process: "subprocess.Popen[str]", version: str) -> str:
    """Talk to the running program. Returns the version that it tells."""
    line = process.stdout.readline() if process.stdout else ""
    hello = HELLO.match(line)
    if hello is None:
        sys.exit(f"smoke: the program did not start: {line!r}")
    host, port = hello[2], int(hello[3])
    served = str(json.loads(ask(host, port, "GET", "/version")[2])["version"])
    expect("version", served, version)
    status, _, answer = ask(host, port, "POST", "/links", f"url={TARGET}")
    expect("new link", status, 201)
    expect("redirect", ask(host, port, "GET", "/" + json.loads(answer)["code"])[:2], (302, TARGET))
    expect("health", ask(host, port, "GET", "/healthz")[0], 200)
    return served


def main() -> None:
    parser = argparse.ArgumentParser(description="Try out a built program.")
    parser.add_argument("folder", type=Path, help="where build.py has put it")
    parser.add_argument("--version", required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--outputs", type=Path, help="file for SERVED_VERSION=, what the program has told")
    options = parser.parse_args()
    program = options.folder / f"waypoint-{options.version}.pyz"
    expect("digest", f"sha256:{hashlib.sha256(program.read_bytes()).hexdigest()}", options.digest)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(program), "--port", "0", "--data", f"{folder}/links.jsonl"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                served = use(process, options.version)
            finally:
                process.terminate()
                # Read on to its end: closing the pipe early would trip it over its last words.
                process.communicate(timeout=10)
        expect("end", process.returncode, 0)
    if options.outputs:
        with options.outputs.open("a") as outputs:
            outputs.write(f"SERVED_VERSION={served}\n")


if __name__ == "__main__":
    main()
