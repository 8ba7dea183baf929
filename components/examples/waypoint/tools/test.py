"""Runs the unit tests, but none twice for the same code: `python3 tools/test.py [--cache FOLDER]`.

A test module's fingerprint is made of the module, of everything of ours that it imports, and of Python's version.
Modules that have passed with the same fingerprint are not run again; the cache folder remembers them.
"""

import argparse
import ast
import hashlib
import io
import json
import sys
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
KEEP = 200
"""So many results are remembered, the newest."""


def imported(path: Path) -> set[Path]:
    """Files of our package that `path` imports, directly or through others."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                base = SOURCE.joinpath(*name.split("."))
                new = {each for each in (base.with_suffix(".py"), base / "__init__.py") if each.is_file()} - found
                found |= new
                waiting.extend(new)
    return found


def fingerprint(module: Path) -> str:
    """The same for the same code on the same Python, wherever the checkout is."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted({module, *imported(module)}):
        digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def run(module: Path) -> unittest.TestResult:
    """Run one module; what fails is printed."""
    suite = unittest.defaultTestLoader.loadTestsFromName(f"tests.{module.stem}")
    report = io.StringIO()
    result = unittest.TextTestRunner(stream=report, buffer=True).run(suite)
    if not result.wasSuccessful():
        print(report.getvalue(), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the unit tests that have not passed before.")
    parser.add_argument("--cache", type=Path, default=ROOT / ".test-cache", help="folder that remembers what passed")
    memory = parser.parse_args().cache / "passed.json"
    passed: dict[str, str] = json.loads(memory.read_text()) if memory.is_file() else {}
    sys.path[:0] = [str(SOURCE), str(ROOT)]
    ran, unchanged, failed = [], [], []
    for module in sorted((ROOT / "tests").glob("test_*.py")):
        key = fingerprint(module)
        if key in passed:
            print(f"{module.stem}: {passed[key]} (passed before, unchanged)", flush=True)
            unchanged.append(module.stem)
            continue
        started = time.perf_counter()
        result = run(module)
        ran.append(module.stem)
        if result.wasSuccessful():
            passed[key] = f"{result.testsRun} tests in {time.perf_counter() - started:.2f} s"
            print(f"{module.stem}: {passed[key]}", flush=True)
        else:
            failed.append(module.stem)
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps(dict(list(passed.items())[-KEEP:]), indent=1))
    print(f"tests: {len(ran)} modules run, {len(unchanged)} unchanged, failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
