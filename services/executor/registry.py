"""Asks registries about components."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from services.executor.components import Lookup
from services.executor.core import Component
from shared.component_label import read_label
from shared.log import get_logger
from shared.oci import credentials_for, open_registry_client, parse_reference

_log = get_logger("executor")


@asynccontextmanager
async def open_lookup(insecure: Sequence[str]) -> AsyncIterator[Lookup]:
    """A `Lookup` over HTTP. `insecure`: registries to speak to without TLS."""
    async with open_registry_client(insecure) as client:

        async def look_up(image: str, auth: Mapping[str, str] | None) -> Component:
            config = await client.image_config(parse_reference(image), auth)
            label = read_label(config.labels)
            if label is None:
                return Component(config.command)
            for warning in label.warnings:
                _log.warning("component label damaged", image=image, problem=warning)
            return Component(config.command, label.defaults, tuple(each.name for each in label.outputs))

        yield look_up


def auth_of(image: str, config: str) -> Mapping[str, str] | None:
    """Credentials for pulling the image, from a Docker config.json. Raises PermanentError(ImagePull) if it is none."""
    return credentials_for(config, parse_reference(image)) if config else None
