"""Attempts as pods of a Kubernetes cluster.

An attempt costs five writes: its pod, the Secret with its job document, and at the end the release of the pod and the
deletion of both. The pod comes first and is the lock: its name is the attempt's. It waits on its node for the Secret, which
belongs to it; whoever starts the same attempt again completes what is missing. A finalizer keeps the pod until `remove`:
whoever deletes it, its outcome can still be read.

What is sent is in `kubernetes_body`, what is read from it in `kubernetes_read`, the watch in `kubernetes_watch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from shared.errors import PermanentError, TemporaryError
from shared.log import get_logger
from shared.runtime import kubernetes_body as body
from shared.runtime.allowed import Allowed
from shared.runtime.kubernetes_access import Access
from shared.runtime.kubernetes_api import MERGE, METADATA, Api, ApiError
from shared.runtime.kubernetes_body import PodDefaults
from shared.runtime.kubernetes_features import Features
from shared.runtime.kubernetes_logs import Logs
from shared.runtime.kubernetes_place import Namespaces, Tenancy
from shared.runtime.kubernetes_read import (
    Pod,
    hopeless,
    is_over,
    may_pass,
    observe,
    overdue,
    pod_of,
    trouble,
    why_pending,
)
from shared.runtime.kubernetes_watch import IDLE, Pods
from shared.runtime.protocol import ContainerSpec, Observation, Phase
from shared.runtime.telling import Telling
from shared.states import Reason

LOOK_EVERY = 1.0
"""Seconds between looks at pods that do not start, and at those whose node says nothing."""
LEAVING = 0.2
_log = get_logger("runtime")


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """All that the operator decides."""

    access: Access
    defaults: PodDefaults
    tenancy: Tenancy
    allowed: Allowed
    pull_seconds: float = 300.0
    """How long pulling an image may fail before that counts as final."""
    create_seconds: float = 60.0
    """The same for what kubelet does before a container starts. Both count from when it is seen, not from the creation."""
    shared_class: str = ""
    """StorageClass (ReadWriteMany) of what jobs of a run share; "": they cannot share."""
    shared_size: str = "10Gi"
    idle: float = IDLE


class KubernetesRuntime:
    """`shared.runtime.protocol.Runtime` on a Kubernetes cluster."""

    name = "kubernetes"

    def __init__(self, config: KubernetesConfig) -> None:
        self._config = config
        self._installation = config.defaults.installation
        self.api = Api(config.access)
        self.pods = Pods(self.api, self._installation, config.tenancy.everywhere, config.idle)
        self._namespaces = Namespaces(self.api, config.tenancy, self._installation, config.defaults.service_account)
        self._features = Features(self.api)
        self._logs = Logs(self.api, self.pods, self._find)

    # starting

    async def start(self, spec: ContainerSpec) -> None:
        """See the protocol. The cluster pulls the image later; that this fails is observed."""
        body.check_name(spec.name)
        self._config.allowed.check(spec.options)
        body.secret_data(spec)
        if spec.services:
            await self._features.require_sidecars()
        namespace = await self._namespaces.ready(spec.labels.get("tenant", ""))
        claim = await self._claim(spec, namespace) if spec.shared_directory else ""
        content = body.pod(spec, await self._defaults(namespace), body.new_secret_name(spec.name), shared_claim=claim)
        for _ in range(100):
            made = await self._create_pod(spec.name, namespace, content)
            if made is None:
                made = await self._get(namespace, spec.name)
                if made is None:
                    continue
                if made.vanishing:
                    # The end of an earlier one of this name.
                    await asyncio.sleep(LEAVING)
                    continue
                if made.job.keys() & {"running", "terminated"} or made.deleted or made.mark:
                    return
            await self._create_secret(spec, made)
            return
        raise TemporaryError(f"pod {spec.name} of an earlier start does not go away; is its node lost?")

    async def _defaults(self, namespace: str) -> PodDefaults:
        """What the operator has decided, and left to the cluster to decide."""
        defaults = self._config.defaults
        if defaults.image_volume is None:
            defaults = dataclasses.replace(defaults, image_volume=await self._features.image_volumes(namespace))
        return defaults

    async def _create_pod(self, name: str, namespace: str, content: dict[str, Any]) -> Pod | None:
        """The new pod, with the containers that the cluster has added to it; None if the name is taken."""
        try:
            return pod_of(await self.api.call("POST", f"/api/v1/namespaces/{namespace}/pods", body=content))
        except ApiError as error:
            # A quota refuses before anybody looks whether the name is taken, and this very pod may have taken the last of it.
            if error.reason == "AlreadyExists" or (error.status == 403 and await self._get(namespace, name)):
                return None
            raise self._refused(name, namespace, error) from error

    def _refused(self, name: str, namespace: str, error: ApiError) -> Exception:
        text = f"the cluster refuses pod {name} in namespace {namespace}: {error}"
        if error.status in {400, 422}:
            return PermanentError(text, reason=Reason.IMAGE_PULL if ".image:" in str(error) else Reason.BAD_INPUT)
        if error.status == 403 and not may_pass(str(error)):
            return PermanentError(text, reason=Reason.UNSUPPORTED)
        if error.status in {403, 404}:
            self._doubt(namespace, error)
        return TemporaryError(text)

    def _doubt(self, namespace: str, refusal: ApiError) -> None:
        """The namespace or the account in it may be missing, or rights; where a quota is used up nothing is."""
        if "exceeded quota" not in str(refusal):
            self._namespaces.doubt(namespace)

    async def _create_secret(self, spec: ContainerSpec, pod: Pod) -> None:
        """Give the pod what it waits for, unless somebody has."""
        data = body.secret_data(spec, body.message_limit(pod.containers))
        content = body.secret(spec, self._config.defaults, pod.secret, pod.uid, data)
        try:
            await self.api.call("POST", f"/api/v1/namespaces/{pod.namespace}/secrets", body=content, accept=METADATA)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return
            text = f"the cluster refuses the secret of pod {spec.name}: {error}"
            if error.status in {400, 413, 422}:
                # It will not think better of it, and the sweep of status_watcher removes the pod.
                raise PermanentError(text, reason=Reason.BAD_INPUT) from error
            raise TemporaryError(text) from error

    async def _claim(self, spec: ContainerSpec, namespace: str) -> str:
        """The volume that the containers of a run share, made by the first of them."""
        if not self._config.shared_class:
            raise PermanentError(
                "jobs cannot share a directory here (WORKFLOW_CACHE): the operator has named no StorageClass with "
                "ReadWriteMany in HUBFLOW_KUBERNETES_SHARED_CLASS; use `cache` or artifacts instead",
                reason=Reason.UNSUPPORTED,
            )
        name = body.claim_name(self._installation, spec.shared_directory)
        for _ in range(100):
            # Looked for first: a quota that is used up refuses also what is there already.
            found = await self._claimed(namespace, name)
            if found is None:
                if await self._create_claim(namespace, name):
                    return name
                continue
            if not found["metadata"].get("deletionTimestamp"):
                return name
            # An earlier one of this name is on its way out; a pod that took it now would wait for ever.
            await asyncio.sleep(LEAVING)
        raise TemporaryError(f"the shared volume {name} is being removed and does not go away")

    async def _claimed(self, namespace: str, name: str) -> Any:
        """The volume's claim; None if there is none."""
        with contextlib.suppress(_MissingError):
            return await self._ask("GET", f"{_claims_path(namespace)}/{name}")
        return None

    async def _create_claim(self, namespace: str, name: str) -> bool:
        """False if another job of the run has made it at this moment."""
        content = body.claim(name, self._installation, self._config.shared_class, self._config.shared_size)
        try:
            await self.api.call("POST", _claims_path(namespace), body=content, accept=METADATA)
        except ApiError as error:
            if error.reason == "AlreadyExists" or (error.status == 403 and await self._claimed(namespace, name)):
                return False
            self._doubt(namespace, error)
            raise TemporaryError(f"the cluster refuses the shared volume {name}: {error}") from error
        return True

    # ending

    async def stop(self, name: str, grace: float) -> None:
        """See the protocol. What runs, or is about to, is ended by its node, and its log is kept; `watch` sees to it that this
        happens."""
        pod = await self._find(name)
        now = self.api.now()
        if pod is None or pod.vanishing or pod.deleted is not None or pod.ending is not None or is_over(pod, now):
            return
        seconds, running = max(1, math.ceil(grace)), "running" in pod.job
        message = "killed when its time to end itself was over" if running else _why_not_begun(pod)
        if not pod.node or (running and seconds < pod.grace):
            # No node has it; or its node would wait longer, and this way its log may go with it.
            await self._end(pod, Reason.CANCELLED, message, seconds)
            return
        patch = body.ending(pod.uid, Reason.CANCELLED, message, now)
        with contextlib.suppress(_MissingError):
            await self._ask("PATCH", _path(pod), body=patch, content_type=MERGE, accept=METADATA)

    async def _end(self, pod: Pod, reason: str, message: str, grace: int) -> None:
        """Delete it. The mark comes first, so that nobody takes the deletion for somebody else's."""
        path = _path(pod)
        with contextlib.suppress(_MissingError):
            await self._ask("PATCH", path, body=body.mark(pod.uid, reason, message), content_type=MERGE)
            await self._ask("DELETE", path, body=body.deletion(pod.uid, grace))

    async def remove(self, name: str) -> None:
        """See the protocol."""
        pod = (self.pods.get(name) if self.pods.live else None) or await self._find(name)
        if pod is None:
            return
        path, over = _path(pod), is_over(pod, self.api.now())
        # Nothing of it runs any more, or ever will: once it is deleted no node may have it.
        idle = "terminated" in pod.job or pod.phase in {"Failed", "Succeeded"} or not pod.node
        if pod.deleted is None or not idle:  # else it goes with the release, and its Secret with it
            if pod.secret and pod.ending is None:
                # Not left to Kubernetes' garbage collector, which would do 20 a second; that is enough for what was stopped.
                # A pod that is not of our making may have none, and the path without a name is that of all Secrets.
                with contextlib.suppress(_MissingError):
                    await self._ask(
                        "DELETE", f"/api/v1/namespaces/{pod.namespace}/secrets/{pod.secret}", accept=METADATA
                    )
            # Before the release, which then is the deletion itself: the other way round the API server writes once more.
            with contextlib.suppress(_MissingError):
                await self._ask(
                    "DELETE", path, body=body.deletion(pod.uid, 0 if over or pod.vanishing else 1), accept=METADATA
                )
        if pod.held:
            with contextlib.suppress(_MissingError):
                release = body.release(pod.uid, list(pod.others))
                await self._ask("PATCH", path, body=release, content_type=MERGE, accept=METADATA)

    async def remove_shared_directory(self, name: str) -> None:
        """See the protocol. The claim goes when the last pod that uses it has gone."""
        if not name:
            raise PermanentError("a shared directory has a name", reason=Reason.BAD_INPUT)
        if not self._config.shared_class:
            return
        claim = body.claim_name(self._installation, name)
        where = self._config.tenancy.everywhere
        if where:
            paths = [f"{_claims_path(where)}/{claim}"]
        else:
            query = {"fieldSelector": f"metadata.name={claim}", "labelSelector": body.selector(self._installation)}
            found = await self._ask("GET", "/api/v1/persistentvolumeclaims", query=query)
            paths = [f"{_claims_path(each['metadata']['namespace'])}/{claim}" for each in found["items"]]
        for path in paths:
            with contextlib.suppress(_MissingError):
                await self._ask("DELETE", path)

    # looking

    async def list(self) -> list[Observation]:
        """See the protocol. From what the watch has brought, once it runs: reading ten thousand pods takes seconds."""
        if not self.pods.live:
            await self.pods.synced()
        now = self.api.now()
        return [seen for pod in self.pods.all() if (seen := observe(pod, now)) is not None]

    async def inspect(self, name: str) -> Observation | None:
        """See the protocol."""
        pod = await self._find(name)
        return None if pod is None else observe(pod, self.api.now())

    async def watch(self) -> AsyncIterator[Observation]:
        """See the protocol. Whoever watches also ends pods that will never start."""
        telling = Telling()
        with self.pods.listen() as ear:
            minder = asyncio.create_task(self._mind(telling), name="minder")
            silent: dict[str, Pod] = {}
            try:
                while True:
                    heard = await ear.hear(LOOK_EVERY)
                    now = self.api.now()
                    states = [(name, pod) for name, pods in heard.items() for pod in pods]
                    states += [(name, pod) for name, pod in silent.items() if name not in heard]
                    for name, pod in states:
                        seen = None if pod is None else observe(pod, now)
                        if pod is not None and pod.deleted is not None and not _told_over(seen):
                            silent[name] = pod  # its node may be lost: looked at again as time goes by
                        else:
                            silent.pop(name, None)
                        for news in telling.news(name, seen):
                            yield news
                    if minder.done():
                        minder.result()
            finally:
                minder.cancel()
                await asyncio.wait([minder])

    async def _mind(self, telling: Telling) -> None:
        """End, with the reason, pods whose images cannot be had or that kubelet cannot start, or that it does not end."""
        config, since = self._config, dict[tuple[str, Reason | None], float]()
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now, clock = self.api.now(), asyncio.get_running_loop().time()
            before, since = since, {}
            for name in telling.unfinished():
                if (pod := self.pods.get(name)) is None:
                    continue
                key = pod.uid, trouble(pod)
                since[key] = before.get(key, clock)
                verdict = hopeless(pod, clock - since[key], config.pull_seconds, config.create_seconds)
                if overdue(pod, now):
                    verdict = (pod.mark, pod.mark_message)
                if verdict:
                    _log.info("pod is ended", pod=name, reason=verdict[0], because=verdict[1])
                    try:
                        await self._end(pod, *verdict, grace=1)
                    except TemporaryError as error:
                        _log.warning("pod not ended, it will be tried again", pod=name, error=str(error))

    def logs(self, name: str, offset: int = 0, *, follow: bool = False) -> AsyncIterator[bytes]:
        """See the protocol."""
        return self._logs.read(name, offset, follow=follow)

    async def ping(self) -> None:
        """See the protocol."""
        await self._ask("GET", "/version")

    async def close(self) -> None:
        """See the protocol."""
        await self.pods.close()
        await self.api.close()

    # asking

    async def _find(self, name: str) -> Pod | None:
        """The pod as it is now; None if there is none of this installation."""
        if (namespace := self._config.tenancy.everywhere) or (namespace := self._namespace_known(name)):
            return await self._get(namespace, name)
        query = {"fieldSelector": f"metadata.name={name}", "labelSelector": body.selector(self._installation)}
        found = (await self._ask("GET", "/api/v1/pods", query=query))["items"]
        return pod_of(found[0]) if found else None

    def _namespace_known(self, name: str) -> str:
        pod = self.pods.get(name)
        return pod.namespace if pod is not None else ""

    async def _get(self, namespace: str, name: str) -> Pod | None:
        try:
            found = await self._ask("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        except _MissingError:
            return None
        mine = (found["metadata"].get("labels") or {}).get(body.INSTALLATION) == body.label(self._installation)
        return pod_of(found) if mine else None

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        """A call whose refusals are temporary, but for what is missing (or is another one by now)."""
        try:
            return await self.api.call(method, path, **options)
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and "Precondition" in str(error)):
                raise _MissingError(path) from error
            raise TemporaryError(f"the cluster refuses {method} {path}: {error}") from error


class _MissingError(Exception):
    """There is no such object, or no longer that very one."""


def _why_not_begun(pod: Pod) -> str:
    why = why_pending(pod)
    return "stopped before it had started" + (f": {why}" if why else "")


def _path(pod: Pod) -> str:
    return f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"


def _claims_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"


def _told_over(seen: Observation | None) -> bool:
    return seen is None or seen.phase is Phase.FINISHED
