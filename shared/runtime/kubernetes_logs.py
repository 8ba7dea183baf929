"""Reading a pod's log through the API server.

The API has no offsets: each read begins with the first byte that the node still has, and what was read before is skipped here.
What it cannot give back stands in docs/kubernetes.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from shared.errors import TemporaryError
from shared.runtime import kubernetes_body as body
from shared.runtime.kubernetes_api import Api, ApiError
from shared.runtime.kubernetes_read import Pod
from shared.runtime.kubernetes_watch import Pods

END_TOLD_WITHIN = 3.0
"""Seconds within which kubelet tells that a container has ended whose log has ended; else the log is taken up again."""
SILENCE = 6 * 3600.0
"""Seconds without output after which a followed log is asked for anew (T57)."""
_STARTED = ("running", "terminated")


class Logs:
    """Logs of pods. `find` asks the API server for a pod as it is now."""

    def __init__(self, api: Api, pods: Pods, find: Callable[[str], Awaitable[Pod | None]]) -> None:
        self._api = api
        self._pods = pods
        self._find = find

    async def read(self, name: str, offset: int, *, follow: bool) -> AsyncIterator[bytes]:
        """See `Runtime.logs`."""
        pod = await self._find(name)
        if pod is None:
            raise KeyError(name)
        while pod is not None and not pod.vanishing:
            started = any(state in pod.job for state in _STARTED)
            ended = "terminated" in pod.job or pod.phase in {"Failed", "Succeeded"}
            if started:
                # Asked before reading: who has ended has written all.
                async for chunk in self._stream(pod, offset, follow=follow and not ended):
                    offset += len(chunk)
                    yield chunk
            if ended or not follow:
                return
            known = pod
            await self._pods.changed(name, pod.version, END_TOLD_WITHIN if started else 30.0)
            pod = await self._find(name)
            if started and pod is not None and pod.uid == known.uid and "terminated" in pod.job:
                return

    async def _stream(self, pod: Pod, offset: int, *, follow: bool) -> AsyncIterator[bytes]:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log"
        query = {"container": body.JOB, "follow": "true" if follow else "false"}
        try:
            async with self._api.request("GET", path, query=query, idle=SILENCE) as response:
                async for chunk in response.content.iter_any():
                    if offset < len(chunk):
                        yield chunk[offset:]
                    offset = max(0, offset - len(chunk))
        except ApiError as error:
            if error.status not in {400, 404}:
                raise TemporaryError(f"the log of {pod.name} cannot be read: {error}") from error
