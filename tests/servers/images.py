"""Images for tests, made from Debian's busybox-static without pulling anything.

hubflow-test/busybox:latest    a shell and the usual tools, no ENTRYPOINT, CMD ["sh"]
hubflow-test/component:latest  ENTRYPOINT, CMD, WORKDIR, ENV and USER all set
hubflow-test/scratch:latest    one static program (/echo) and nothing else: no shell, no /etc, no /tmp
hubflow-test/labelled:latest   a TencentHub component: JSON in the label TencentHubComponent, CMD as a shell line
hubflow-test/nothing:latest    neither ENTRYPOINT nor CMD
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")


@dataclass(frozen=True, slots=True)
class File:
    """One entry of a layer: `content` of a file, or `link` (symbolic), or a directory if both are None."""

    content: bytes | None = None
    link: str | None = None
    mode: int = 0o755
    owner: int = 0


@dataclass(frozen=True)
class Image:
    """What an image is made of. Layers are lists of (path without leading slash, File), lowest first."""

    name: str
    layers: Sequence[Sequence[tuple[str, File]]]
    entrypoint: Sequence[str] | None = None
    cmd: Sequence[str] | None = None
    workdir: str = ""
    env: Sequence[str] = ()
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def tars(self) -> list[bytes]:
        return [_tar(layer) for layer in self.layers]

    @functools.cached_property
    def config(self) -> bytes:
        """The image's configuration blob."""
        settings: dict[str, Any] = {
            "Entrypoint": None if self.entrypoint is None else list(self.entrypoint),
            "Cmd": None if self.cmd is None else list(self.cmd),
            "Env": list(self.env),
            "WorkingDir": self.workdir,
            "User": self.user,
            "Labels": dict(self.labels),
        }
        document = {
            "architecture": architecture(),
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {name: value for name, value in settings.items() if value},
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in self.tars]},
        }
        return json.dumps(document).encode()

    def pushable(self) -> tuple[bytes, dict[str, bytes]]:
        """(manifest, blobs by digest) of media type Docker schema 2, for pushing to a registry."""
        blobs = [gzip.compress(tar, 1, mtime=0) for tar in self.tars]
        prefix = "application/vnd.docker"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{prefix}.distribution.manifest.v2+json",
            "config": _descriptor(f"{prefix}.container.image.v1+json", self.config),
            "layers": [_descriptor(f"{prefix}.image.rootfs.diff.tar.gzip", blob) for blob in blobs],
        }
        return json.dumps(manifest).encode(), {_digest(blob): blob for blob in [self.config, *blobs]}


def architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@functools.cache
def base_layer() -> tuple[tuple[str, File], ...]:
    """A small root file system: busybox under all its names, users root and builder (1000)."""
    names = subprocess.run([str(BUSYBOX), "--list"], capture_output=True, text=True, check=True).stdout.split()
    directories = [
        *((name, File()) for name in ("bin", "usr", "usr/bin", "etc", "proc", "sys", "dev", "var")),
        ("tmp", File(mode=0o1777)),
        ("root", File(mode=0o700)),
        ("home", File()),
        ("home/builder", File(owner=1000)),
    ]
    passwd = b"root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000:builder:/home/builder:/bin/sh\n"
    return (
        *directories,
        ("bin/busybox", File(BUSYBOX.read_bytes())),
        *((f"bin/{name}", File(link="/bin/busybox")) for name in names if name != "busybox"),
        ("usr/bin/env", File(link="/bin/busybox")),
        ("etc/passwd", File(passwd, mode=0o644)),
        ("etc/group", File(b"root:x:0:\nbuilder:x:1000:\n", mode=0o644)),
    )


_PATH = "PATH=/usr/local/bin:/usr/bin:/bin"
_COMPONENT = {
    "description": "prints its input",
    "input": [{"name": "GREETING", "default": "hello", "desc": "what to say"}],
    "output": [{"name": "SAID", "desc": "what was said"}],
}


class _Made(Sequence[Image]):
    """The images above, made when first looked at: importing this must not need busybox."""

    @functools.cached_property
    def _images(self) -> list[Image]:
        base = base_layer()
        script = b'#!/bin/sh\necho "entry $* in $PWD as $(id -u) with $FROM_IMAGE"\n'
        entry = [("entry", File(script)), ("work", File(owner=1000))]
        say = [("root/say", File(b'#!/bin/sh\necho "[JOB_OUT] SAID = $GREETING"\n'))]
        return [
            Image("hubflow-test/busybox:latest", [base], cmd=["sh"], env=[_PATH]),
            Image(
                "hubflow-test/component:latest",
                [base, entry],
                entrypoint=["/entry"],
                cmd=["from", "cmd"],
                workdir="/work",
                env=[_PATH, "FROM_IMAGE=image value"],
                user="1000:1000",
            ),
            Image("hubflow-test/scratch:latest", [[("echo", File(BUSYBOX.read_bytes()))]], entrypoint=["/echo"]),
            Image(
                "hubflow-test/labelled:latest",
                [base, say],
                cmd=["/bin/sh", "-c", "./say"],
                workdir="/root",
                env=[_PATH],
                labels={"TencentHubComponent": json.dumps(_COMPONENT)},
            ),
            Image("hubflow-test/nothing:latest", [base], env=[_PATH]),
        ]

    def __getitem__(self, index: Any) -> Any:
        return self._images[index]

    def __len__(self) -> int:
        return len(self._images)


TEST_IMAGES: Sequence[Image] = _Made()


def write_archive(path: Path, images: Sequence[Image]) -> Path:
    """Write a docker-archive (what `docker load` takes) and return its path."""
    parts: dict[str, bytes] = {}
    listing = []
    for image in images:
        config = f"{hashlib.sha256(image.config).hexdigest()}.json"
        parts[config] = image.config
        layers = []
        for tar in image.tars:
            name = f"{hashlib.sha256(tar).hexdigest()}.tar"
            parts[name] = tar
            layers.append(name)
        listing.append({"Config": config, "RepoTags": [image.name], "Layers": layers})
    parts["manifest.json"] = json.dumps(listing).encode()
    path.write_bytes(_tar([(name, File(content, mode=0o644)) for name, content in parts.items()]))
    return path


def _tar(entries: Sequence[tuple[str, File]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, file in entries:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = file.mode, file.owner, file.owner
            if file.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, file.link
            elif file.content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(file.content)
            tar.addfile(info, io.BytesIO(file.content or b""))
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "size": len(content), "digest": _digest(content)}
