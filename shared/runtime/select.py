"""Opening the runtime that the configuration names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigurationError, HubflowError
from shared.log import get_logger
from shared.runtime.allowed import Allowed
from shared.runtime.docker import DEFAULT_IMAGE, DockerRuntime
from shared.runtime.docker_body import OFFER as DOCKER_OFFER
from shared.runtime.process import ProcessRuntime
from shared.runtime.protocol import Runtime
from shared.runtime.wrapper import binary_for
from shared.settings import KINDS, USUAL_ENGINE, KubernetesSettings, RuntimeSettings

ANSWER_WITHIN = 1.0
"""Seconds that `auto` waits for a container engine."""
_log = get_logger("runtime")


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Which runtime, and what it needs to know."""

    kind: str
    """"auto" (docker if an engine answers, else process), "process", "docker" or "kubernetes"."""
    wrapper_path: Path
    """The hubflow-wrapper binary, or a folder with one per processor named hubflow-wrapper-linux-amd64 and so on."""
    process_root: Path
    """Folder of the process runtime; the same for all services. Short paths: nothing below it is a socket."""
    installation: str = "default"
    """Separates several Hubflows on one engine or cluster."""
    docker_host: str = USUAL_ENGINE
    """unix:///path, tcp://host:port or https://host:port."""
    docker_certificates: Path | None = None
    """Folder with ca.pem, cert.pem and key.pem, if the engine wants TLS."""
    docker_key: bytes | None = field(default=None, repr=False)
    """What job documents are encrypted with on a container engine; without it they are copied in, which takes longer."""
    docker_allowed: Allowed = field(default_factory=lambda: Allowed.parse("", DOCKER_OFFER))
    """What workflows may ask of a container engine."""
    default_image: str = DEFAULT_IMAGE
    """Image of scripts that name none."""
    pull: str = "missing"
    """Images that workflows name: "missing" ones are pulled, or "always"."""
    allow_host: bool = False
    """Process runtime: run commands that were meant for an image on this machine."""
    search_path: str = os.defpath
    """Process runtime: the jobs' PATH."""
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)


def config_of(
    settings: RuntimeSettings,
    kubernetes: KubernetesSettings | None = None,
    docker_key: bytes | None = None,
    docker_host: str = USUAL_ENGINE,
) -> RuntimeConfig:
    """The same as a process's settings have it, with what is left out filled in. `docker_host`: if the settings name none."""
    built = Path(__file__).resolve().parents[2] / "wrapper" / "bin"
    return RuntimeConfig(
        kind=settings.kind,
        wrapper_path=Path(settings.wrapper) if settings.wrapper else built,
        process_root=Path(settings.process_root or "hubflow-jobs").absolute(),
        installation=settings.installation,
        docker_host=settings.docker_host or docker_host,
        docker_certificates=Path(settings.docker_certificates) if settings.docker_certificates else None,
        docker_key=docker_key,
        docker_allowed=Allowed.parse(settings.docker_allow, DOCKER_OFFER),
        default_image=settings.default_image or DEFAULT_IMAGE,
        pull=settings.pull,
        allow_host=settings.allow_host,
        search_path=settings.search_path or os.defpath,
        kubernetes=kubernetes or KubernetesSettings(),
    )


async def open_runtime(config: RuntimeConfig) -> Runtime:
    """The runtime of this configuration, not yet asked anything (but by `auto`). The caller closes it.

    Raises ConfigurationError for a kind that does not exist or a wrapper that is missing.
    """
    if config.kind not in KINDS:
        raise ConfigurationError(f"runtime {config.kind!r} does not exist; choose one of {', '.join(KINDS)}")
    if config.kind == "kubernetes":
        from shared.runtime.kubernetes_config import open_kubernetes  # its client takes a second to load

        return open_kubernetes(config.kubernetes, config.installation, config.default_image, config.pull)
    if not config.wrapper_path.exists():
        raise ConfigurationError(f"the command wrapper {config.wrapper_path} is missing; build it with `make wrapper`")
    if config.kind == "process":
        return _process(config)
    if config.kind == "docker":
        return _docker(config)
    return await _docker_if_there(config) or _process(config)


async def _docker_if_there(config: RuntimeConfig) -> Runtime | None:
    runtime = _docker(config)
    try:
        await runtime.ping(ANSWER_WITHIN)
    except HubflowError as error:
        await runtime.close()
        _log.warning("jobs run as plain processes of this user, without images or isolation", because=str(error))
        return None
    return runtime


def _docker(config: RuntimeConfig) -> DockerRuntime:
    return DockerRuntime(
        config.docker_host,
        config.wrapper_path,
        config.installation,
        certificates=config.docker_certificates,
        default_image=config.default_image,
        key=config.docker_key,
        allowed=config.docker_allowed,
        pull=config.pull,
    )


def _process(config: RuntimeConfig) -> ProcessRuntime:
    return ProcessRuntime(
        config.process_root,
        binary_for(config.wrapper_path, os.uname().machine),
        allow_host=config.allow_host,
        search_path=config.search_path,
    )
