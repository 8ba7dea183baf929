"""Containers that are plain processes of this machine: for laptops and tests, where nothing may need root or Docker.

What it cannot do, it says once or refuses: images are not unpacked (the workflow's own scripts run on the host instead,
an image's command is refused), cpu and memory limits are not enforced, and a shared directory has no fixed path: jobs
find it in WORKFLOW_CACHE. Nothing isolates the jobs from the user who runs the services.

Executor, status watcher and log collector share nothing but the root folder (see `process_folder`), so any of them may
be killed and restarted at any time; jobs go on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import PermanentError, TemporaryError
from shared.log import get_logger
from shared.runtime import process_folder as folders
from shared.runtime.changes import Changes, Listener
from shared.runtime.process_folder import Container, Layout, LockTakenError
from shared.runtime.protocol import ContainerSpec, Observation, Phase
from shared.runtime.results import RESULT_LIMIT
from shared.runtime.telling import Telling
from shared.states import Reason

CHECK_EVERY = 1.0
"""Seconds between looks at what no file tells: wrappers killed with -9, and deadlines of stops."""
CHUNK = 1 << 18
SEARCH_EVERY = 15.0
"""Seconds between looks at every process of the machine, for what containers left running."""
SWEEP_EVERY = 60.0
T = TypeVar("T")
_log = get_logger("runtime")


class ProcessRuntime:
    """`shared.runtime.protocol.Runtime` on processes below `root`.

    `wrapper` is the hubflow-wrapper binary. `allow_host`: run commands that were meant for an image on this machine.
    `search_path`: the jobs' PATH; they get nothing else of the service's environment.
    """

    name = "process"

    def __init__(self, root: Path, wrapper: Path, *, allow_host: bool = False, search_path: str = os.defpath) -> None:
        self._layout = Layout(root.resolve())
        self._layout.create()
        self._wrapper = wrapper.resolve()
        self._allow_host = allow_host
        self._search_path = search_path
        self._changes = Changes()
        self._tasks: set[asyncio.Task[None]] = set()
        self._attended: dict[int, int] = {}
        self._said: set[str] = set()

    # starting

    async def start(self, spec: ContainerSpec) -> None:
        """See the protocol. Raises PermanentError(Unsupported) for an image's own command, unless `allow_host`."""
        self._refuse(spec)
        try:
            if await self._start_new(spec):
                return
            for _ in range(5):
                container = folders.load(self._layout, spec.name)
                if container is None:
                    if await self._start_new(spec):
                        return
                elif await self._spawn(container):
                    return
        except OSError as error:
            raise TemporaryError(f"cannot start {spec.name} below {self._layout.root}: {error}") from error
        raise TemporaryError(f"the folder {self._layout.folder(spec.name)} keeps changing or is damaged; remove it")

    async def _start_new(self, spec: ContainerSpec) -> bool:
        """False if there is a container of this name."""
        uid = folders.new_uid()
        with folders.prepared(self._layout, spec, self._document(spec, uid), uid) as container:
            if container is None:
                return False
            pid = self._execute(container)
        if pid is not None:
            self._attend(container, pid)
        return True

    def _refuse(self, spec: ContainerSpec) -> None:
        if spec.services:
            names = ", ".join(service.name for service in spec.services)
            raise PermanentError(
                f"plain processes have no services beside them ({names}); run this job on Docker or Kubernetes "
                "(HUBFLOW_RUNTIME_KIND), or start what it needs in its own script",
                reason=Reason.UNSUPPORTED,
            )
        try:
            self._layout.folder(spec.name)
        except KeyError:
            raise PermanentError(f"{spec.name!r} cannot be a container's name", reason=Reason.BAD_INPUT) from None
        if spec.options:
            names = ", ".join(sorted(spec.options))
            raise PermanentError(f"plain processes do not offer: {names}", reason=Reason.UNSUPPORTED)
        if spec.image and not (spec.script or self._allow_host):
            raise PermanentError(
                f"the command of image {spec.image} needs a runtime with images: use Docker or Kubernetes, "
                "or give the job a script",
                reason=Reason.UNSUPPORTED,
            )
        if spec.image:
            self._say_once("image ignored, the script runs on this machine", image=spec.image)
        if spec.resources.cpu_millis or spec.resources.memory_bytes:
            self._say_once("resource limits are not enforced on plain processes")

    def _say_once(self, message: str, **values: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _log.warning(message, **values)

    def _document(self, spec: ContainerSpec, uid: str) -> dict[str, Any]:
        folder = self._layout.folder(spec.name)
        environment = dict(spec.document.get("env") or {})
        if spec.shared_directory:
            shared = self._shared_directory(spec.shared_directory)
            shared.mkdir(exist_ok=True, mode=0o700)
            environment["WORKFLOW_CACHE"] = str(shared)
        return {
            **spec.document,
            "env": environment,
            "workdir": str(folder / "work" / (spec.document.get("workdir") or "")),
            "result_path": self._layout.event(spec.name, uid, "result.json"),
            "running_path": self._layout.event(spec.name, uid, "running"),
            "output_path": str(folder / "outputs"),
            "message_limit": RESULT_LIMIT,
        }

    async def _spawn(self, container: Container) -> bool:
        """False if the container has been removed meanwhile."""
        try:
            pid = await _decide(container, lambda: self._execute(container))
        except FileNotFoundError:
            return False
        if pid is not None:
            self._attend(container, pid)
        return True

    def _execute(self, container: Container) -> int | None:
        environment = {
            "PATH": self._search_path,
            "HOME": f"{container.folder}/work",
            "TMPDIR": f"{container.folder}/{folders.TEMPORARY}",
            "LANG": "C.UTF-8",
        }
        try:
            return folders.spawn(container, self._wrapper, environment)
        except (FileNotFoundError, PermissionError) as error:
            folders.note_exit(container, 126)
            raise PermanentError(
                f"cannot execute the command wrapper {self._wrapper}: {error}", reason=Reason.WRAPPER_FAILED
            ) from error

    def _attend(self, container: Container, pid: int) -> None:
        """Reap the wrapper when it ends. It is our child until then, so its process id cannot be reused."""
        handle = os.pidfd_open(pid)
        self._attended[handle] = pid
        asyncio.get_running_loop().add_reader(handle, self._reap, container, handle)

    def _reap(self, container: Container, handle: int) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        pid = self._attended.pop(handle)
        os.close(handle)
        _, status = os.waitpid(pid, 0)
        if not os.access(container.event("result.json"), os.F_OK):
            folders.note_exit(container, os.waitstatus_to_exitcode(status))

    # ending

    async def stop(self, name: str, grace: float) -> None:
        """See the protocol. If this process dies before the deadline, any watcher kills in its place."""
        container = folders.load(self._layout, name)
        if container is None:
            return
        try:
            wanted = await _decide(container, lambda: self._request_stop(container, grace))
        except FileNotFoundError:
            return
        if not wanted:
            return
        if not container.alive:
            folders.wake(container)
            return
        await asyncio.to_thread(folders.signal_wrapper, container, signal.SIGTERM)
        self._background(self._kill_later(container))

    def _request_stop(self, container: Container, grace: float) -> bool:
        seen = folders.observe(self._layout, container.name)
        if seen is None or seen.phase is Phase.FINISHED:
            return False
        folders.request_stop(container, grace)
        return True

    async def _kill_later(self, container: Container) -> None:
        deadline = container.stop_request() or 0.0
        await asyncio.sleep(max(0.0, deadline - time.time()))
        await asyncio.to_thread(_kill_overdue, container)

    async def remove(self, name: str) -> None:
        """See the protocol."""
        container = folders.load(self._layout, name)
        if container is None:
            return
        try:
            alive, doomed = await _decide(container, lambda: (container.alive, folders.detach(container)))
        except FileNotFoundError:
            return
        await asyncio.to_thread(_clear, container, doomed, alive)

    async def remove_shared_directory(self, name: str) -> None:
        """See the protocol."""
        shared = self._shared_directory(name)
        doomed = self._layout.removed / f"shared.{folders.new_uid()}"
        try:
            shared.rename(doomed)
        except FileNotFoundError:
            return
        await asyncio.to_thread(shutil.rmtree, doomed, ignore_errors=True)

    def _shared_directory(self, name: str) -> Path:
        if not name or "/" in name or name.startswith("."):
            raise PermanentError(f"{name!r} cannot be the name of a shared directory", reason=Reason.BAD_INPUT)
        return self._layout.shared / name

    # looking

    async def list(self) -> list[Observation]:
        """See the protocol."""
        return [seen for name in self._layout.names() if (seen := folders.observe(self._layout, name))]

    async def inspect(self, name: str) -> Observation | None:
        """See the protocol."""
        return folders.observe(self._layout, name)

    async def watch(self) -> AsyncIterator[Observation]:
        """See the protocol. A job's end is told within about a millisecond; a wrapper's murder within a second."""
        telling = Telling()
        try:
            with self._changes.listen([self._layout.events, self._layout.containers]) as listener:
                names: Iterable[str] = self._layout.names()
                patrolled = searched = time.monotonic()
                while True:
                    for name in names:
                        for news in telling.news(name, folders.observe(self._layout, name)):
                            if news.phase is Phase.FINISHED and news.result is None:
                                searched = 0.0  # its wrapper was killed, and may have left processes behind
                            yield news
                    names = await self._changed(listener, patrolled + CHECK_EVERY)
                    if time.monotonic() >= patrolled + CHECK_EVERY:
                        patrolled = time.monotonic()
                        await asyncio.to_thread(self._kill_overdue, telling.unfinished())
                        names = {*names, *telling.unfinished()}
                    if time.monotonic() >= searched + SEARCH_EVERY:
                        searched = time.monotonic()
                        await asyncio.to_thread(self._search)
                        names = {*names, *telling.unknown(self._layout.names())}
        except OSError as error:
            raise TemporaryError(f"cannot watch {self._layout.root}: {error}") from error

    async def _changed(self, listener: Listener, until: float) -> Iterable[str]:
        changed = await listener.wait(max(0.0, until - time.monotonic()))
        if listener.overflowed:
            listener.overflowed = False
            changed = [*changed, *self._layout.names()]
        # What begins with a dot is being written and gets its name in a moment.
        return dict.fromkeys(name.partition(".")[0] for name in changed if name and name[0] != ".")

    def _kill_overdue(self, unfinished: Iterable[str]) -> None:
        """Kill what has been stopped in vain; whoever asked for it may have died."""
        for name in unfinished:
            container = folders.load(self._layout, name)
            if container is not None:
                _kill_overdue(container)

    def _search(self) -> None:
        """Finish removals that nobody finishes, and kill what containers have left running."""
        folders.sweep(self._layout, SWEEP_EVERY)
        folders.kill_strays(self._layout)

    async def logs(self, name: str, offset: int = 0, *, follow: bool = False) -> AsyncIterator[bytes]:
        """See the protocol."""
        path = self._layout.folder(name) / "log"
        try:
            with path.open("rb") as log, self._changes.listen([path]) as listener:
                while True:
                    # Asked before reading: who has ended has written all.
                    over = not follow or self._over(name)
                    while chunk := os.pread(log.fileno(), CHUNK, offset):
                        offset += len(chunk)
                        yield chunk
                    if over:
                        return
                    await listener.wait(CHECK_EVERY)
        except FileNotFoundError:
            raise KeyError(name) from None

    def _over(self, name: str) -> bool:
        seen = folders.observe(self._layout, name)
        return seen is None or seen.phase is Phase.FINISHED

    # itself

    async def ping(self) -> None:
        """See the protocol."""
        if not os.access(self._layout.containers, os.W_OK | os.X_OK):
            raise TemporaryError(f"{self._layout.containers} is not there or not writable")

    async def close(self) -> None:
        """See the protocol."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for handle in self._attended:
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)
        self._attended.clear()
        await self._changes.close()

    def _background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _decide(container: Container, action: Callable[[], T]) -> T:
    """Do something that only one may do at a time. Quick, so right here; in a thread only if somebody else is at it."""
    try:
        with folders.deciding(container):
            return action()
    except LockTakenError:
        return await asyncio.to_thread(_decide_blocking, container, action)


def _decide_blocking(container: Container, action: Callable[[], T]) -> T:
    with folders.deciding(container, wait=True):
        return action()


def _kill_overdue(container: Container) -> None:
    deadline = container.stop_request()
    if deadline is not None and time.time() >= deadline and container.alive:
        folders.kill_processes(container)
        folders.wake(container)


def _clear(container: Container, doomed: Path, alive: bool) -> None:
    if alive:
        folders.kill_processes(container)
    folders.discard(container.layout, doomed)
