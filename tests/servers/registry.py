"""A real OCI registry (Debian's docker-registry 2.8), open or with passwords, telling of pushes or not."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from shared.embedded.process import Launch, Server, becomes_ready, free_ports, tail


@dataclass(frozen=True, slots=True)
class Registry:
    """`host` is what stands before the first slash of an image reference."""

    host: str
    server: Server

    @property
    def url(self) -> str:
        return f"http://{self.host}"


@contextlib.asynccontextmanager
async def started_registry(
    folder: Path,
    *,
    users: Mapping[str, str] | None = None,
    token: Mapping[str, str] | None = None,
    notify: str = "",
    bind: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[Registry]:
    """A registry with its blobs in `folder` (made). Fast: 50 ms.

    `users`: name -> password, basic authentication. `token`: {realm, service, issuer, rootcertbundle} of a token server.
    `notify`: URL that is told of each push (registry notifications). `bind`, `port`: to listen on; port 0 for any.
    """
    port = port or free_ports(1)[0]
    configuration = _configure(folder, f"{bind}:{port}", users, token, notify)
    program = shutil.which("docker-registry") or "docker-registry"
    log = folder / "registry.log"
    server = Server.start(
        Launch([program, "serve", str(configuration)], log, environment={}, die_with_parent=signal.SIGKILL)
    )
    host = f"{'127.0.0.1' if bind == '0.0.0.0' else bind}:{port}"

    async def ready() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://{host}/v2/") as response:
                return response.status in {200, 401}
        except (aiohttp.ClientError, OSError):
            return False

    try:
        if not await becomes_ready(server, ready, timeout=30):
            raise RuntimeError(f"docker-registry did not start:\n{tail(log, 40)}")
        yield Registry(host, server)
    finally:
        await asyncio.shield(server.end(signal.SIGKILL, patience=5))


def _configure(
    folder: Path, address: str, users: Mapping[str, str] | None, token: Mapping[str, str] | None, notify: str
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    configuration: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": address, "secret": secrets.token_hex(16)},
    }
    if users:
        (folder / "htpasswd").write_text("".join(f"{name}:{_bcrypt(word)}\n" for name, word in users.items()))
        configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    if token:
        configuration["auth"] = {"token": dict(token)}
    if notify:
        endpoint = {"name": "hook", "url": notify, "timeout": "2s", "threshold": 3, "backoff": "200ms"}
        configuration["notifications"] = {"endpoints": [endpoint]}
    path = folder / "config.yml"
    path.write_text(json.dumps(configuration))  # JSON is YAML
    return path


def _bcrypt(password: str) -> str:
    """The only kind of hash that the registry takes; from the C library, as Python's own `crypt` is gone since 3.13."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    salt = f"$2b$04${secrets.token_hex(11)}".encode()
    hashed: bytes = crypt(password.encode(), salt)
    return hashed.decode()
