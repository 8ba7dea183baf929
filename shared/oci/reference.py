"""Names of images: `[registry[:port]/]repository[:tag][@digest]`, with Docker's defaults."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from shared.errors import PermanentError
from shared.states import Reason

DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_NAMES = {DOCKER_HUB, "index.docker.io", _DOCKER_HUB_API}
_LONGEST = 1024

_REGISTRY = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Reference:
    """One image. `digest` wins over `tag` where both are given, as with Docker."""

    registry: str
    """Host and port as written, `docker.io` for Docker Hub."""
    repository: str
    """With `library/` where Docker adds it."""
    tag: str = ""
    digest: str = ""

    @property
    def api_host(self) -> str:
        """Host and port to speak to."""
        return _DOCKER_HUB_API if self.registry == DOCKER_HUB else self.registry

    @property
    def wanted(self) -> str:
        """What stands after /manifests/: the digest, else the tag."""
        return self.digest or self.tag or "latest"

    def at(self, digest: str) -> Reference:
        """The same repository at this digest."""
        return dataclasses.replace(self, tag="", digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse_reference(text: str) -> Reference:
    """Read a reference as Docker does: `alpine` is docker.io/library/alpine:latest.

    Raises PermanentError (reason ImagePull) saying which part is wrong.
    """
    if len(text) > _LONGEST:
        raise _wrong(text[:60] + "...", f"it is longer than {_LONGEST} characters")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _wrong(text, "what follows @ must be sha256: and 64 hexadecimal digits")
    first, slash, remainder = rest.partition("/")
    has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    registry, path = (first, remainder) if has_registry else (DOCKER_HUB, rest)
    if not _REGISTRY.fullmatch(registry) or not _port_fits(registry):
        raise _wrong(text, f"{registry!r} is no host name with an optional port")
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _wrong(text, f"the tag {tag!r} may have up to 128 letters, digits, '_', '.' and '-'")
    if not path or len(path) > 255 or not all(_PART.fullmatch(part) for part in path.split("/")):
        hint = " in small letters" if path.lower() != path else ""
        raise _wrong(text, f"the repository {path!r} must be words{hint} of a-z, 0-9, '.', '_' and '-', parted by '/'")
    if registry in _DOCKER_HUB_NAMES:
        registry = DOCKER_HUB
        path = path if "/" in path else f"library/{path}"
    return Reference(registry, path, tag or ("" if digest else "latest"), digest)


def _port_fits(registry: str) -> bool:
    port = registry.rpartition(":")[2] if not registry.endswith("]") and ":" in registry else ""
    return not port or 0 < int(port) < 65536


def _wrong(text: str, why: str) -> PermanentError:
    return PermanentError(f"{text!r} is not an image reference: {why}", reason=Reason.IMAGE_PULL)
