"""What a cluster knows that others do not: native sidecars, and images as volumes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from shared.errors import PermanentError, TemporaryError
from shared.log import get_logger
from shared.runtime.kubernetes_api import TABLE, Api, ApiError
from shared.states import Reason

SIDECARS_SINCE = [1, 29]
"""Version of Kubernetes that has native sidecars without anybody switching them on."""
MOUNTS_IMAGES = {"containerd": [2, 1], "cri-o": [1, 33]}
"""Runtime of a node -> since when it mounts images."""
LOOK_AGAIN = 600.0
"""Seconds after which the nodes are asked again; also whoever adds older ones has to wait no longer."""
DOUBT = 30.0
"""The same while the cluster does not say."""
NODES_AT_ONCE = 500
_log = get_logger("runtime")


class Features:
    """Asks when somebody wants to know, and remembers."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._sidecars: bool | None = None
        self._image_volumes = False
        self._asked_again = 0.0
        """When what is known of image volumes is too old (monotonic seconds)."""
        self._asking = asyncio.Lock()

    async def require_sidecars(self) -> None:
        """Raise PermanentError where a service would be taken for something that ends before the job begins (T14)."""
        if self._sidecars is None:
            try:
                version = await self._api.call("GET", "/version")
            except ApiError as error:
                raise TemporaryError(f"the cluster does not say its version: {error}") from error
            told = [int("".join(filter(str.isdigit, version[key])) or 0) for key in ("major", "minor")]
            self._sidecars = told >= SIDECARS_SINCE
        if not self._sidecars:
            raise PermanentError(
                "services beside a job need Kubernetes 1.29 or later; start what the job needs in its own script",
                reason=Reason.UNSUPPORTED,
            )

    async def image_volumes(self, namespace: str) -> bool:
        """Can the API server and every node mount an image into the pods of this namespace? False where we may not ask."""
        if time.monotonic() < self._asked_again:
            return self._image_volumes
        async with self._asking:
            if time.monotonic() >= self._asked_again:
                known, self._asked_again = await self._ask(namespace), time.monotonic() + LOOK_AGAIN
                if known is None:
                    self._asked_again = time.monotonic() + DOUBT
                if bool(known) != self._image_volumes:
                    _log.info("wrapper comes otherwise", by="image volume" if known else "init container")
                self._image_volumes = bool(known)
        return self._image_volumes

    async def _ask(self, namespace: str) -> bool | None:
        try:
            lacking = await runtime_without_image_volumes(self._api)
            return lacking is None and await knows_image_volumes(self._api, namespace)
        except ApiError as error:
            _log.info("not known whether images can be mounted, the wrapper comes by an init container", why=str(error))
            return None


async def runtime_without_image_volumes(api: Api) -> str | None:
    """The container runtime of a node that mounts no images, None if each does. Raises ApiError if we may not look."""
    query = {"includeObject": "None", "limit": str(NODES_AT_ONCE)}
    while True:
        # As a table of what `kubectl get nodes -o wide` shows: a node itself is ten kilobytes.
        table = await api.call("GET", "/api/v1/nodes", query=query, accept=TABLE)
        names = [each["name"] for each in table.get("columnDefinitions") or ()]
        if "Container-Runtime" not in names:
            return "unknown"
        column = names.index("Container-Runtime")
        for row in table["rows"]:
            if not mounts_images(runtime := str(row["cells"][column])):
                return runtime
        query["continue"] = table["metadata"].get("continue", "")
        if not query["continue"]:
            return None


def mounts_images(runtime: str) -> bool:
    """`runtime`: as a node tells it, `containerd://2.1.0`."""
    name, _, version = runtime.partition("://")
    numbers = [int(each) for each in version.split(".")[:2] if each.isdigit()]
    return name in MOUNTS_IMAGES and numbers >= MOUNTS_IMAGES[name]


async def knows_image_volumes(api: Api, namespace: str) -> bool:
    """Asks with a pod that is not made: an API server without the feature drops the field, and misses a kind of volume."""
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod: dict[str, Any] = {
        "metadata": {"name": "hubflow-looks-for-image-volumes"},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "none", "image": "none", "securityContext": confined}],
            "volumes": [{"name": "image", "image": {"reference": "none"}}],
        },
    }
    try:
        await api.call("POST", f"/api/v1/namespaces/{namespace}/pods", query={"dryRun": "All"}, body=pod)
    except ApiError as error:
        if error.status == 422:
            return False
        raise
    return True
