"""Where the runtime contract is tested: plain processes below a temporary folder, a real Docker engine, a real Kubernetes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.runtime import docker_body, kubernetes_body, process_folder
from shared.runtime.allowed import Allowed
from shared.runtime.docker import DockerRuntime
from shared.runtime.engine import Engine
from shared.runtime.kubernetes import KubernetesConfig, KubernetesRuntime
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import MERGE, Api, ApiError
from shared.runtime.kubernetes_body import PodDefaults
from shared.runtime.kubernetes_options import OFFER
from shared.runtime.kubernetes_place import Tenancy
from shared.runtime.process import ProcessRuntime
from shared.runtime.protocol import ContainerSpec, Resources, Runtime, container_name
from tests.cluster.programs import CONTAINERD
from tests.servers.kubernetes import SHARED_CLASS

ROOT = Path(__file__).parents[2]
IMAGE = "hubflow-test:1"
BARE_IMAGE = "hubflow-test-bare:1"
"""One program and nothing else, no /tmp, no /etc, and a user that owns nothing."""
TOOLS = "sh true sleep head cat echo printf id kill seq env tail dd ls mkdir touch wc tr sync stat"


@dataclass(frozen=True)
class Place:
    """One runtime to test, and what the test must do behind its back."""

    kind: str
    where: str
    """Root folder or engine."""
    wrapper: str
    installation: str
    key: bytes | None = b"of the job documents of the tests"[:32]
    """Docker: what job documents are encrypted with; None: they are copied in."""

    def open(self) -> Runtime:
        """A new runtime object, as another service would have it."""
        if self.kind == "process":
            return ProcessRuntime(Path(self.where), Path(self.wrapper))
        if self.kind == "kubernetes":
            return KubernetesRuntime(kubernetes_config(self.where, self.wrapper, self.installation))
        return DockerRuntime(
            self.where, Path(self.wrapper), self.installation, default_image=IMAGE, takeover_after=1.0, key=self.key
        )

    @contextlib.asynccontextmanager
    async def opened(self):
        runtime = self.open()
        try:
            yield runtime
        finally:
            await runtime.close()

    def other_process(self, verb: str, *arguments: object) -> subprocess.Popen[str]:
        """Do something in another operating system process (see `runtime_other.py`)."""
        place = json.dumps([self.kind, self.where, self.wrapper, self.installation])
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("runtime_other.py")), place, verb, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    async def half_start(self, runtime: Runtime, spec: ContainerSpec) -> None:
        """What a starter leaves behind that is killed between making the container and starting it."""
        if isinstance(runtime, ProcessRuntime):
            uid = process_folder.new_uid()
            with process_folder.prepared(runtime._layout, spec, runtime._document(spec, uid), uid) as container:
                assert container is not None
        elif isinstance(runtime, KubernetesRuntime):
            namespace = await runtime._namespaces.ready("t1")
            content = kubernetes_body.pod(spec, runtime._config.defaults, kubernetes_body.new_secret_name(spec.name))
            assert await runtime._create_pod(spec.name, namespace, content)
        else:
            assert await runtime._starter._create(spec, IMAGE)

    async def remove_by_hand(self, name: str) -> None:
        if self.kind == "process":
            shutil.rmtree(Path(self.where, "containers", name))
        elif self.kind == "kubernetes":
            # Not only deleted, which the finalizer would outlast.
            await self.patch(name, {"metadata": {"finalizers": None}})
            await self.cluster("DELETE", self.pod_path(name))
        else:
            await self.engine("DELETE", f"/containers/{name}", query={"force": "1"})

    async def kill_wrapper(self, name: str) -> None:
        """The wrapper is killed by somebody who is not Hubflow."""
        if self.kind == "process":
            os.kill(self._noted_pid(name), 9)
        elif self.kind == "kubernetes":
            os.kill(await self._task_pid(name), 9)
        else:
            await self.engine("POST", f"/containers/{name}/kill", query={"signal": "KILL"})

    def _noted_pid(self, name: str) -> int:
        return json.loads(Path(self.where, "containers", name, "pid").read_text())["pid"]

    def _paths(self, name: str) -> list[str]:
        return [str(path) for path in Path(self.where).rglob("*") if name in path.name]

    def files(self) -> list[bytes]:
        """Content of all files of the process runtime."""
        return [path.read_bytes() for path in Path(self.where).rglob("*") if path.is_file()]

    async def engine(self, method: str, path: str, **options):
        engine = Engine(self.where)
        try:
            return await engine.call(method, path, **options)
        finally:
            await engine.close()

    # Kubernetes only

    async def cluster(self, method: str, path: str, **options):
        api = Api(Access(self.where))
        try:
            return await api.call(method, path, **options)
        finally:
            await api.close()

    def pod_path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.installation}/pods/{name}"

    async def patch(self, name: str, content: dict) -> None:
        await self.cluster("PATCH", self.pod_path(name), body=content, content_type=MERGE)

    async def _task_pid(self, name: str) -> int:
        pod = await self.cluster("GET", self.pod_path(name))
        identity = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        socket = Path(self.where).parent / "containerd.sock"
        listed = subprocess.run(
            ["ctr", "-a", str(socket), "-n", "k8s.io", "task", "ls"], capture_output=True, text=True, check=True
        )
        return next(int(line.split()[1]) for line in listed.stdout.splitlines() if line.startswith(identity))

    async def _pod_traces(self, name: str) -> list[str]:
        """Its Secret, and the pod unless it is on its way out."""
        found = []
        for kind in ("pods", "secrets"):
            items = (await self.cluster("GET", f"/api/v1/namespaces/{self.installation}/{kind}"))["items"]
            found += [item["metadata"] for item in items if item["metadata"]["name"].startswith(name)]
        leaving = [each for each in found if each.get("deletionTimestamp") and not each.get("finalizers")]
        return [each["name"] for each in found if each not in leaving]

    async def until_gone(self, name: str) -> None:
        """Wait until nothing of a container is left."""
        async with asyncio.timeout(60):
            while await self.traces(name):
                await asyncio.sleep(0.1)

    async def traces(self, name: str) -> list[str]:
        """All that is still there of a container."""
        if self.kind == "process":
            return self._paths(name)
        if self.kind == "kubernetes":
            return await self._pod_traces(name)
        filters = json.dumps({"name": [name]})
        found = await self.engine("GET", "/containers/json", query={"all": "1", "filters": filters})
        return [entry["Id"] for entry in found]


def kubernetes_config(kubeconfig: str, images: str, installation: str, **more) -> KubernetesConfig:
    """A runtime with a namespace of its own, named after its installation."""
    return KubernetesConfig(
        access=Access(kubeconfig, **more.pop("access", {})),
        defaults=PodDefaults(
            installation,
            f"{images}/job:1",
            f"{images}/wrapper:1",
            **{"image_volume": bool(CONTAINERD), **more.pop("defaults", {})},
        ),
        tenancy=Tenancy(namespace=installation, **more.pop("tenancy", {})),
        allowed=Allowed.parse(more.pop("allow", ""), OFFER),
        shared_class=SHARED_CLASS,
        **more,
    )


async def clean_kubernetes(place: Place) -> None:
    """Remove the namespace and all pods that tests have left in it."""
    pods = f"/api/v1/namespaces/{place.installation}/pods"
    for found in (await place.cluster("GET", pods))["items"]:
        if found["metadata"].get("finalizers"):
            await place.patch(found["metadata"]["name"], {"metadata": {"finalizers": None}})
    with contextlib.suppress(ApiError):  # no test has started anything in it
        await place.cluster("DELETE", f"/api/v1/namespaces/{place.installation}")


def spec(name: str, script: str, *, image: str = "", shared: str = "", command: list[str] | None = None, **more):
    """A spec for a shell script. `more`: document fields, and `resources`, `options` and the like of the spec."""
    own = {key: more.pop(key) for key in ("resources", "options", "registry_auth", "services") if key in more}
    document = {
        "version": 1,
        "attempt": name,
        "command": command or ["sh", "-c", script],
        "workdir": "",
        "create_workdir": True,
        "env": {},
        "timeout_s": 0,
        "grace_s": 5,
        **more,
    }
    labels = {"tenant": "t1", "run": "r1", "job": "j1"}
    return ContainerSpec(
        name,
        image,
        document,
        labels,
        script=True,
        resources=own.pop("resources", Resources()),
        shared_directory=shared,
        **own,
    )


class Watcher:
    """A status watcher that remembers what it was told."""

    def __init__(self, runtime):
        self.told = []
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._run(runtime))

    async def _run(self, runtime):
        async for observation in runtime.watch():
            async with self._changed:
                self.told.append(observation)
                self._changed.notify_all()

    def of(self, name):
        return [observation for observation in self.told if observation.name == name]

    async def until(self, name, phase=None, timeout=40.0):
        """The first observation of this phase (None: of any)."""
        async with asyncio.timeout(timeout), self._changed:
            while True:
                for observation in self.of(name):
                    if phase in {None, observation.phase}:
                        return observation
                if self._task.done():
                    self._task.result()
                await self._changed.wait()

    async def close(self):
        self._task.cancel()
        await asyncio.wait([self._task])


async def read(runtime, name, offset=0, *, follow=False):
    return b"".join([chunk async for chunk in runtime.logs(name, offset, follow=follow)])


_numbers = itertools.count()


def new_name(job: str = "build") -> str:
    return container_name(uuid.uuid4().hex, job, next(_numbers))


def build_wrapper(folder: Path) -> Path:
    """The real wrapper: as built by `make`, or built here."""
    given = os.environ.get("HUBFLOW_TEST_WRAPPER")
    built = Path(given) if given else ROOT / "wrapper/bin/hubflow-wrapper-linux-amd64"
    if built.exists():
        return built
    if shutil.which("go") is None:
        pytest.skip("neither a built wrapper nor Go is here")
    target = folder / "hubflow-wrapper"
    subprocess.run(
        ["go", "build", "-o", str(target), "."],
        cwd=ROOT / "wrapper",
        env={**os.environ, "CGO_ENABLED": "0"},
        check=True,
    )
    return target


async def load_images(host: str) -> None:
    """Put the images of these tests into the engine: a small shell, and one with a single program and no root."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox (static) is not installed; the test images are made of it")
    full = _archive(busybox, TOOLS.split())
    bare = _archive(busybox, ["sh"])
    engine = Engine(host)
    try:
        await _import(
            engine, IMAGE, full, ["ENV PATH=/bin", "ENV FROM_IMAGE=yes", 'CMD ["/bin/echo","from the image"]']
        )
        await _import(engine, BARE_IMAGE, bare, ["ENV PATH=/bin", "USER 4711:4712"])
    finally:
        await engine.close()


async def _import(engine: Engine, image: str, archive: bytes, changes: list[str]) -> None:
    repository, _, tag = image.partition(":")
    query = [("fromSrc", "-"), ("repo", repository), ("tag", tag), *(("changes", change) for change in changes)]
    async with engine.request("POST", "/images/create", query=query, data=archive) as response:
        await response.read()


def _archive(busybox: str, names: list[str]) -> bytes:
    program = Path(busybox).read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, len(program)
        tar.addfile(entry, io.BytesIO(program))
        for name in names:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return buffer.getvalue()


async def clean(host: str, installation: str) -> None:
    """Remove what tests have left on an engine that others use, too."""
    engine = Engine(host)
    try:
        await remove_helpers(host)
        for label in (docker_body.INSTALLATION, docker_body.SERVICE_INSTALLATION):
            filters = json.dumps({"label": [f"{label}={installation}"]})
            for found in await engine.call("GET", "/containers/json", query={"all": "1", "filters": filters}):
                await engine.call("DELETE", f"/containers/{found['Id']}", query={"force": "1", "v": "1"})
        filters = json.dumps({"label": [f"{docker_body.INSTALLATION}={installation}"]})
        volumes = await engine.call("GET", "/volumes", query={"filters": filters})
        for found in volumes["Volumes"] or []:
            await engine.call("DELETE", f"/volumes/{found['Name']}")
    finally:
        await engine.close()


async def remove_helpers(host: str) -> None:
    """Remove what starters have left behind that were killed while they installed the wrapper."""
    engine = Engine(host)
    filters = json.dumps({"label": list(docker_body.HELPERS)})
    try:
        for found in await engine.call("GET", "/containers/json", query={"all": "1", "filters": filters}):
            await engine.call("DELETE", f"/containers/{found['Id']}", query={"force": "1"})
    finally:
        await engine.close()
