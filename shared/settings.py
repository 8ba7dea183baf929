"""Settings that more than one service needs. Each service's own are in its config.py."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared import crash
from shared.config import setting
from shared.log import LEVELS


@dataclass(frozen=True, slots=True)
class HostSettings:
    """One process: where its servers are and where it listens."""

    database_url: str = setting("", "postgresql://user:password@host:port/name of PostgreSQL >= 14", secret=True)
    amqp_url: str = setting("", "amqp://user:password@host:port/vhost of RabbitMQ >= 3.10; empty: one process, no broker",
                            secret=True)  # fmt: skip
    http_host: str = setting("127.0.0.1", "address to listen on")
    http_port: int = setting(8080, "port to listen on; 0: any free one")
    public_url: str = setting("", "how people and webhook senders reach the console; empty: http://HOST:PORT")
    secret_key: str = setting("", "encrypts secrets and signs links: 32 bytes in URL-safe base64 (`hubflow token key`)",
                              secret=True)  # fmt: skip
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
        if urlsplit(self.database_url).scheme not in {"postgresql", "postgres"}:
            raise ValueError(
                "HUBFLOW_DATABASE_URL is not set to a postgresql:// address; `hubflow dev` brings its own server"
            )
        if self.amqp_url and urlsplit(self.amqp_url).scheme not in {"amqp", "amqps"}:
            raise ValueError("HUBFLOW_AMQP_URL does not begin with amqp:// or amqps://")
        if not self.secret_key:
            raise ValueError(
                "HUBFLOW_SECRET_KEY is not set; make one with `hubflow token key` and give it to every service"
            )
        if self.crash_at:
            crash.parse(self.crash_at)
        if self.log_level not in LEVELS:
            raise ValueError(f"HUBFLOW_LOG_LEVEL={self.log_level!r}: expected one of {', '.join(LEVELS)}")


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

    kind: str = setting("auto", "auto (an engine if one answers, else processes), process or docker")
    process_root: str = setting(
        "", "folder of the process runtime; shared by executor, status_watcher and log_collector"
    )
    docker_host: str = setting("", "unix:// or tcp:// address of the engine; empty: DOCKER_HOST, then the usual socket")
    docker_certificates: str = setting("", "folder with ca.pem, cert.pem and key.pem, if the engine wants TLS")
    default_image: str = setting("", "image of scripts, which name none; empty: a small one from Docker Hub")
    wrapper: str = setting(
        "", "the hubflow-wrapper binary for jobs, or a folder with one per processor; empty: as built in this checkout"
    )
    allow_host: bool = setting(False, "processes: run commands that were meant for an image on this machine")
    search_path: str = setting("", "processes: the jobs' PATH; empty: the system's default")
    installation: str = setting("default", "marks this installation's containers among others on the same engine")


def process_name() -> str:
    """Names this process in leases and claims: host, pid and some randomness against a pid that comes again."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"
