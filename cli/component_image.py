"""What an image's configuration says: from the container engine of this machine, or from the image's registry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shared.errors import UserError


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The parts of an image's configuration that decide how it runs."""

    reference: str
    digest: str
    platform: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str
    user: str
    labels: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _words(value: Any) -> tuple[str, ...]:
    return tuple(str(word) for word in value) if isinstance(value, list) else ()


async def from_engine(reference: str) -> ImageFacts:
    """Raises UserError if the engine has no such image, TemporaryError if none answers."""
    from shared.runtime.engine import Engine, EngineError
    from shared.settings import engine_host

    engine = Engine(engine_host(os.environ))
    try:
        image = await engine.call("GET", f"/images/{quote(reference, safe='/:@')}/json", timeout=10.0)
    except EngineError as error:
        raise UserError(
            f"the engine of this machine refuses {reference!r}: {error}", code="image-not-found",
            hint="`docker pull` it, or leave out --local",
        ) from None  # fmt: skip
    finally:
        await engine.close()
    config = image.get("Config") or {}
    return ImageFacts(
        reference,
        next((str(name).partition("@")[2] for name in image.get("RepoDigests") or ()), str(image.get("Id", ""))),
        f"{image.get('Os')}/{image.get('Architecture')}",
        _words(config.get("Entrypoint")),
        _words(config.get("Cmd")),
        {name: value for name, _, value in (word.partition("=") for word in _words(config.get("Env")))},
        str(config.get("WorkingDir") or ""),
        str(config.get("User") or ""),
        dict(config.get("Labels") or {}),
    )


async def from_registry(reference: str) -> ImageFacts:
    """Raises PermanentError for an image that the registry does not know or give, TemporaryError if it does not answer."""
    from shared.oci import credentials_for, open_registry_client, parse_reference

    wanted = parse_reference(reference)
    config_file = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    auth = credentials_for(config_file.read_text("utf-8"), wanted) if config_file.is_file() else None
    async with open_registry_client() as client:
        found = await client.image_config(wanted, auth)
    return ImageFacts(
        str(wanted), found.digest, f"linux/{found.architecture}", found.entrypoint, found.cmd, dict(found.env),
        found.workdir, found.user, dict(found.labels),
    )  # fmt: skip
