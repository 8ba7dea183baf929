"""What the process runtime keeps on disk, and the rules that make it safe against kill -9 of anybody at any time.

    <root>/containers/<name>/   one folder per container, complete from its first moment: prepared elsewhere, renamed in
             spec.json          identity and labels; whoever decides about the container holds a lock on this file
             alive              the wrapper's standard input; a lock on it, inherited at its birth, lasts as long as it
             job.<uid>.json     the job document (0600); the wrapper removes it before it starts the user's code
             pid                where the wrapper probably is; verified before use
             stop.json          somebody wants it stopped, and when it is to be killed
             exit               the wrapper's exit status, where its starter lived to see it
             log  work/  tmp/   the job's output; its HOME and working directory; its TMPDIR
             wrapper.log        what the wrapper itself has to say
    <root>/events/<name>.<uid>.{running,result.json,ended}   by the wrapper (`ended`: by us); one folder to watch
    <root>/shared/<name>/       directories shared by the jobs of one run
    <root>/removed/             being deleted; finished by whoever comes by

Exactly one process per name follows from three facts: folders appear by an exclusive rename; only the holder of the
lock on spec.json starts the wrapper, and only while the job document is there and nobody holds `alive`; the wrapper is
born holding `alive` and removes its document before the user's code. So "document gone" means it ran, "alive held" it
runs, and both are true from the kernel's point of view, with no window and no process ids that could be reused.

The locks are open-file-description locks: inherited by the child, released by the kernel with the last holder, and
testable without taking them. The wrapper hands its own children /dev/null as standard input, so they never hold one.

Everything here is synchronous and takes well under a millisecond, except what says otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared import open_files
from shared.runtime.protocol import ContainerSpec, Observation, Phase
from shared.runtime.results import finished, last_words, moment
from shared.states import Reason

COOKIE = "HUBFLOW_CONTAINER"
"""Environment variable that marks all processes of a container, however far they daemonize."""
TEMPORARY = "tmp"
_log = logging.getLogger(__name__)
_FLOCK = struct.Struct("@hhqqi4x")
_JOB = re.compile(r"(.+)/job\.([0-9a-f]{32})\.json")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


_FLAGS = struct.Struct("@l")
_GET_FLAGS, _SET_FLAGS, _TOP_FOLDER = 0x80086601, 0x40086602, 0x00020000
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL (linux/fs.h)."""
_PR_SET_TIMERSLACK = 29
_TIMER_SLACK = 50_000
_LAZY_TIMER_SLACK = 2_000_000
"""Nanoseconds: the kernel's default, and what a wrapper is born with."""
_prctl = ctypes.PyDLL(None).prctl
"""Without letting another thread run: it takes less time than to get the turn back."""


class LockTakenError(Exception):
    """Somebody else decides about this container right now."""


class Layout:
    """The folders below the root. The root is absolute and free of links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.containers = root / "containers"
        self.events = root / "events"
        self.shared = root / "shared"
        self.removed = root / "removed"

    def create(self) -> None:
        """Make the folders. Only their owner may look in: they hold secrets."""
        for folder in (self.containers, self.events, self.shared, self.removed):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _spread_over_the_disk(self.removed)

    def folder(self, name: str) -> Path:
        """Where the container of this name lives. Raises KeyError for what cannot be a container's name."""
        if not _NAME.fullmatch(name):
            raise KeyError(name)
        return self.containers / name

    def event(self, name: str, uid: str, kind: str) -> str:
        """A marker file in the one folder that watchers listen to."""
        return f"{self.events}/{name}.{uid}.{kind}"

    def names(self) -> list[str]:
        """All containers there are."""
        with os.scandir(self.containers) as entries:
            return [entry.name for entry in entries if _NAME.fullmatch(entry.name)]


class Container:
    """One container's folder, with its identity already read. Its paths are texts: they are made for every look."""

    __slots__ = ("cookie", "folder", "job", "labels", "layout", "name", "uid")

    def __init__(self, layout: Layout, name: str, uid: str, labels: Mapping[str, str]) -> None:
        self.layout = layout
        self.name = name
        self.uid = uid
        self.labels = labels
        self.folder = f"{layout.containers}/{name}"
        self.job = f"{self.folder}/job.{uid}.json"
        """The job document. Its name, in the wrapper's arguments, tells whose wrapper that is."""
        self.cookie = f"{self.folder}:{uid}"

    def event(self, kind: str) -> str:
        """Path of one of this container's markers."""
        return self.layout.event(self.name, self.uid, kind)

    @property
    def claimed(self) -> bool:
        """Has a wrapper taken the job document, and so gone past the point of no return?"""
        return not _exists(self.job)

    @property
    def alive(self) -> bool:
        """Does a wrapper live?"""
        try:
            descriptor = os.open(f"{self.folder}/alive", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        finally:
            os.close(descriptor)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def stop_request(self) -> float | None:
        """When the container is to be killed (seconds since the epoch), if somebody wants it stopped."""
        stop = _read_json(f"{self.folder}/stop.json")
        return None if stop is None else float(stop["kill_at"])

    def exit_status(self) -> int | None:
        """The wrapper's exit status (negative: signal), if its starter lived to see it."""
        seen = _read_json(f"{self.folder}/exit")
        return None if seen is None else int(seen["status"])


def _spread_over_the_disk(folder: Path) -> None:
    """Ask ext4 to put the folders made in here into block groups far from each other (`chattr +T`). Without a journal it looks,
    for each new file, through all that were deleted lately in its group: up to 0.4 ms a file, and a container has twelve. Other
    file systems refuse, and need no such thing."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            flags = _FLAGS.unpack(fcntl.ioctl(descriptor, _GET_FLAGS, _FLAGS.pack(0)))[0]
            fcntl.ioctl(descriptor, _SET_FLAGS, _FLAGS.pack(flags | _TOP_FOLDER))
    finally:
        os.close(descriptor)


def load(layout: Layout, name: str) -> Container | None:
    """The container of this name, or None. A folder that a power cut has left unreadable counts as none."""
    if not _NAME.fullmatch(name):
        return None
    spec = _read_json(f"{layout.containers}/{name}/spec.json")
    if spec is None:
        return None
    return Container(layout, name, spec["uid"], spec["labels"])


@contextmanager
def prepared(layout: Layout, spec: ContainerSpec, document: Mapping[str, Any], uid: str) -> Iterator[Container | None]:
    """Make the folder of a new container, whole or not at all, and hold the right to decide about it inside the block. None if
    the name is taken.

    The hidden name it grows under is swept by `sweep` if we are killed on the way.
    """
    growing = f"{layout.removed}/new.{uid}"
    for folder in (growing, f"{growing}/work", f"{growing}/{TEMPORARY}"):
        os.mkdir(folder, 0o700)  # noqa: PTH102 - see Container
    for empty in ("alive", "log"):
        os.close(_create(f"{growing}/{empty}"))
    identity = {"version": 1, "name": spec.name, "uid": uid, "labels": dict(spec.labels), "image": spec.image}
    with open(_create(f"{growing}/job.{uid}.json"), "w") as job:
        json.dump(document, job)
    with open(_create(f"{growing}/spec.json"), "w") as decider:
        json.dump(identity, decider)
        decider.flush()
        _lock(decider.fileno())
        try:
            os.rename(growing, f"{layout.containers}/{spec.name}")  # noqa: PTH104 - see Container
        except OSError:
            if not _exists(f"{layout.containers}/{spec.name}"):
                raise
            shutil.rmtree(growing)
            yield None
            return
        yield Container(layout, spec.name, uid, dict(spec.labels))


def _create(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _exists(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116 - see Container
    except OSError:
        return False
    return True


def new_uid() -> str:
    """An identity that no other container has ever had."""
    return uuid.uuid4().hex


@contextmanager
def deciding(container: Container, *, wait: bool = False) -> Iterator[None]:
    """Hold the right to start, stop or remove this container.

    Raises LockTakenError if somebody else holds it (with `wait`: blocks instead), FileNotFoundError if the container
    has gone, or is another one by now.
    """
    path = f"{container.folder}/spec.json"
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(descriptor, wait=wait)
        current = load(container.layout, container.name)
        if current is None or current.uid != container.uid:
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = False) -> None:
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError) as error:
        raise LockTakenError from error


def spawn(container: Container, wrapper: Path, environment: Mapping[str, str]) -> int | None:
    """Start the wrapper unless it has been started, or must not be. Returns its process id if we have started it.

    Only while `deciding`. Raises OSError if the wrapper cannot be executed.
    """
    folder = container.folder
    if container.claimed or container.stop_request() is not None or container.exit_status() is not None:
        return None
    alive = os.open(f"{folder}/alive", os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(alive)
    except LockTakenError:
        # Its wrapper lives but has not read its document yet.
        os.close(alive)
        return None
    output = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    words = os.open(f"{folder}/wrapper.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with _lazy_timers(), open_files.as_given():
            pid = os.posix_spawn(
                wrapper,
                [wrapper.name, "run", container.job],
                {**environment, COOKIE: container.cookie},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, alive, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, words, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[
                    signal.SIGPIPE,
                    signal.SIGXFSZ,
                    signal.SIGHUP,
                    signal.SIGINT,
                    signal.SIGTERM,
                    signal.SIGCHLD,
                ],
            )
    finally:
        for descriptor in (alive, output, words):
            os.close(descriptor)
    _write_json(f"{folder}/pid", {"pid": pid})
    return pid


@contextmanager
def _lazy_timers() -> Iterator[None]:
    """What is born meanwhile has imprecise timers. The scheduler of Go's runtime looks around every 20 µs when it begins, which
    is a fifth of the processor time of a short job; with these it looks every 2 ms. The wrapper gives its job precise ones."""
    _prctl(_PR_SET_TIMERSLACK, _LAZY_TIMER_SLACK, 0, 0, 0)
    try:
        yield
    finally:
        _prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK, 0, 0, 0)


def request_stop(container: Container, grace: float) -> None:
    """Note that the container is to end within `grace` seconds; an earlier request keeps the earlier deadline.

    Only while `deciding`: from then on nobody starts it.
    """
    deadline, earlier = time.time() + grace, container.stop_request()
    _write_json(f"{container.folder}/stop.json", {"kill_at": min(deadline, earlier or deadline)})


def note_exit(container: Container, status: int) -> None:
    """Keep the wrapper's exit status and wake the watchers; for its starter, who has just reaped it."""
    if _exists(container.folder):
        _write_json(f"{container.folder}/exit", {"status": status})
        wake(container)


def wake(container: Container) -> None:
    """Make all watchers and log followers look at this container again."""
    os.close(os.open(container.event("ended"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with Path(container.folder, "log").open("ab"):
        """Closing it after writing is what followers listen for."""


def observe(layout: Layout, name: str) -> Observation | None:
    """What is known about a container right now, or None if there is none of that name."""
    container = load(layout, name)
    if container is None:
        return None
    try:
        seen = _look(container)
    except FileNotFoundError:
        return None
    # Removed under our eyes: what is missing then says nothing about how it ended.
    there = seen.result is not None or _exists(f"{container.folder}/spec.json")
    return seen if there else None


def _look(container: Container) -> Observation:
    name = container.name
    # In this order: who has claimed and is not alive any more has written all it will ever write.
    claimed = container.claimed
    alive = container.alive
    result = _read_json(container.event("result.json"))
    if result is not None:
        return finished(name, container.uid, container.labels, result)
    if claimed and alive:
        return Observation(name, container.uid, Phase.RUNNING, container.labels, started_at=_started_at(container))
    if alive or not (claimed or _never_will(container)):
        return Observation(name, container.uid, Phase.PENDING, container.labels)
    return _without_result(container, claimed=claimed)


def _never_will(container: Container) -> bool:
    return container.stop_request() is not None or container.exit_status() is not None


def _without_result(container: Container, *, claimed: bool) -> Observation:
    status = container.exit_status()
    if container.stop_request() is not None:
        reason = Reason.CANCELLED
        message = "killed when its time to end itself was over" if claimed else "stopped before it had started"
    else:
        reason = Reason.WRAPPER_FAILED
        how = "its exit status is unknown" if status is None else f"it ended with {_status_text(status)}"
        words = last_words(Path(container.folder, "wrapper.log").read_bytes() if claimed else b"")
        message = f"the command wrapper left no result: {how}; was it killed, or is the disk full?{words}"
    return Observation(
        container.name,
        container.uid,
        Phase.FINISHED,
        container.labels,
        reason=reason,
        message=message,
        exit_code=None if status is None else (128 - status if status < 0 else status),
        # A job may kill its wrapper before that has said that it runs: who has the document may have begun.
        started_at=_started_at(container) or (_log_begun(container) if claimed else None),
    )


def _status_text(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _log_begun(container: Container) -> datetime:
    return datetime.fromtimestamp(Path(container.folder, "wrapper.log").stat().st_mtime, UTC)


def _started_at(container: Container) -> datetime | None:
    return moment((_read_json(container.event("running")) or {}).get("started_at"))


def signal_wrapper(container: Container, number: signal.Signals) -> bool:
    """Send a signal to the wrapper, if it lives. Looks at all processes if its starter died before noting its id."""
    noted = _read_json(f"{container.folder}/pid")
    candidates = [int(noted["pid"])] if noted else []
    return any(_signal_if_ours(pid, container, number) for pid in candidates) or any(
        _signal_if_ours(pid, container, number) for pid in marked(container.cookie) if _leads_session(pid)
    )


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _signal_if_ours(pid: int, container: Container, number: signal.Signals) -> bool:
    """With a handle taken first and the check second, a reused process id cannot be hit."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if _cookie(pid) != container.cookie:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def kill_processes(container: Container) -> None:
    """KILL everything the container has started, wrapper first, until nothing is left. Some milliseconds; blocks.

    Gives up after five seconds, when something hangs in the kernel.
    """
    give_up = time.monotonic() + 5
    signal_wrapper(container, signal.SIGKILL)
    while hit := [pid for pid in marked(container.cookie) if _signal_if_ours(pid, container, signal.SIGKILL)]:
        if time.monotonic() > give_up:
            _log.warning("processes do not die", extra={"container": container.name, "pids": hit})
            return
        # A process that is being killed is listed until it is gone; give it the processor.
        os.sched_yield()


def marked(cookie: str) -> list[int]:
    """Living processes that carry this mark."""
    return [pid for pid, found in all_marked() if found == cookie]


def all_marked() -> Iterator[tuple[int, str]]:
    """Process id and mark of every process of any container on this machine that we may look at. Some milliseconds."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a Path object per process is what makes it slow
        if entry.isdigit() and (found := _cookie(int(entry))):
            yield int(entry), found


def _cookie(pid: int) -> str:
    """The mark of a process; "" if it has none, or has ended."""
    try:
        # The wrapper hides its environment from other processes of its user, but not its arguments.
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if len(arguments) > 2 and (job := _JOB.fullmatch(os.fsdecode(arguments[2]))):
            return f"{job[1]}:{job[2]}"
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    for variable in environment.split(b"\0"):
        if variable.startswith(COOKIE.encode() + b"="):
            return os.fsdecode(variable[len(COOKIE) + 1 :])
    return ""


def kill_strays(layout: Layout) -> None:
    """KILL what finished or removed containers have left running. Looks at all processes: some milliseconds."""
    for pid, mark in all_marked():
        folder, _, uid = mark.rpartition(":")
        if Path(folder).parent != layout.containers:
            continue
        container = Container(layout, Path(folder).name, uid, {})
        current = load(layout, container.name)
        # A wrapper that has left its result may still be about to exit; whoever holds `alive` is let be.
        if current is None or current.uid != uid or (current.claimed and not current.alive):
            _signal_if_ours(pid, container, signal.SIGKILL)


def detach(container: Container) -> Path:
    """Take the container out of sight in one step. Returns where it is now; `discard` does the rest."""
    doomed = container.layout.removed / f"{container.name}.{container.uid}"
    Path(container.folder).rename(doomed)
    return doomed


def discard(layout: Layout, doomed: Path) -> None:
    """Delete what `detach` has put aside, markers first. Blocks as long as that takes."""
    result = layout.events / f"{doomed.name}.result.json"
    # A wrapper that was killed may have left files with names of its own; looking for those takes longer.
    odd = [] if result.exists() else layout.events.glob(f".{doomed.name}.*")
    for marker in (result, *(layout.events / f"{doomed.name}.{kind}" for kind in ("running", "ended")), *odd):
        marker.unlink(missing_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(layout: Layout, older_than: float = 60.0) -> None:
    """Delete what others were killed over: half-made and half-deleted folders not touched for a minute."""
    with os.scandir(layout.removed) as entries:
        doomed = [Path(entry.path) for entry in entries]
    for folder in doomed:
        try:
            age = time.time() - folder.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > older_than:
            discard(layout, folder)
    _sweep_markers(layout, older_than)


def _sweep_markers(layout: Layout, older_than: float) -> None:
    """Delete the markers of containers whose folder somebody has removed by hand."""
    with os.scandir(layout.events) as entries:
        markers = [(Path(entry.path), entry.name.lstrip(".").split(".")[:2]) for entry in entries]
    for marker, (name, *uid) in markers:
        try:
            if time.time() - marker.stat().st_mtime <= older_than:
                continue
        except FileNotFoundError:
            continue
        current = load(layout, name) if uid else None
        if current is None or [current.uid] != uid:
            marker.unlink(missing_ok=True)


def _read_json(path: str) -> dict[str, Any] | None:
    try:
        # What a job may write into, it may also have replaced by a link or a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        try:
            value = json.loads(file.read())
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _write_json(path: str, value: Mapping[str, Any]) -> None:
    """Whole or not at all, readable for the owner only."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
    with open(_create(temporary), "w") as file:
        json.dump(value, file)
    os.rename(temporary, path)  # noqa: PTH104 - see Container
