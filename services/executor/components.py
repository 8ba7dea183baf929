"""What an image says about itself: its command, and the label that makes it a component.

Asked of the registry once for each digest, and for each tag once a minute. A Docker engine holds images that no registry
has, and knows their command itself; there, an image that cannot be asked about is simply run.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from services.executor.core import Component
from shared.errors import HubflowError, TemporaryError
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
    """`lookup` None: nobody needs to know, the runtime takes images as they are."""

    def __init__(self, lookup: Lookup | None, *, required: bool) -> None:
        self._lookup = lookup
        self._required = required
        self._known: OrderedDict[tuple[str, str], tuple[float, Component]] = OrderedDict()

    @classmethod
    @asynccontextmanager
    async def open(cls, runtime: str, insecure_registries: str) -> AsyncIterator[Components]:
        """For the runtime of that name. Plain processes have no images, so nothing is asked there."""
        if runtime == "process":
            yield cls(None, required=False)
            return
        from services.executor.registry import open_lookup

        async with open_lookup([each.strip() for each in insecure_registries.split(",") if each.strip()]) as lookup:
            yield cls(lookup, required=runtime != "docker")

    async def of(self, image: str, auth: Mapping[str, str] | None, *, needed: bool) -> Component:
        """What the image says. `needed`: its command is wanted, so a runtime that cannot look it up itself must know.

        Raises what `Lookup` raises, where the answer is needed.
        """
        if self._lookup is None:
            return Component()
        key = (image, (auth or {}).get("username", ""))
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[0]:
            self._known.move_to_end(key)
            return known[1]
        try:
            component = await self._lookup(image, auth)
            until = float("inf") if "@sha256:" in image else time.monotonic() + FRESH
        except HubflowError as error:
            if self._required and (needed or isinstance(error, TemporaryError)):
                raise
            _log.info("component not looked up, it runs as it is", image=image, reason=str(error))
            component, until = Component(), time.monotonic() + RETRY
        self._known[key] = (until, component)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return component
