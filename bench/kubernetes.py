"""What Hubflow adds to a pod, and how many workflows a minute a cluster takes: on a real node and on simulated ones.

    python -m bench.kubernetes [--rounds N] [--many 300,1000,5000] [--present 10000] [--output build/bench-kubernetes.json]

The floor is measured in the same run: a bare loop that creates pods with the very same containers, init container and all, and
watches them end, without Hubflow, database, logs or finalizers. A simulated node (KWOK) ends a pod at once, so that the API
server's pace is what is left. Everything else is real: RabbitMQ, PostgreSQL with fsync, S3, seven processes. Quote medians.

`pod_without_wrapper_ms` is the same pod with the job's container alone: the difference is what init container and copy cost.
`pod_image_volume_ms` and `job_image_volume_ms` have the wrapper mounted from its image, where the cluster can do that
(HUBFLOW_CLUSTER_CONTAINERD=2.2.9).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import re
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from bench.client import Client, migrated, workflow
from shared.embedded import embedded_postgres, embedded_s3
from shared.runtime import kubernetes_body as body
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import Api, ApiError
from shared.runtime.kubernetes_body import PodDefaults
from shared.runtime.kubernetes_watch import Pods
from shared.runtime.protocol import ContainerSpec
from tests.cluster import NODE_ADDRESS, nodes
from tests.cluster.images import job_images, wrapper_image
from tests.cluster.programs import CONTAINERD
from tests.e2e.system import System, open_system
from tests.servers.kubernetes import WRAPPER, Kubernetes, found_kubernetes
from tests.servers.rabbitmq import RabbitMQ, started_rabbitmq

SIMULATED = 20
NAMESPACE = "hubflow-bench"
INSTALLATION = "bench"
CREATORS = 32


Change = Callable[[dict[str, Any]], None]


def _same(spec: dict[str, Any]) -> None:
    """As Hubflow makes it."""


def _without_wrapper(spec: dict[str, Any]) -> None:
    """The job's container alone: no init container, no volumes."""
    [job] = spec["containers"]
    spec |= {"initContainers": [], "volumes": [], "containers": [job | {"command": ["true"], "volumeMounts": []}]}


def _with_image_volume(spec: dict[str, Any]) -> None:
    """The wrapper mounted from its image instead of copied by an init container."""
    [installer], [job] = spec["initContainers"], spec["containers"]
    mount = {"name": "wrapper", "mountPath": f"{body.FOLDER}/bin"}
    spec["initContainers"] = []
    spec["volumes"].append({"name": "wrapper", "image": {"reference": installer["image"]}})
    job["volumeMounts"].append(mount)


class Bare:
    """The floor: pods as Hubflow makes them, but for finalizer and Secret of their own, and nothing else."""

    def __init__(self, cluster: Kubernetes, *, simulated: bool, installation: str = "bench-floor") -> None:
        self._api = Api(Access(str(cluster.kubeconfig), calls_per_second=0))
        selector = nodes.SELECTOR if simulated else {}
        tolerations = (nodes.TOLERATION,) if simulated else ()
        image, wrapper = cluster.image("job:1"), cluster.image("wrapper:1")
        self._defaults = PodDefaults(
            installation, image, wrapper, service_account="default", node_selector=selector, tolerations=tolerations
        )
        self._pods = Pods(self._api, installation, NAMESPACE)

    async def prepare(self) -> None:
        """The namespace, its account, and the one job document that all of these pods share."""
        document = {"version": 1, "command": ["true"], "result_path": body.RESULT}
        encoded = base64.b64encode(json.dumps(document).encode()).decode()
        secret = {"metadata": {"name": "nothing"}, "data": {"job.json": encoded}}
        for path, content in (
            ("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}),
            (f"/api/v1/namespaces/{NAMESPACE}/secrets", secret),
        ):
            try:
                await self._api.call("POST", path, body=content)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
        for _ in range(100):
            try:
                await self._api.call("GET", account)
                break
            except ApiError:
                await asyncio.sleep(0.1)
        await self._pods.synced()

    async def run(self, count: int, *, one_by_one: bool = False, change: Change = _same) -> float:
        """Seconds until all have ended; they are deleted afterwards, which does not count. `change`: of each pod's spec."""
        names = [f"bare-{uuid.uuid4().hex[:12]}" for _ in range(count)]
        gate = asyncio.Semaphore(CREATORS)
        with self._pods.listen() as ear:
            begin = time.perf_counter()
            if one_by_one:
                for name in names:
                    await self._create(name, gate, change)
                    await _ended(ear, {name})
            else:
                await asyncio.gather(_ended(ear, set(names)), *(self._create(name, gate, change) for name in names))
            seconds = time.perf_counter() - begin
        await self.tidy()
        return seconds

    async def leave(self, count: int) -> None:
        """Make pods that stay, and wait until the API server shows them all."""
        gate = asyncio.Semaphore(CREATORS)
        await asyncio.gather(*(self._create(f"bare-{uuid.uuid4().hex[:12]}", gate) for _ in range(count)))
        await self._until(lambda there: there >= count)

    async def fewer(self, count: int) -> None:
        """Wait until there are fewer than so many."""
        await self._until(lambda there: there < count)

    async def tidy(self) -> None:
        """Delete all; returns when they are gone."""
        gate = asyncio.Semaphore(CREATORS)

        async def delete(name: str) -> None:
            async with gate:
                with contextlib.suppress(ApiError):  # gone already
                    await self._api.call(
                        "DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", query={"gracePeriodSeconds": "0"}
                    )

        # Each by itself: to delete thousands in one call takes the API server longer than a client waits.
        await asyncio.gather(*(delete(pod.name) for pod in self._pods.all()))
        await self._until(lambda there: there == 0)

    async def _until(self, enough: Callable[[int], bool]) -> None:
        with self._pods.listen() as ear:
            while not enough(len(self._pods.all())):
                await ear.hear()

    async def _create(self, name: str, gate: asyncio.Semaphore, change: Change = _same) -> None:
        spec = ContainerSpec(name, "", {"version": 1, "grace_s": 0}, {"tenant": "bench", "run": name})
        content = body.pod(spec, self._defaults, "nothing")
        del content["metadata"]["finalizers"]
        change(content["spec"])
        async with gate:
            await self._api.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", body=content)

    async def close(self) -> None:
        await self._pods.close()
        await self._api.close()


async def _ended(ear: Any, names: set[str]) -> None:
    while names:
        for name, states in (await ear.hear(1.0)).items():
            if any(pod is not None and "terminated" in pod.job for pod in states):
                names.discard(name)


@asynccontextmanager
async def hubflow(
    cluster: Kubernetes, folder: Path, dsn: str, broker: RabbitMQ, *, simulated: bool, image_volumes: bool = False
) -> AsyncIterator[tuple[System, Client]]:
    """The whole system in separate processes, its jobs on the real node or on the simulated ones."""
    folder.mkdir()
    place = {"kubernetes_node_selector": ",".join(f"{key}={value}" for key, value in nodes.SELECTOR.items()),
             "kubernetes_tolerations": json.dumps([nodes.TOLERATION])} if simulated else {}  # fmt: skip
    async with AsyncExitStack() as stack:
        s3 = await stack.enter_async_context(embedded_s3(folder, "0.0.0.0", die_with_parent=True))
        settings = {
            "runtime_kind": "kubernetes", "runtime_default_image": cluster.image("job:1"), "log_level": "warning",
            "kubernetes_kubeconfig": str(cluster.kubeconfig), "kubernetes_wrapper_image": cluster.image("wrapper:1"),
            "kubernetes_namespace": NAMESPACE, "runtime_installation": INSTALLATION,
            "kubernetes_calls_per_second": "0", "migrate": "true", **place,
            "kubernetes_image_volumes": str(image_volumes).lower(),
            "s3_job_endpoint": f"http://{NODE_ADDRESS}:{s3.endpoint.rpartition(':')[2]}",
        }  # fmt: skip
        system = await stack.enter_async_context(open_system(folder, dsn, s3, await broker.new_vhost(), **settings))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))
        )
        client = Client(system.url, system.token, "acme", http)
        for name, jobs, serial in (("one", 1, False), ("ten", 10, True)):
            await client.ask("PUT", f"/workflows/{name}", {"source": workflow(name, jobs, serial=serial)})
        yield system, client


async def clock(work: Any) -> float:
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin


async def real_node(cluster: Kubernetes, folder: Path, dsn: str, broker: RabbitMQ, rounds: int) -> dict[str, Any]:
    """One, ten one after another, and twenty at once: bare and as workflows, in turn."""
    bare = Bare(cluster, simulated=False)
    figures: dict[str, list[float]] = {}
    try:
        await bare.prepare()
        async with hubflow(cluster, folder / "real", dsn, broker, simulated=False) as (system, client):
            await client.run("one")
            await bare.run(1)
            await _given_back(dsn)
            writes, jobs = await _writes(system), 0
            for number in range(rounds):
                _add(figures, "pod_floor_ms", 1e3 * await bare.run(1))
                _add(figures, "job_ms", 1e3 * await clock(client.run("one")))
                _add(figures, "pod_without_wrapper_ms", 1e3 * await bare.run(1, change=_without_wrapper))
                if CONTAINERD:
                    _add(figures, "pod_image_volume_ms", 1e3 * await bare.run(1, change=_with_image_volume))
                jobs += 1
                if number < max(2, rounds // 3):
                    _add(figures, "ten_serial_floor_s", await bare.run(10, one_by_one=True))
                    _add(figures, "ten_serial_s", await clock(client.run("ten")))
                    _add(figures, "twenty_floor_s", await bare.run(20))
                    _add(figures, "twenty_s", await clock(asyncio.gather(*(client.run("one") for _ in range(20)))))
                    jobs += 30
            await _given_back(dsn)
            writes = (await _writes(system) - writes) / jobs
        if CONTAINERD:
            async with hubflow(cluster, folder / "volumes", dsn, broker, simulated=False, image_volumes=True) as (
                _,
                client,
            ):
                await client.run("one")
                for _ in range(rounds):
                    _add(figures, "job_image_volume_ms", 1e3 * await clock(client.run("one")))
                await _given_back(dsn)
    finally:
        await bare.close()
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    return {**medians, "job_overhead_ms": round(medians["job_ms"] - medians["pod_floor_ms"], 1),
            "api_writes_per_job": round(writes, 2)}  # fmt: skip


async def simulated_nodes(
    cluster: Kubernetes, folder: Path, dsn: str, broker: RabbitMQ, many: list[int]
) -> dict[str, Any]:
    """So many one-job workflows at once, and so many bare pods."""
    bare = Bare(cluster, simulated=True)
    figures: dict[str, Any] = {}
    try:
        await _make_nodes(cluster)
        await bare.prepare()
        await bare.run(50)
        async with hubflow(cluster, folder / "simulated", dsn, broker, simulated=True) as (system, client):
            await asyncio.gather(*(client.run("one") for _ in range(20)))
            for count in many:
                before = _cpu(cluster, system)
                floor = 60 * count / await bare.run(count)
                floor_cpu = _cpu_each(before, _cpu(cluster, system), count)
                before, transactions, calls = _cpu(cluster, system), await _transactions(dsn), await _calls(system)
                seconds = await clock(_run_many(client, count))
                figures[str(count)] = {
                    "floor_per_min": round(floor),
                    "workflows_per_min": round(60 * count / seconds),
                    "share_of_floor": round(60 * count / seconds / floor, 3),
                    "database_transactions_per_job": round((await _transactions(dsn) - transactions) / count, 1),
                    "cpu_ms_per_job": _cpu_each(before, _cpu(cluster, system), count),
                    # Their deletion included, which the floor does not wait for.
                    "cpu_ms_per_bare_pod": {name: floor_cpu[name] for name in _SERVERS if name in floor_cpu},
                    "memory_mib": _memory(system),
                }
                await _given_back(dsn)
                figures[str(count)]["api_calls_per_job"] = _difference(calls, await _calls(system), count)
    finally:
        await bare.close()
    last = figures[str(many[-1])]
    return {"simulated_floor_per_min": last["floor_per_min"], "simulated_workflows_per_min": last["workflows_per_min"],
            "simulated": figures}  # fmt: skip


async def with_pods(cluster: Kubernetes, folder: Path, dsn: str, broker: RabbitMQ, count: int) -> dict[str, Any]:
    """Memory with so many pods in the cluster: of an installation whose database knows none of them, which it finds out."""
    bare = Bare(cluster, simulated=True, installation=INSTALLATION)
    try:
        await _make_nodes(cluster)
        await bare.prepare()
        async with hubflow(cluster, folder / "empty", dsn, broker, simulated=True) as (system, _):
            without = _memory(system)
        await bare.leave(count)
        async with hubflow(cluster, folder / "present", dsn, broker, simulated=True) as (system, _):
            await bare.fewer(count)  # it has listed them all, known them for a minute, and begins to remove them
            return {"pods": count, "memory_mib": _memory(system), "memory_mib_without": without}
    finally:
        await bare.tidy()
        await bare.close()


async def _run_many(client: Client, count: int) -> None:
    gate = asyncio.Semaphore(200)  # waiting clients; a run that is over is seen by its own

    async def one() -> None:
        async with gate:
            await client.run("one")

    await asyncio.gather(*(one() for _ in range(count)))


async def _make_nodes(cluster: Kubernetes) -> None:
    api = Api(Access(str(cluster.kubeconfig)))
    try:
        for number in range(SIMULATED):
            try:
                await api.call("POST", "/api/v1/nodes", body=nodes.node(f"simulated-{number}"))
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
    finally:
        await api.close()


def _add(figures: dict[str, list[float]], name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


async def _given_back(dsn: str) -> None:
    """Wait until every pod has been removed."""
    connection = await asyncpg.connect(dsn)
    try:
        while await connection.fetchval("SELECT count(*) FROM attempt_outcomes WHERE removed_at IS NULL"):
            await asyncio.sleep(0.5)
    finally:
        await connection.close()


async def _transactions(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT sum(xact_commit) FROM pg_stat_database"))
    finally:
        await connection.close()


async def _writes(system: System) -> float:
    """Writes of pods and secrets by all processes so far."""
    return sum(
        amount
        for call, amount in (await _calls(system)).items()
        if call.split()[1] in {"POST", "PUT", "PATCH", "DELETE"} and call.split()[2] in {"pods", "secrets"}
    )


async def _calls(system: System) -> dict[str, float]:
    """Calls of the API server by all processes so far: "service verb kind status" -> how many."""
    calls: dict[str, float] = {}
    pattern = r'hubflow_kubernetes_calls_total\{kind="(.*?)",.*?status="(.*?)",.*?verb="(.*?)"\} (\S+)'
    async with aiohttp.ClientSession() as http:
        for name, processes in system._processes.items():
            for process in processes:
                async with http.get(f"http://127.0.0.1:{process.hubflow_port}/metrics") as answer:  # type: ignore[attr-defined]
                    for kind, status, verb, amount in re.findall(pattern, await answer.text()):
                        key = f"{name} {verb} {kind} {status}"
                        calls[key] = calls.get(key, 0.0) + float(amount)
    return calls


def _difference(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    each = {name: round((amount - before.get(name, 0.0)) / count, 2) for name, amount in after.items()}
    return {name: amount for name, amount in each.items() if amount >= 0.01}


_SERVERS = ("kube-apiserver", "etcd", "kube-scheduler", "kube-controller-manager", "kwok")


def _cpu_each(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    """Milliseconds of processor time for each of so many, by process."""
    return {name: round(1e3 * (used - before.get(name, 0.0)) / count, 2) for name, used in after.items()}


def _cpu(cluster: Kubernetes, system: System) -> dict[str, float]:
    """Seconds of processor time by process."""
    used = {name: sum(_seconds(process.pid) for process in processes) for name, processes in system._processes.items()}
    if cluster.own is not None:
        for name in _SERVERS:
            server = cluster.own._find(name)
            used[name] = _seconds(server.pid) if server else 0.0
    return used


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(system: System) -> dict[str, int]:
    found = {}
    for name in ("executor", "status_watcher", "log_collector", "scheduler"):
        status = Path(f"/proc/{system._processes[name][0].pid}/status").read_text()
        found[name] = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) // 1024  # type: ignore[union-attr]
    return found


async def main(rounds: int, many: list[int], present: int) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}"}
    with tempfile.TemporaryDirectory(prefix="hubflow-bench-") as name:
        folder = Path(name)
        async with (
            found_kubernetes() as cluster,
            embedded_postgres(folder, die_with_parent=True) as dsn,
            started_rabbitmq(folder / "rabbitmq") as broker,
        ):
            await cluster.load([wrapper_image(WRAPPER), *job_images()], folder)
            await migrated(dsn)
            if rounds:
                result |= await real_node(cluster, folder, dsn, broker, rounds)
            if many:
                result |= await simulated_nodes(cluster, folder, dsn, broker, many)
            if present:
                result["present"] = await with_pods(cluster, folder, dsn, broker, present)
    return result


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7, help="of the real node; 0 for none")
    arguments.add_argument(
        "--many", default="300,1000,5000", help="workflows at once on simulated nodes; empty for none"
    )
    arguments.add_argument(
        "--present", type=int, default=10_000, help="memory with so many pods in the cluster; 0: not measured"
    )
    arguments.add_argument("--output", type=Path, default=Path("build/bench-kubernetes.json"))
    given = arguments.parse_args()
    figures = asyncio.run(main(given.rounds, [int(each) for each in given.many.split(",") if each], given.present))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
