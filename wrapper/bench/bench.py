"""Figures of CommandWrapper against what people would use instead: one machine, one run, medians of alternating rounds.

    python wrapper/bench/bench.py [--scale 1.0] [--rounds 3] [--work DIR]

Writes build/bench-wrapper.json and prints the table of wrapper/README.md. All transfers go to and from the same S3 (the
embedded one) by presigned addresses. The rivals are `tar | zstd -1 -T0` and `tar | gzip`, sent by `curl -T` (from a file: a
presigned PUT must know its length) and fetched by `curl | unpack | tar -x`. Ratios are times, ours over theirs, of rounds that
follow one another, each beginning with the other one: below 1 we are quicker. The floors are measured in the same run.
`--scale 0.1` makes the data a tenth, for a quick look.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
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
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from trees import MIB, digest, make_artifact, make_cache  # noqa: E402 -- the repository is not installed where this runs

from shared.embedded.s3 import embedded_s3  # noqa: E402
from shared.objects import ObjectsSettings, ObjectStore, open_object_store  # noqa: E402

WRAPPER = ROOT / "wrapper/bin/hubflow-wrapper-linux-amd64"
PART = 16 * MIB
PACKERS = {"zstd": ("zstd -q -1 -T0", "zstd -q -d"), "gzip": ("gzip -6", "gzip -d")}


def spawn_ms(command: list[str]) -> float:
    """Wall time of a command in milliseconds, started as cheaply as can be, its output thrown away."""
    null = os.open(os.devnull, os.O_WRONLY)
    begin = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
    _, status = os.waitpid(pid, 0)
    taken = (time.perf_counter() - begin) * 1000
    os.close(null)
    if status != 0:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return taken


def shell(script: str) -> float:
    """Wall time of a script in seconds."""
    begin = time.perf_counter()
    subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True)
    return time.perf_counter() - begin


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


def small_figures(jobs: Jobs, times: int = 100) -> dict[str, float]:
    """Start-up and added wall time, each round beside /bin/true."""
    bare, startup, job = [], [], []
    for _ in range(times):
        bare.append(spawn_ms(["/bin/true"]))
        startup.append(spawn_ms([str(WRAPPER), "version"]))
        job.append(spawn_ms([str(WRAPPER), "run", str(jobs.write())]))
    return {
        "startup_ms": statistics.median(startup),
        "added_wall_ms": statistics.median(job) - statistics.median(bare),
        "true_ms": statistics.median(bare),
        "rss_mib": jobs.idle_rss_mib(),
    }


def pass_through(jobs: Jobs, work: Path, size: int, rounds: int) -> dict[str, float]:
    """A file through the wrapper's pipe, and the same file through `cat | cat`."""
    data = work / "text"
    line = (
        b"2026-01-01T00:00:00Z INFO a usual line of a build's log, neither short nor long, with nothing special in it\n"
    )
    data.write_bytes(line * (size // len(line)))

    def ours() -> float:
        with (work / "out").open("wb") as out:
            return jobs.run(stdout=out, command=["cat", str(data)])[0]

    pairs = alternate({"ours": ours, "cat": lambda: shell(f"cat {data} | cat >{work}/out")}, rounds)
    (work / "out").unlink()
    data.unlink()
    return {
        "pass_through_vs_cat": ratio(pairs, "cat"),
        "pass_through_mb_s": size / statistics.median(pairs["ours"]) / 1e6,
        "cat_mb_s": size / statistics.median(pairs["cat"]) / 1e6,
    }


def alternate(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The times of each, round by round; what comes first in one round comes last in the next."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        for name in order:
            os.sync()  # what others left to be written is not ours to wait for
            times[name].append(runs[name]())
        order = order[1:] + order[:1]
    return times


def ratio(times: dict[str, list[float]], rival: str) -> float:
    """Median of the rounds' ratios, ours over theirs."""
    return statistics.median(a / b for a, b in zip(times["ours"], times[rival], strict=False))


class RoundTrips:
    """The folder `name` to the store and back, ours and theirs."""

    def __init__(self, jobs: Jobs, store: ObjectStore, loop: asyncio.AbstractEventLoop, work: Path, name: str) -> None:
        self.jobs, self.store, self.loop, self.work, self.name = jobs, store, loop, work, name
        self.back = work / "back"
        self.content = digest(work / name)
        self.peak = 0.0
        self.parts: dict[str, list[float]] = {}
        self.turn = 0

    def wait(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result()

    def note(self, part: str, seconds: float) -> float:
        self.parts.setdefault(part, []).append(seconds)
        return seconds

    def check(self) -> None:
        if digest(self.back / self.name) != self.content:
            raise SystemExit(f"{self.name} came back changed")
        shutil.rmtree(self.back)

    def ours(self) -> float:
        self.turn += 1
        key = f"bench-{self.name}/{self.turn}"
        upload = self.wait(self.store.create_upload(key, PART, 400, 3600)).document()
        common = {"kind": "artifact", "name": self.name, "required": True}
        save = {**common, "base": str(self.work), "paths": [self.name], "upload": upload}
        there, _, peak = self.jobs.run(save=[save])
        restore = {**common, "path": str(self.back), "url": self.wait(self.store.presign_get(key, 3600))}
        again, _, peak_back = self.jobs.run(restore=[restore])
        self.peak = max(self.peak, peak, peak_back)
        self.check()
        return self.note("save", there) + self.note("restore", again)

    def theirs(self, rival: str, part: str = "", times: int = 1) -> float:
        """`part` of the folder only, for `times` the time: for whoever takes minutes."""
        self.turn += 1
        key = f"bench-{self.name}/{self.turn}"
        put, get = self.wait(self.store.presign_put(key, 3600)), self.wait(self.store.presign_get(key, 3600))
        pack, unpack = PACKERS[rival]
        packed = self.work / "packed"
        what = f"$(cd {self.work} && echo {self.name}/{part})" if part else self.name
        there = shell(f"tar -C {self.work} -cf - {what} | {pack} >{packed} && curl -sf -T {packed} '{put}'")
        again = shell(f"mkdir {self.back} && curl -sf '{get}' | {unpack} | tar -C {self.back} -xf -")
        if part:
            shutil.rmtree(self.back)
        else:
            self.check()
        packed.unlink()
        return self.note(f"{rival}_save", there * times) + self.note(f"{rival}_restore", again * times)

    def floors(self) -> dict[str, float]:
        """Each step of the way alone, in seconds: nothing can be quicker than the slowest of them."""
        put, get = (
            self.wait(self.store.presign_put("bench/floor", 3600)),
            self.wait(self.store.presign_get("bench/floor", 3600)),
        )
        tar, packed = self.work / "floor.tar", self.work / "floor.zst"
        found = {"tar": shell(f"tar -C {self.work} -cf - {self.name} | cat >{tar}")}
        found["zstd"] = shell(f"zstd -q -1 -T0 {tar} -o {packed}")
        found["put"] = shell(f"curl -sf -T {packed} '{put}'")
        found["get"] = shell(f"curl -sf '{get}' | cat >/dev/null")
        found["unzstd"] = shell(f"zstd -q -d -c {packed} | cat >/dev/null")
        found["untar"] = shell(f"mkdir {self.back} && tar -C {self.back} -xf {tar}")
        found["packed_mb"] = packed.stat().st_size / 1e6
        shutil.rmtree(self.back)
        tar.unlink()
        packed.unlink()
        return {f"{self.name}_floor_{step}": value for step, value in found.items()}

    def figures(self, rounds: int) -> dict[str, float]:
        times = alternate({"ours": self.ours, "zstd": lambda: self.theirs("zstd")}, rounds)
        # Once, and for a quarter of the parts, is enough to see how far behind it is: a core does 30 MB/s.
        quarter = len(list((self.work / self.name).iterdir())) == 16
        times["gzip"] = [self.theirs("gzip", "part-00[0-3]", 4) if quarter else self.theirs("gzip")]
        found = {f"{self.name}_vs_tar_{rival}": ratio(times, rival) for rival in PACKERS}
        found |= {f"{self.name}_{part}_s": statistics.median(taken) for part, taken in self.parts.items()}
        return found | self.floors() | {f"{self.name}_peak_mib": self.peak}


async def measure(work: Path, scale: float, rounds: int) -> dict[str, float]:
    jobs = Jobs(work)
    figures: dict[str, float] = {"scale": scale, "rounds": rounds, "cores": os.cpu_count() or 1}
    figures["load"] = os.getloadavg()[0]
    figures["size_bytes"] = WRAPPER.stat().st_size
    figures |= small_figures(jobs)
    figures |= pass_through(jobs, work, int(512 * MIB * scale), 2 * rounds + 1)
    make_artifact(work / "artifact", int(1024 * MIB * scale))
    make_cache(work / "cache", int(70_000 * scale))
    loop = asyncio.get_running_loop()
    async with embedded_s3(work / "state", die_with_parent=True) as address:
        settings = ObjectsSettings(
            endpoint=address.endpoint,
            access_key=address.access_key,
            secret_key=address.secret_key,
            region=address.region,
            bucket="bench",
        )
        async with open_object_store(settings) as store:
            for name in ("artifact", "cache"):
                trips = await asyncio.to_thread(RoundTrips, jobs, store, loop, work, name)
                figures |= await asyncio.to_thread(trips.figures, rounds)
                await store.delete_prefix(f"bench-{name}/")
    return {key: round(value, 3) for key, value in figures.items()}


def table(figures: dict[str, float]) -> str:
    """What is read first, then where the time goes: one line a tree and direction, with the floors of the same run."""
    lines = ["| figure | value |", "|---|---|"]
    first = ("size_bytes", "startup_ms", "added_wall_ms", "true_ms", "rss_mib", "pass_through_vs_cat")
    lines += [f"| `{key}` | {figures[key]:.10g} |" for key in first]
    for name in ("artifact", "cache"):
        lines += [f"| `{name}_vs_tar_{rival}` | {figures[f'{name}_vs_tar_{rival}']:.10g} |" for rival in PACKERS]
    lines += [
        "",
        "| seconds | ours | `tar \\| zstd -1 -T0` | `tar \\| gzip` | floors: each step alone |",
        "|---|---|---|---|---|",
    ]
    for name in ("artifact", "cache"):
        for way, steps in (("save", ("tar", "zstd", "put")), ("restore", ("get", "unzstd", "untar"))):
            taken = [f"{figures[f'{name}_{kind}{way}_s']:.2f}" for kind in ("", "zstd_", "gzip_")]
            floors = ", ".join(f"{step} {figures[f'{name}_floor_{step}']:.2f}" for step in steps)
            lines.append(f"| {name}, {way} | {' | '.join(taken)} | {floors} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="scratch directory; needs about 6 GB for scale 1")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="hubflow-bench-") as work:
        figures = asyncio.run(measure(Path(work), options.scale, options.rounds))
    figures["took_s"] = round(time.monotonic() - begin)
    target = ROOT / "build/bench-wrapper.json"
    target.parent.mkdir(exist_ok=True)
    machine = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {platform.release()}",
    }
    target.write_text(json.dumps(figures | machine, indent=2) + "\n")
    print(table(figures))
    took = f"load {figures['load']:g} at the start; took {figures['took_s']} s"
    print(f"\n{figures['cores']:g} cores, {took}; all figures in {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
