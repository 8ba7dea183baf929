"""Settings that more than one service needs. Each service's own are in its config.py."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlsplit

from shared import crash
from shared.config import setting, truth
from shared.errors import ConfigurationError
from shared.log import LEVELS
from shared.runtime.allowed import Allowed
from shared.runtime.docker_body import OFFER as DOCKER_OFFER
from shared.runtime.kubernetes_options import CREDENTIALS, json_list, json_map, networks, pairs
from shared.runtime.kubernetes_options import OFFER as KUBERNETES_OFFER

KINDS = ("auto", "process", "docker", "kubernetes")
"""Where jobs can run."""
DEFAULT_INSTALLATION = "default"
USUAL_ENGINE = "unix:///var/run/docker.sock"
PULLS = ("missing", "checked", "always")
"""When a node or engine asks the registry for an image that a workflow names."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """One process: where its servers are and where it listens."""

    database_url: str = setting("", "postgresql://user:password@host:port/name of PostgreSQL >= 14", secret=True)
    amqp_url: str = setting("", "amqp://user:password@host:port/vhost of RabbitMQ >= 3.10; empty: one process, no broker",
                            secret=True)  # fmt: skip
    http_host: str = setting("127.0.0.1", "address to listen on; empty: all of this machine's, IPv4 and IPv6")
    http_port: int = setting(8080, "port to listen on; 0: any free one")
    public_url: str = setting(
        "", "how people and webhook senders reach the console; empty: http://HOST:PORT, or http://localhost:PORT"
    )
    secret_key: str = setting("", "encrypts secrets and signs links: 32 bytes in URL-safe base64 (`hubflow token key`); "
                              "NEW,OLD while it is changed", secret=True)  # fmt: skip
    log_level: str = setting("info", "debug, info, warning or error")
    log_file: str = setting("", "file that the services' log is appended to; empty: stderr")
    database_connections: int = setting(10, "most connections of this process to PostgreSQL")
    shutdown_seconds: float = setting(20.0, "how long to finish what is in hand after SIGTERM")
    migrate: bool = setting(False, "apply migrations at start (otherwise `hubflow migrate` does it)")
    allow_private_targets: bool = setting(False, "let outgoing webhooks reach private and loopback addresses")
    crash_at: str = setting(
        "", "for tests: the process kills itself at this point, POINT or POINT:TIMES (`shared/crash.py`)"
    )

    def __post_init__(self) -> None:
        problems = []
        if urlsplit(self.database_url).scheme not in {"postgresql", "postgres"}:
            problems.append(
                "HUBFLOW_DATABASE_URL is not set to a postgresql:// address; `hubflow dev` brings its own server"
            )
        if self.amqp_url and urlsplit(self.amqp_url).scheme not in {"amqp", "amqps"}:
            problems.append("HUBFLOW_AMQP_URL does not begin with amqp:// or amqps://")
        if not self.secret_key:
            problems.append(
                "HUBFLOW_SECRET_KEY is not set; make one with `hubflow token key` and give it to every service"
            )
        if self.log_level not in LEVELS:
            problems.append(f"HUBFLOW_LOG_LEVEL={self.log_level!r}: expected one of {', '.join(LEVELS)}")
        if self.crash_at:
            try:
                crash.parse(self.crash_at)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, slots=True)
class ObjectsSettings:
    """The S3 that keeps logs, caches and artifacts."""

    PREFIX = "S3"

    endpoint: str = setting("", "https://host:port of the S3; empty: AWS")
    job_endpoint: str = setting("", "the same S3 as jobs reach it, for presigned URLs; empty: as endpoint")
    region: str = setting("us-east-1", "region that requests are signed for")
    bucket: str = setting("hubflow", "bucket; made if it does not exist")
    access_key: str = setting("", "access key", secret=True)
    secret_key: str = setting("", "secret key", secret=True)


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """Where jobs run."""

    PREFIX = "RUNTIME"

    kind: str = setting("auto", "auto (an engine if one answers, else processes), process, docker or kubernetes")
    process_root: str = setting(
        "", "folder of the process runtime; shared by executor, status_watcher and log_collector"
    )
    docker_host: str = setting("", "unix:// or tcp:// address of the engine; empty: DOCKER_HOST, then the usual socket")
    docker_allow: str = setting(
        "",
        "what workflows may set in `options` on an engine beyond read_only_root and pull: network=host, runtime=runsc",
    )
    docker_certificates: str = setting("", "folder with ca.pem, cert.pem and key.pem, if the engine wants TLS")
    default_image: str = setting("", "image of scripts, which name none; empty: a small one from Docker Hub")
    pull: str = setting(
        "checked",
        "images that workflows name are pulled where they are missing, or always; checked: always where the registry refuses "
        "the tenant's account (Kubernetes; as missing elsewhere)",
    )
    wrapper: str = setting(
        "", "the hubflow-wrapper binary for jobs, or a folder with one per processor; empty: as built in this checkout"
    )
    allow_host: bool = setting(False, "processes: run commands that were meant for an image on this machine")
    search_path: str = setting("", "processes: the jobs' PATH; empty: the system's default")
    installation: str = setting(
        DEFAULT_INSTALLATION, "marks this installation's containers among others on the same engine or cluster"
    )

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            near = get_close_matches(self.kind, KINDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"HUBFLOW_RUNTIME_KIND={self.kind!r}: expected one of {', '.join(KINDS)}{hint}")
        if self.pull not in PULLS:
            problems.append(f"HUBFLOW_RUNTIME_PULL={self.pull!r}: expected one of {', '.join(PULLS)}")
        try:
            Allowed.parse(self.docker_allow, DOCKER_OFFER)
        except ValueError as error:
            problems.append(f"HUBFLOW_RUNTIME_DOCKER_ALLOW: {error}")
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """The cluster, where HUBFLOW_RUNTIME_KIND is kubernetes (docs/kubernetes.md)."""

    PREFIX = "KUBERNETES"

    kubeconfig: str = setting("", "kubeconfig; empty: the pod's own account, else KUBECONFIG, else ~/.kube/config")
    context: str = setting("", "context of the kubeconfig; empty: its current one")
    calls_per_second: float = setting(
        200.0, "calls of the API server by this process, twice as many at once; 0: no limit"
    )
    namespace: str = setting("hubflow-jobs", "namespace of jobs; per tenant: what each one's name begins with")
    namespace_per_tenant: bool = setting(False, "each tenant's jobs have a namespace of their own")
    manage_namespaces: bool = setting(
        True, "make namespaces, and keep account, quota, limits and network policy in them as they should be"
    )
    wrapper_image: str = setting("", "image with the command wrapper (the Dockerfile, target `wrapper`); must be set")
    image_volumes: str = setting(
        "auto",
        "true: mount the wrapper's image instead of copying from it, a second less a job; auto: where all nodes can",
    )
    allow: str = setting(
        "",
        "what workflows may set in `options`, for example: runtime_class=kata|gvisor, node_selector=pool, tolerations",
    )
    node_selector: str = setting("", "labels of the nodes for all jobs: key=value, separated by commas")
    tolerations: str = setting("", "tolerations of all jobs: a JSON list")
    priority_class: str = setting("", "priority class of jobs that choose none")
    runtime_class: str = setting("", "runtime class of jobs that choose none")
    pull_secrets: str = setting("", "secrets in the jobs' namespace for pulling images, separated by commas")
    ephemeral_storage: str = setting("", "disk that a job may use if it names no amount, for example 10Gi")
    restricted: bool = setting(
        False, "Pod Security level restricted instead of baseline: images that run as root are refused"
    )
    quota: str = setting(
        "", 'ResourceQuota of each namespace: JSON such as {"pods": "200", "requests.cpu": "100"}; see LIMITS'
    )
    limits: str = setting(
        "",
        'LimitRange of each namespace: JSON such as {"defaultRequest": {"cpu": "250m"}, "default": {"memory": "1Gi"}}; '
        "what QUOTA counts of cpu or memory it must give, or jobs that name none are refused",
    )
    egress: str = setting("0.0.0.0/0, ::/0", "networks that jobs may connect to; names are always resolved")
    egress_except: str = setting(
        ", ".join(CREDENTIALS), "networks among these that they may not: cloud metadata, for one"
    )
    egress_cluster: bool = setting(
        True,
        "where EGRESS is everywhere, jobs may connect to all pods of the cluster, too: not all plugins count pods to networks",
    )
    shared_class: str = setting("", "StorageClass (ReadWriteMany) of WORKFLOW_CACHE; empty: jobs cannot share a folder")
    shared_size: str = setting("10Gi", "size of such a volume")
    pull_seconds: float = setting(300.0, "how long pulling a job's image may fail before the job fails with ImagePull")
    create_seconds: float = setting(60.0, "how long kubelet may fail to create a container before the job fails")
    lost_seconds: int = setting(60, "how long a node may be silent before its jobs count as lost")

    def __post_init__(self) -> None:
        problems = []
        for name, parse in _KUBERNETES_PARSED.items():
            try:
                parse(getattr(self, name))
            except ValueError as error:
                problems.append(f"HUBFLOW_KUBERNETES_{name.upper()}: {error}")
        if problems:
            raise ValueError("\n".join(problems))


def engine_host(environment: Mapping[str, str]) -> str:
    """Address of the container engine: Hubflow's own setting, else where all tools look."""
    return environment.get("HUBFLOW_RUNTIME_DOCKER_HOST") or environment.get("DOCKER_HOST") or USUAL_ENGINE


def require_for_pods(settings: KubernetesSettings, installation: str) -> None:
    """What must be set where jobs run as pods, and has no default. Raises ConfigurationError with every problem."""
    problems = []
    if not settings.wrapper_image:
        problems.append(
            "HUBFLOW_KUBERNETES_WRAPPER_IMAGE is not set: the image with the command wrapper, as the cluster can pull it "
            "(target `wrapper` of the Dockerfile)"
        )
    if settings.namespace_per_tenant and installation == DEFAULT_INSTALLATION:
        # Pods of this installation's name that its database does not know are orphans, and removed.
        problems.append(
            "HUBFLOW_KUBERNETES_NAMESPACE_PER_TENANT needs a HUBFLOW_RUNTIME_INSTALLATION that no other Hubflow on this "
            "cluster has: pods are then looked for in all namespaces, and two of one name would remove each other's jobs"
        )
    if problems:
        raise ConfigurationError("\n".join(problems))


def image_volumes(text: str) -> bool | None:
    """Whether pods mount the wrapper's image; None: to be found out. Raises ValueError."""
    if text.lower() == "auto":
        return None
    try:
        return truth(text)
    except ValueError:
        raise ValueError(f"{text!r}: expected auto, true or false") from None


_KUBERNETES_PARSED: Mapping[str, Callable[[str], object]] = {
    "image_volumes": image_volumes,
    "allow": functools.partial(Allowed.parse, offer=KUBERNETES_OFFER),
    "node_selector": pairs,
    "tolerations": json_list,
    "quota": json_map,
    "limits": json_map,
    "egress": networks,
    "egress_except": networks,
}


def process_name() -> str:
    """Names this process in leases and claims: host, pid and some randomness against a pid that comes again."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"
