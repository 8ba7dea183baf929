"""What executor, status_watcher and log_collector ask of the place where containers run.

One protocol, three implementations: `process` (plain processes), `docker` (any Docker-compatible engine) and
`kubernetes`. Every implementation passes `tests/contract/test_runtime.py`. Nothing here knows about runs or
tenants beyond the labels it hands back.

The unit is a *container*: one attempt of one job. Its name is derived from the attempt (see `container_name`), so that
a second start is a conflict and never a second container.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from shared.errors import HubflowError


class Phase(enum.StrEnum):
    """How far a container has come, as the runtime sees it."""

    PENDING = "pending"
    """Accepted; its first process has not started (image pull, no room in the cluster)."""
    RUNNING = "running"
    """The wrapper's process has started."""
    FINISHED = "finished"
    """Ended, with an exit code or a reason; its log and result document can still be read."""
    GONE = "gone"
    """Was known and is not there any more, and no outcome was seen (removed by hand, node lost)."""


NEVER_ROTATED = 1 << 20
"""Bytes of a log up to which nobody rotates it. (kubelet does at 10 MiB, unless told otherwise.)"""


class IncompleteLogError(HubflowError):
    """All of a log has been given that can be had, and its job has printed more."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits of one container. Zero means: no limit of ours."""

    cpu_millis: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A container beside an attempt's: it shares its network, has started before it and goes with it.

    Services start one after the other; without `port` and `check` one counts as ready as soon as it has started. One that
    ends before it is ready, or is not ready in time, fails the attempt with the reason StartFailed.
    """

    name: str
    image: str
    command: tuple[str, ...] = ()
    """In place of the image's own ENTRYPOINT and CMD; empty: these."""
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    """Ready when it takes connections there. It must listen on all addresses."""
    check: tuple[str, ...] = ()
    """Ready when this command ends with 0 inside it."""
    ready_seconds: float = 60.0
    resources: Resources = field(default_factory=Resources)
    registry_auth: Mapping[str, str] | None = None
    ask_registry: bool = False
    """See ContainerSpec."""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that a runtime needs to start one attempt.

    `document` is the wrapper's job document (see wrapper/README.md), complete but for what only the runtime knows. The
    runtime fills in `result_path`, `running_path`, `output_path` and `message_limit`, adds WORKFLOW_CACHE to `env`
    where there is a shared directory, and hands the document to the wrapper as a file, never by environment or
    arguments.
    """

    name: str
    image: str
    """Image reference, or "" for a script that runs wherever the runtime puts it."""
    document: Mapping[str, Any]
    """An empty `command` means the image's own; runtimes that hold the image (docker) look it up, others refuse."""
    labels: Mapping[str, str]
    """tenant, run, stage, job and attempt; returned with each observation."""
    script: bool = False
    """The command is the workflow's own script and not the image's: a runtime without images may run it as it is."""
    resources: Resources = field(default_factory=Resources)
    registry_auth: Mapping[str, str] | None = None
    """{"username": ..., "password": ...} for pulling, or None."""
    ask_registry: bool = False
    """The image is not for everybody: a node that has it asks the registry all the same, with the accounts that it has."""
    shared_directory: str = ""
    """A name; containers with the same name share one directory at /workflow-cache and /workflow_cache. "" for none."""
    services: tuple[ServiceSpec, ...] = ()
    """Runtimes that cannot have them refuse the spec (Unsupported)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What only some runtimes offer (runtimeClass, nodeSelector, ...). Unknown ones are refused by name."""
    again: bool = False
    """It may have been started before: a runtime that remembers one of this name which has started and is gone tells it as
    ContainerGone, and starts none."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a runtime says about one container at one moment. Level, not edge: any number may be missed or repeated."""

    name: str
    uid: str
    """Identity of this very container: a later one of the same name has another uid."""
    phase: Phase
    labels: Mapping[str, str]
    reason: str = ""
    """A `shared.states.Reason` value where the runtime knows better than the exit code (OOMKilled, ImagePull, ...)."""
    message: str = ""
    """A sentence for people: what happened, and what to try."""
    exit_code: int | None = None
    """The child's, from the result document; without one the container's own. None where nobody knows."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: Mapping[str, Any] | None = None
    """The wrapper's result document, when phase is FINISHED and it left one."""
    log_bytes: int = 0
    """Bytes that its log must have at least to be whole, as this runtime keeps it; 0 if nobody knows."""


class Runtime(Protocol):
    """Where containers run. All methods may be called concurrently and from several processes at once."""

    name: str
    """"process", "docker" or "kubernetes"."""

    async def start(self, spec: ContainerSpec) -> None:
        """Start the container `spec.name`, or do nothing if it already exists (whatever its phase).

        Returns once the runtime has accepted it. Where the runtime itself pulls images later (kubernetes), failures to
        do so are observed; where there is no container without its image (docker), start takes as long as the pull does
        and raises PermanentError(ImagePull). Raises PermanentError(reason) for what can never start (bad image name,
        command not representable) and TemporaryError for what may work later (engine away, out of room). Cancelling or
        killing the caller at any moment is safe: a later start of the same name goes on where it ended.
        """
        ...

    async def stop(self, name: str, grace: float) -> None:
        """End the container: TERM to the wrapper, KILL after `grace` seconds. Returns at once; the end is observed.

        Unknown or finished names are no error. Works in every phase: what has not started never will, and is observed
        as FINISHED with reason Cancelled. `grace` must exceed the job document's `grace_s`, or the wrapper cannot tell
        how it ended. May be called again, by anybody.
        """
        ...

    async def remove(self, name: str) -> None:
        """Forget the container and all it left behind (log, documents). Kills it if it runs. Unknown: no error."""
        ...

    async def list(self) -> list[Observation]:
        """All containers of this Hubflow installation, with results. The truth to reconcile from."""
        ...

    async def inspect(self, name: str) -> Observation | None:
        """One container, or None if the runtime does not know it."""
        ...

    def watch(self) -> AsyncIterator[Observation]:
        """Every container once, then each change as it comes. Never ends by itself; raises TemporaryError when broken.

        A FINISHED observation carries the result document. A container that was told as RUNNING and vanishes before this watch
        has told its end is told as GONE; the removal of one that has finished, or not begun, is not news.
        """
        ...

    def logs(self, name: str, offset: int = 0, *, follow: bool = False) -> AsyncIterator[bytes]:
        """The container's output, stdout and stderr as one stream, from byte `offset`, byte for byte, in chunks.

        With `follow` it goes on until the container has ended and all its output was read. The same offset names
        the same byte on every call. Raises KeyError for unknown names, and IncompleteLogError after the last byte where it is
        known that the job has printed more.
        """
        ...

    async def remove_shared_directory(self, name: str) -> None:
        """Remove the directory that containers of one run shared. Unknown: no error. May raise InUseError while one of them
        has not been removed."""
        ...

    async def ping(self) -> None:
        """Raise TemporaryError if the runtime does not answer."""
        ...

    async def close(self) -> None:
        """Give back connections. Containers go on."""
        ...


_UNSAFE = re.compile(r"[^a-z0-9]+")


def container_name(run: str, job: str, attempt: int) -> str:
    """Name of the container of one attempt: stable, unique, at most 63 characters, valid as a DNS label.

    Long or non-ASCII job names are cut; the digest of the whole keeps the result unique (T50).
    """
    digest = hashlib.sha256(f"{run}/{job}/{attempt}".encode()).hexdigest()[:16]
    readable = _UNSAFE.sub("-", job.lower()).strip("-")[:32].strip("-") or "job"
    return f"hf-{readable}-{attempt}-{digest}"
