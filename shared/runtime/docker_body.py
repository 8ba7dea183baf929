"""What the docker runtime sends to the engine and reads from it, as pure functions: create bodies, archives, labels."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import PermanentError
from shared.runtime.allowed import Allowed, Offer
from shared.runtime.protocol import ContainerSpec, ServiceSpec
from shared.runtime.results import RESULT_LIMIT
from shared.states import Reason

INSTALLATION = "hubflow.installation"
LABEL = "hubflow.label."
ENDED_REASON = "hubflow.ended.reason"
"""On a container that stands for one which never started: why. It is never started itself."""
ENDED_MESSAGE = "hubflow.ended.message"
ENDED_STARTED = "hubflow.ended.started"
"""When it had started nevertheless (RFC 3339)."""
PULLING = "hubflow.pulling"
"""On a container that stands for one whose image is being pulled."""
SERVICES = "hubflow.services"
"""On a container that has services beside it."""
SERVICE_OF = "hubflow.service.of"
"""On a service, and on what keeps the network: the name of the container that it is there for. These have no label
INSTALLATION, so that nobody takes them for attempts."""
SERVICE_INSTALLATION = "hubflow.service.installation"
HELPERS = {"hubflow.helper": "1"}
"""Labels of containers that only help to put something somewhere, and live for a moment."""
FOLDER = "/.hubflow"
BIN = f"{FOLDER}/bin"
JOB = f"{FOLDER}/job"
KEY = f"{BIN}/key"
"""What sealed job documents are read with; in the wrapper's volume, whose name tells it from those of other keys."""
SEALED = "HUBFLOW_SEALED_JOB"
SEALED_LIMIT = 64 << 10
"""Bytes of a document up to which it is sealed: the kernel takes 128 KiB in one variable, base64 and all."""
RESULT = "/proc/self/fd/2"
"""The wrapper writes its result to its standard error, which the engine keeps apart from the job's output: reading it from
there takes some milliseconds, where copying a file out of a container takes a hundred."""
RESULT_BEGINS = b'{"version"'
RESULT_TAIL = 64
"""Log entries within which the result is normally found; an entry has at most 16 KiB."""
SHARED = "/workflow-cache"
SHARED_TOO = "/workflow_cache"
LAST_INSTALLED = f"{BIN}/thub"
"""What the wrapper's `install` puts in place last: if it is there, all is."""
STOP_MARK = f"{FOLDER}/stop"
EMPTY_IMAGE = "hubflow-empty:1"
"""An image without content, made on the engine itself: for containers that only hold a name, and the installer."""
OFFER = Offer(
    runtime="docker",
    setting="HUBFLOW_RUNTIME_DOCKER_ALLOW",
    types={"network": str, "read_only_root": bool, "pull": str, "runtime": str},
    free={"network": frozenset({"none", "bridge"}), "read_only_root": frozenset(), "pull": frozenset()},
)
"""What workflows may ask for: not the engine's machine's network, nor another job's, unless the operator has said so."""
_DROPPED = ["AUDIT_WRITE", "MKNOD", "NET_RAW", "SETPCAP"]
_PIDS = 4096


def check(spec: ContainerSpec, allowed: Allowed) -> None:
    """Raise PermanentError for what can never be."""
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,62}", spec.name):
        raise PermanentError(f"{spec.name!r} cannot be a container's name", reason=Reason.BAD_INPUT)
    allowed.check(spec.options)


def with_tag(image: str) -> str:
    """The reference with a tag or digest; without one, an engine would pull every tag there is."""
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


def labels_to(spec_labels: Mapping[str, str], installation: str) -> dict[str, str]:
    """Labels of a container from those of its spec."""
    return {INSTALLATION: installation} | {f"{LABEL}{key}": value for key, value in spec_labels.items()}


def labels_from(attributes: Mapping[str, str]) -> dict[str, str]:
    """Labels of the spec, from a container's labels or an event's attributes."""
    return {key[len(LABEL) :]: value for key, value in attributes.items() if key.startswith(LABEL)}


def vanishing(found: Mapping[str, Any]) -> bool:
    """Is this container being removed without ever having started? Whoever does that makes another of its name, or has given it
    up. The engine calls it `removing`, and in the last moment `dead`, as it calls one that has ended."""
    state = found["State"]
    return state["Status"] in {"removing", "dead"} and str(state.get("StartedAt", "")).startswith("0001-")


def can_be_sealed(spec: ContainerSpec) -> bool:
    """May the job document come in the environment? Otherwise it is copied in, as a new shared directory's mode must be."""
    return not spec.shared_directory and len(json.dumps(spec.document)) <= SEALED_LIMIT


def seal(spec: ContainerSpec, command: list[str], key: bytes) -> str:
    """The job document as the wrapper's `run-sealed` takes it."""
    nonce = os.urandom(12)
    return base64.b64encode(
        nonce + AESGCM(key).encrypt(nonce, json.dumps(_document(spec, command)).encode(), None)
    ).decode()


def create(
    spec: ContainerSpec, image: str, installation: str, volume: str, log: Mapping[str, Any], sealed: str = ""
) -> dict[str, Any]:
    """The body that creates the container of an attempt. Without a `sealed` document one is to be copied in."""
    resources, options = spec.resources, spec.options
    mounts = [_mount(volume, BIN, read_only=True)]
    if options.get("read_only_root"):
        # Nothing can be copied into a read-only root, but into a volume that lies on it.
        mounts.append({"Type": "volume", "Target": FOLDER})
    if sealed:
        # Writable for any user, as what is copied in is.
        mounts.append({"Type": "tmpfs", "Target": JOB, "TmpfsOptions": {"Mode": 0o1777}})
    mounts += _shared_mounts(spec, installation)
    host = {
        "Mounts": mounts,
        "LogConfig": log,
        "NetworkMode": f"container:{network_name(spec.name)}" if spec.services else options.get("network", "bridge"),
        "ReadonlyRootfs": options.get("read_only_root", False),
        "Runtime": options.get("runtime", ""),
        "SecurityOpt": ["no-new-privileges"],
        "CapDrop": _DROPPED,
        "PidsLimit": _PIDS,
        "RestartPolicy": {"Name": "no"},
        "NanoCpus": resources.cpu_millis * 1_000_000,
        "Memory": resources.memory_bytes,
        # The same as memory: none of it may go to swap, so that the limit is the limit.
        "MemorySwap": resources.memory_bytes,
    }
    return {
        "Image": image,
        "Labels": labels_to(spec.labels, installation) | ({SERVICES: "1"} if spec.services else {}),
        "Entrypoint": [f"{BIN}/hubflow-wrapper"],
        "Cmd": ["run-sealed", KEY] if sealed else ["run", f"{JOB}/job.json"],
        "Env": [f"{SEALED}={sealed}"] if sealed else [],
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def network_name(name: str) -> str:
    """Name of the container that keeps the network of an attempt with services. No attempt's name has a dot."""
    return f"{name}.network"


def service_name(name: str, service: ServiceSpec) -> str:
    """Name of a service's container."""
    return f"{name}.service.{service.name}"


def network(spec: ContainerSpec, installation: str, volume: str) -> dict[str, Any]:
    """The body of the container that keeps the network which the attempt and its services share, whoever of them ends."""
    return {
        "Image": EMPTY_IMAGE,
        "Labels": {SERVICE_OF: spec.name, SERVICE_INSTALLATION: installation},
        "Entrypoint": [f"{BIN}/hubflow-wrapper"],
        "Cmd": ["hold"],
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Mounts": [_mount(volume, BIN, read_only=True)],
            "NetworkMode": spec.options.get("network", "bridge"),
            "ExtraHosts": [f"{service.name}:127.0.0.1" for service in spec.services],
            "ReadonlyRootfs": True,
            "SecurityOpt": ["no-new-privileges"],
            "CapDrop": ["ALL"],
            "PidsLimit": _PIDS,
        },
    }


def service(spec: ContainerSpec, service: ServiceSpec, installation: str, log: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a service's container."""
    content: dict[str, Any] = {
        "Image": with_tag(service.image),
        "Labels": {SERVICE_OF: spec.name, SERVICE_INSTALLATION: installation},
        "Env": [f"{name}={value}" for name, value in service.env.items()],
        "HostConfig": {
            "LogConfig": log,
            "NetworkMode": f"container:{network_name(spec.name)}",
            "Runtime": spec.options.get("runtime", ""),
            "SecurityOpt": ["no-new-privileges"],
            "CapDrop": _DROPPED,
            "PidsLimit": _PIDS,
            "RestartPolicy": {"Name": "no"},
            "NanoCpus": service.resources.cpu_millis * 1_000_000,
            "Memory": service.resources.memory_bytes,
            "MemorySwap": service.resources.memory_bytes,
        },
    }
    return content | ({"Entrypoint": list(service.command)} if service.command else {})


def stand_in(labels: Mapping[str, str]) -> dict[str, Any]:
    """The body that creates a container which only holds a name and labels."""
    return {"Image": EMPTY_IMAGE, "Labels": dict(labels), "Entrypoint": ["never-started"], "NetworkDisabled": True}


def shared_opener(spec: ContainerSpec, installation: str) -> dict[str, Any]:
    """The body of a container through which a shared directory is made writable; it is not started."""
    return {**stand_in(HELPERS), "HostConfig": {"Mounts": _shared_mounts(spec, installation)}}


def _shared_mounts(spec: ContainerSpec, installation: str) -> list[dict[str, Any]]:
    if not spec.shared_directory:
        return []
    volume = shared_volume(installation, spec.shared_directory)
    named = {"Labels": {INSTALLATION: installation}, "NoCopy": True}
    targets = (SHARED, SHARED_TOO)
    return [{"Type": "volume", "Source": volume, "Target": target, "VolumeOptions": named} for target in targets]


def installer(volume: str) -> dict[str, Any]:
    """The body of the container that copies the wrapper into its volume."""
    return {
        "Image": EMPTY_IMAGE,
        "Labels": HELPERS,
        "User": "0",
        "Entrypoint": ["/hubflow-wrapper"],
        "Cmd": ["install", BIN],
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {"Mounts": [_mount(volume, BIN)], "NetworkMode": "none"},
    }


def _mount(volume: str, target: str, *, read_only: bool = False) -> dict[str, Any]:
    options = {"NoCopy": True}
    return {"Type": "volume", "Source": volume, "Target": target, "ReadOnly": read_only, "VolumeOptions": options}


def shared_volume(installation: str, name: str) -> str:
    """Name of the volume behind a shared directory; readable, and unique whatever characters the name has."""
    digest = hashlib.sha256(f"{installation}/{name}".encode()).hexdigest()[:16]
    return f"hubflow-shared-{re.sub(r'[^a-zA-Z0-9]+', '-', name)[:32].strip('-')}-{digest}"


def log_config(info: Mapping[str, Any]) -> dict[str, Any]:
    """How the engine keeps output. Driver `local` keeps bytes as they are; `json-file` replaces what is not UTF-8.

    Nothing is rotated away: offsets count from the first byte, and the log lasts as long as the container.
    """
    drivers = (info.get("Plugins") or {}).get("Log") or []
    if "local" not in drivers:
        return {}
    return {"Type": "local", "Config": {"max-size": "1000t", "max-file": "1", "compress": "false"}}


def job_archive(spec: ContainerSpec, command: list[str]) -> tuple[str, bytes]:
    """What is copied where before the start: the job document, in a folder that any user may write to.

    Into the root, unless that is read-only: then into the volume that lies on it.
    """
    if spec.options.get("read_only_root"):
        own = _Archive()
        _add_job(own, JOB.rpartition("/")[2], _document(spec, command))
        return FOLDER, own.close()
    root = _Archive()
    root.folder(FOLDER[1:], 0o755)
    _add_job(root, f"{JOB[1:]}", _document(spec, command))
    if spec.shared_directory:
        # A new volume belongs to root; images with another user write to it, too.
        root.folder(SHARED[1:], 0o777)
    return "/", root.close()


def shared_archive() -> bytes:
    """What makes a shared directory writable for all, copied to the root of a container that has it mounted."""
    archive = _Archive()
    archive.folder(SHARED[1:], 0o777)
    return archive.close()


def _add_job(archive: _Archive, folder: str, document: Mapping[str, Any]) -> None:
    archive.folder(folder, 0o777)
    archive.file(f"{folder}/job.json", json.dumps(document).encode(), 0o444)


def _document(spec: ContainerSpec, command: list[str]) -> dict[str, Any]:
    environment = dict(spec.document.get("env") or {})
    if spec.shared_directory:
        environment["WORKFLOW_CACHE"] = SHARED
    return {
        **spec.document,
        "command": command,
        "env": environment,
        "result_path": RESULT,
        "running_path": "",
        "output_path": f"{JOB}/outputs",
        "message_limit": RESULT_LIMIT,
    }


def wrapper_archive(binary: bytes) -> bytes:
    """The wrapper, for the installer."""
    archive = _Archive()
    archive.file("hubflow-wrapper", binary, 0o755)
    return archive.close()


def key_archive(key: bytes) -> bytes:
    """The key of sealed documents, for the wrapper's volume."""
    archive = _Archive()
    archive.file(KEY.rpartition("/")[2], key, 0o444)
    return archive.close()


def stop_archive() -> bytes:
    """The mark that somebody wanted the container to end, for FOLDER."""
    archive = _Archive()
    archive.file(STOP_MARK.rpartition("/")[2], b"", 0o444)
    return archive.close()


def event_query(events: list[str], *, container: str = "", installation: str = "", since: int = 0) -> dict[str, str]:
    """Query of the event stream; `since` in nanoseconds of the engine's clock, 0 for from now on."""
    filters = {"type": ["container"], "event": events}
    if container:
        filters["container"] = [container]
    if installation:
        filters["label"] = [f"{INSTALLATION}={installation}"]
    query = {"filters": json.dumps(filters)}
    if since:
        query["since"] = f"{since // 10**9}.{since % 10**9:09d}"
    return query


def result_in(words: bytes) -> dict[str, Any] | None:
    """The result document at the end of what the wrapper has written to its standard error."""
    _, begins, rest = words.rpartition(RESULT_BEGINS)
    try:
        result, _ = json.JSONDecoder().raw_decode((begins + rest).decode())
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None


def registry_header(image: str, auth: Mapping[str, str] | None) -> dict[str, str]:
    """The header that lets the engine pull in somebody's name."""
    if not auth:
        return {}
    first, slash, _ = image.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    account = {**auth, "serveraddress": first if named else "https://index.docker.io/v1/"}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(account).encode()).decode()}


class _Archive:
    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115 - closed by `close`

    def folder(self, path: str, mode: int) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(entry)

    def file(self, path: str, content: bytes, mode: int) -> None:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode = len(content), mode
        self._tar.addfile(entry, io.BytesIO(content))

    def close(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()
