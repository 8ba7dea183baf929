"""Credentials for registries, from the contents of a Docker config.json."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from shared.errors import PermanentError
from shared.oci.reference import DOCKER_HUB, Reference
from shared.states import Reason

Auth = Mapping[str, str]
"""{"username": ..., "password": ...}"""

_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")


def credentials_for(config: str | Mapping[str, Any], reference: Reference) -> Auth | None:
    """The entry of `auths` that fits the image's registry, or None.

    Keys may be hosts, URLs or hosts with a path (the longest that the repository begins with wins).
    Raises PermanentError (reason ImagePull) if the document cannot be read; its contents are never in the message.
    """
    auths = _auths(config)
    found: tuple[int, Any] | None = None
    for key, entry in auths.items():
        host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
        if reference.registry == DOCKER_HUB and (key in _HUB_KEYS or host in {DOCKER_HUB, *_HUB_KEYS}):
            host, path = DOCKER_HUB, ""
        path = "" if path.rstrip("/") in {"v1", "v2"} else path.rstrip("/")
        fits = host == reference.registry and (not path or f"{reference.repository}/".startswith(f"{path}/"))
        if fits and (found is None or len(path) > found[0]):
            found = (len(path), entry)
    return _auth_of(found[1]) if found else None


def _auths(config: str | Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        document = json.loads(config) if isinstance(config, str) else config
        auths = document.get("auths", {})
        return {str(key): entry for key, entry in auths.items()}
    except (ValueError, AttributeError, RecursionError):
        raise _unreadable("it is no JSON document with an object `auths`") from None


def _auth_of(entry: Any) -> Auth | None:
    if not isinstance(entry, Mapping):
        raise _unreadable("an entry of `auths` is not an object")
    if entry.get("username"):
        return {"username": str(entry["username"]), "password": str(entry.get("password", ""))}
    if not entry.get("auth"):
        return None
    try:
        name, colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise _unreadable("a value of `auth` is not base64 of NAME:PASSWORD") from None
    if not colon:
        raise _unreadable("a value of `auth` is not base64 of NAME:PASSWORD")
    return {"username": name, "password": password.rstrip("\0\n")}


def _unreadable(why: str) -> PermanentError:
    return PermanentError(
        f"the registry credentials (Docker config.json) cannot be used: {why}", reason=Reason.IMAGE_PULL
    )
