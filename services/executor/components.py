"""What an image says about itself: its command, and the label that makes it a component.

Asked of the registry once for each digest, and for each tag and each account once a minute. A Docker engine holds images that
no registry has, and knows their command itself; there, an image that cannot be asked about is simply run. A node of Kubernetes
gives an image that it has pulled for one tenant to every other one: unless it asks the registry each time, we do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from services.executor.core import Component
from shared.errors import HubflowError, RefusedError, TemporaryError
from shared.log import get_logger

KEPT = 1000
FRESH = 60.0
"""Seconds that the answer for a tag is believed."""
RETRY = 15.0
"""Seconds after which a registry that gave no answer is asked again."""

Lookup = Callable[[str, Mapping[str, str] | None], Awaitable[Component]]
"""(image, credentials) -> what it says. Raises TemporaryError, or PermanentError(ImagePull)."""

_log = get_logger("executor")


class Components:
    """`lookup` None: nobody needs to know, the runtime takes images as they are. `required`: it cannot look a command up
    itself. `guarded`: it does not ask the registry who may have an image, so what the registry refuses must not run."""

    def __init__(self, lookup: Lookup | None, *, required: bool, guarded: bool = False) -> None:
        self._lookup = lookup
        self._required = required
        self._guarded = guarded
        self._known: OrderedDict[tuple[str, str], tuple[float, Component]] = OrderedDict()

    @classmethod
    @asynccontextmanager
    async def open(cls, runtime: str, insecure_registries: str, pull: str) -> AsyncIterator[Components]:
        """For the runtime of that name, which pulls images when `pull` says (`shared.settings.PULLS`). Plain processes have no
        images, so nothing is asked there."""
        if runtime == "process":
            yield cls(None, required=False)
            return
        from services.executor.registry import open_lookup

        async with open_lookup([each.strip() for each in insecure_registries.split(",") if each.strip()]) as lookup:
            required = runtime != "docker"
            yield cls(lookup, required=required, guarded=required and pull == "checked")

    async def of(self, image: str, auth: Mapping[str, str] | None, *, needed: bool) -> Component:
        """What the image says. `needed`: its command is wanted, so a runtime that cannot look it up itself must know.

        Raises what `Lookup` raises, where the answer is needed.
        """
        if self._lookup is None:
            return Component()
        key = (image, _digest(auth))
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[0]:
            self._known.move_to_end(key)
            return known[1]
        try:
            component = await self._lookup(image, auth)
            # What a digest names never changes; who may have it does.
            forever = "@sha256:" in image and auth is None
            until = float("inf") if forever else time.monotonic() + FRESH
        except HubflowError as error:
            if self._required and (needed or isinstance(error, TemporaryError)):
                raise
            _log.info("component not looked up, it runs as it is", image=image, reason=str(error))
            refused = self._guarded and isinstance(error, RefusedError)
            component, until = Component(refused=refused), time.monotonic() + RETRY
        self._known[key] = (until, component)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return component

    async def refused(self, image: str, auth: Mapping[str, str] | None) -> bool:
        """Whether the registry does not give this image to this account, as far as anybody asks. Raises TemporaryError."""
        return self._guarded and (await self.of(image, auth, needed=False)).refused


def _digest(auth: Mapping[str, str] | None) -> str:
    """Stands for an account, password included, without keeping it."""
    return hashlib.sha256(json.dumps(dict(auth), sort_keys=True).encode()).hexdigest() if auth else ""
