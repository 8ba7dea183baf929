"""Figures of CommandWrapper against what people would use instead, on one machine, one run, medians.

    python wrapper/bench/bench.py [--scale 1.0] [--work DIR]

Writes build/bench-wrapper.json and prints the table of wrapper/README.md. All transfers go to and from the same S3 (the
embedded one) by presigned addresses; the rivals are `tar | zstd -1 -T0` and `tar | gzip`, sent and fetched by curl. Ratios
are times, ours over theirs: below 1 we are quicker. `--scale 0.1` makes the data a tenth, for a quick look.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.embedded.s3 import embedded_s3  # noqa: E402 -- the repository is not installed where this runs by hand
from shared.objects import ObjectsSettings, ObjectStore, open_object_store  # noqa: E402

WRAPPER = ROOT / "wrapper/bin/hubflow-wrapper-linux-amd64"
MIB = 1 << 20
PART = 16 * MIB


def median_ms(command: list[str], times: int) -> float:
    """Median wall time of a command in milliseconds, started as cheaply as can be."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        pid = os.posix_spawn(command[0], command, os.environ)
        os.waitpid(pid, 0)
        taken.append((time.perf_counter() - begin) * 1000)
    return statistics.median(taken)


def status_mib(pid: int, name: str) -> float:
    """A size out of /proc/PID/status, 0.0 when the process is over."""
    try:
        _, found, rest = Path(f"/proc/{pid}/status").read_text().partition(f"{name}:")
    except OSError:
        return 0.0
    return int(rest.split()[0]) / 1024 if found else 0.0


class Jobs:
    """Runs job documents through the wrapper, in one scratch directory."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.result = work / "result.json"

    def write(self, **fields: Any) -> Path:
        document = {
            "version": 1,
            "attempt": "bench",
            "command": ["/bin/true"],
            "result_path": str(self.result),
            "output_path": str(self.work / "outputs"),
            **fields,
        }
        path = self.work / "job.json"
        path.write_text(json.dumps(document))
        return path

    def run(self, stdout: Any = None, **fields: Any) -> tuple[float, dict[str, Any], float]:
        """(seconds, result document, peak resident MiB of the wrapper alone, 0.0 for jobs that move no files)."""
        path = self.write(**fields)
        begin = time.perf_counter()
        process = subprocess.Popen([str(WRAPPER), "run", str(path)], stdout=stdout)
        peak = 0.0
        if "save" in fields or "restore" in fields:
            while process.poll() is None:  # the kernel's own maximum counts what this program had before it forked
                peak = max(peak, status_mib(process.pid, "VmHWM"))
                time.sleep(0.02)
        process.wait()
        seconds = time.perf_counter() - begin
        result = json.loads(self.result.read_text())
        if process.returncode != 0:
            raise SystemExit(f"the wrapper failed: {result}")
        return seconds, result, peak

    def added_ms(self, times: int) -> float:
        """What a no-op job costs more than the bare command."""
        ours = [self.run()[0] * 1000 for _ in range(times)]
        bare = []
        for _ in range(times):
            begin = time.perf_counter()
            subprocess.Popen(["/bin/true"]).wait()
            bare.append((time.perf_counter() - begin) * 1000)
        return statistics.median(ours) - statistics.median(bare)

    def idle_rss_mib(self) -> float:
        """Resident memory while the child just waits."""
        running = self.work / "running"
        path = self.write(command=["sleep", "5"], running_path=str(running), grace_s=5)
        process = subprocess.Popen([str(WRAPPER), "run", str(path)])
        while not running.exists():
            time.sleep(0.01)
        time.sleep(0.2)
        resident = status_mib(process.pid, "VmRSS")
        process.terminate()
        process.wait()
        running.unlink()
        return resident


def best_of(rounds: int, run: Callable[[], float]) -> float:
    return statistics.median(run() for _ in range(rounds))


def pass_through(jobs: Jobs, work: Path, size: int) -> float:
    """Ratio: a file through the wrapper's pipe, over the same file through `cat | cat`."""
    data = work / "text"
    line = (
        b"2026-01-01T00:00:00Z INFO a usual line of a build's log, neither short nor long, with nothing special in it\n"
    )
    data.write_bytes(line * (size // len(line)))

    def ours() -> float:
        with (work / "out").open("wb") as out:
            return jobs.run(stdout=out, command=["cat", str(data)])[0]

    def theirs() -> float:
        begin = time.perf_counter()
        subprocess.run(f"cat {data} | cat >{work}/out", shell=True, check=True)
        return time.perf_counter() - begin

    ratio = best_of(5, ours) / best_of(5, theirs)
    (work / "out").unlink()
    data.unlink()
    return ratio


def make_artifact(where: Path, size: int) -> None:
    """Files such as builds make: programs and libraries of this machine, a few large ones."""
    where.mkdir()
    sources = sorted(p for p in Path("/usr/lib").rglob("*.so*") if p.is_file() and not p.is_symlink())
    sources += sorted(p for p in Path("/usr/bin").iterdir() if p.is_file() and not p.is_symlink())
    written, number = 0, 0
    while written < size:
        with (where / f"part-{number:03}").open("wb") as out:
            while out.tell() < 64 * MIB and written + out.tell() < size:
                source = sources[(number * 7919 + out.tell()) % len(sources)].read_bytes()
                out.write(source[: size - written - out.tell()])
            written += out.tell()
        number += 1


def make_cache(where: Path, files: int) -> None:
    """Small files in many directories, such as package managers leave: texts of Python's library, cut and varied."""
    where.mkdir()
    sources = [p.read_bytes() for p in sorted(Path(os.__file__).parent.rglob("*.py"))[:800]]
    for number in range(files):
        directory = where / f"pkg-{number // 200:04}/lib/v{number // 20 % 10}"
        directory.mkdir(parents=True, exist_ok=True)
        source = sources[number % len(sources)]
        at = number * 131 % max(1, len(source) - 4000)
        (directory / f"file{number}.py").write_bytes(source[at : at + 1000 + number * 37 % 7000])


def shell(script: str) -> float:
    begin = time.perf_counter()
    subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True)
    return time.perf_counter() - begin


def digest(where: Path) -> str:
    script = f"cd {where} && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    return subprocess.run(script, shell=True, check=True, capture_output=True, text=True).stdout


async def round_trip(jobs: Jobs, store: ObjectStore, work: Path, name: str, rounds: int) -> dict[str, float]:
    """Times in seconds for the folder `name`, there and back: ours, `tar | zstd -1 -T0`, `tar | gzip`."""
    times: dict[str, list[float]] = {"ours": [], "zstd": [], "gzip": []}
    peak = 0.0
    back = work / "back"
    before = await asyncio.to_thread(digest, work / name)
    for turn in range(rounds):
        key = f"bench-{name}/{turn}"
        upload = (await store.create_upload(key, PART, 400, 3600)).document()
        save = {
            "kind": "artifact",
            "name": name,
            "base": str(work),
            "paths": [name],
            "required": True,
            "upload": upload,
        }
        there, _, rss = await asyncio.to_thread(jobs.run, save=[save])
        restore = {
            "kind": "artifact",
            "name": name,
            "path": str(back),
            "url": await store.presign_get(key, 3600),
            "required": True,
        }
        again, _, rss_back = await asyncio.to_thread(jobs.run, restore=[restore])
        peak = max(peak, rss, rss_back)
        times["ours"].append(there + again)
        if turn == 0 and await asyncio.to_thread(digest, back / name) != before:
            raise SystemExit(f"{name} came back changed")
        shutil.rmtree(back)
        for rival, pack, unpack in (("zstd", "zstd -q -1 -T0", "zstd -q -d"), ("gzip", "gzip -6", "gzip -d")):
            if rival == "gzip" and turn > 0:
                continue  # once is enough to see that it is far behind
            put, get = await store.presign_put(f"{key}.{rival}", 3600), await store.presign_get(f"{key}.{rival}", 3600)
            send = f"tar -C {work} -cf - {name} | {pack} >{work}/packed && curl -sf -T {work}/packed '{put}'"
            fetch = f"mkdir {back} && curl -sf '{get}' | {unpack} | tar -C {back} -xf -"
            times[rival].append(await asyncio.to_thread(shell, send) + await asyncio.to_thread(shell, fetch))
            shutil.rmtree(back)
            (work / "packed").unlink()
    await store.delete_prefix(f"bench-{name}/")
    return {rival: statistics.median(taken) for rival, taken in times.items()} | {"peak_mib": peak}


async def s3_floor(store: ObjectStore, size: int) -> tuple[float, float]:
    """MB/s of the store itself, put and get by curl: nothing can be quicker."""
    with tempfile.NamedTemporaryFile() as data:
        data.write(hashlib.sha256(b"x").digest() * (size // 32))
        data.flush()
        put, get = await store.presign_put("bench/floor", 600), await store.presign_get("bench/floor", 600)
        up = await asyncio.to_thread(shell, f"curl -sf -T {data.name} '{put}'")
        down = await asyncio.to_thread(shell, f"curl -sf '{get}' >/dev/null")
    return size / up / 1e6, size / down / 1e6


async def measure(work: Path, scale: float, rounds: int) -> dict[str, float]:
    jobs = Jobs(work)
    figures: dict[str, float] = {"scale": scale, "cores": os.cpu_count() or 1, "load": round(os.getloadavg()[0], 1)}
    figures["size_bytes"] = WRAPPER.stat().st_size
    figures["startup_ms"] = startup()
    figures["added_wall_ms"] = jobs.added_ms(100)
    figures["rss_mib"] = jobs.idle_rss_mib()
    figures["pass_through_vs_cat"] = pass_through(jobs, work, int(512 * MIB * scale))
    make_artifact(work / "artifact", int(1024 * MIB * scale))
    make_cache(work / "cache", int(70_000 * scale))
    async with embedded_s3(work / "state", die_with_parent=True) as address:
        settings = ObjectsSettings(
            endpoint=address.endpoint,
            access_key=address.access_key,
            secret_key=address.secret_key,
            region=address.region,
            bucket="bench",
        )
        async with open_object_store(settings) as store:
            await store.ensure_bucket()
            up, down = await s3_floor(store, int(512 * MIB * scale))
            figures["s3_put_mb_s"], figures["s3_get_mb_s"] = up, down
            for name in ("artifact", "cache"):
                times = await round_trip(jobs, store, work, name, rounds)
                figures[f"{name}_seconds"] = times["ours"]
                figures[f"{name}_vs_tar_zstd"] = times["ours"] / times["zstd"]
                figures[f"{name}_vs_tar_gzip"] = times["ours"] / times["gzip"]
                figures[f"{name}_peak_mib"] = times["peak_mib"]
    return {key: round(value, 3) for key, value in figures.items()}


def startup() -> float:
    """Start-up alone: `version`, with its output thrown away."""
    null = os.open(os.devnull, os.O_WRONLY)
    saved = os.dup(1)
    try:
        os.dup2(null, 1)
        return median_ms([str(WRAPPER), "version"], 100)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="scratch directory; needs about 5 GB for scale 1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="hubflow-bench-") as work:
        figures = asyncio.run(measure(Path(work), options.scale, options.rounds))
    target = ROOT / "build/bench-wrapper.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")
    print("| figure | value |\n|---|---|")
    for key, value in figures.items():
        print(f"| `{key}` | {value:g} |")


if __name__ == "__main__":
    main()
