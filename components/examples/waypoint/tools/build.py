"""Builds one file that runs wherever Python does: `python3 tools/build.py --version 1.4+12.g1a2b3c4`.

Makes dist/waypoint-VERSION.pyz and dist/SHA256SUMS. The same source and version give the same bytes. With --outputs the
file's name and digest are appended there as KEY=VALUE lines, for the next job.
"""

import argparse
import hashlib
import io
import json
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHEBANG = b"#!/usr/bin/env python3\n"
STARTER = b"from waypoint.__main__ import main\n\nmain()\n"


def archive(version: str, commit: str) -> bytes:
    """The program as a zip with a first line for the shell."""
    stamp = json.dumps({"version": version, "commit": commit}).encode()
    files = {"__main__.py": STARTER, "waypoint/build.json": stamp}
    for path in sorted((ROOT / "src").rglob("*.py")):
        files[path.relative_to(ROOT / "src").as_posix()] = path.read_bytes()
    target = io.BytesIO()
    target.write(SHEBANG)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as program:
        for name, content in files.items():
            # A fixed date, or the digest would change with every checkout.
            program.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the program.")
    parser.add_argument("--version", required=True, help="stamped into the program")
    parser.add_argument("--commit", default="", help="stamped too")
    parser.add_argument("--outputs", type=Path, help="file for FILE= and DIGEST=")
    options = parser.parse_args()
    program = archive(options.version, options.commit)
    digest = hashlib.sha256(program).hexdigest()
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    target = dist / f"waypoint-{options.version}.pyz"
    target.write_bytes(program)
    target.chmod(0o755)
    (dist / "SHA256SUMS").write_text(f"{digest}  {target.name}\n")
    if options.outputs:
        with options.outputs.open("a") as outputs:
            outputs.write(f"FILE={target.name}\nDIGEST=sha256:{digest}\n")
    print(f"build: {target.relative_to(ROOT)}, {len(program)} bytes, sha256:{digest}")


if __name__ == "__main__":
    main()
