"""From what the API server says about a pod to an observation. Pure: the time is given.

The wrapper's result document decides where there is one (T07). Why a pod ended without it is pieced together from the
container's state, the pod's own reason and conditions, and our marks on it: what we have not marked, somebody else did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from shared.log import get_logger
from shared.runtime import kubernetes_body as body
from shared.runtime.protocol import Observation, Phase
from shared.runtime.results import finished, moment
from shared.states import Reason

LEAVING_PATIENCE = timedelta(seconds=20)
"""How long after its grace a deleted pod may be silent before it is given up."""
ENDING_PATIENCE = timedelta(seconds=10)
"""How long after its grace a pod that its node was to end may go on before it is deleted."""
STARTING_PATIENCE = timedelta(seconds=2)
"""The same for one that does not run: kubelet, which may be pulling or mounting, hears of a deletion at once. One that starts
at that very moment is ended, and keeps its log."""
PULL_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
                          "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"})  # fmt: skip
CREATE_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError",
                            "CreatePodSandboxError"})  # fmt: skip
HOPELESS = ("not found", "manifest unknown", "denied", "unauthorized", "authentication required", "no basic auth",
            "no match for platform", "invalid reference", "insufficient_scope", "403 forbidden", "401 unauthorized",
            "couldn't parse image")  # fmt: skip
"""What runtimes and registries say when pulling again will not help."""

_PASSING = ("exceeded quota", "status unknown for quota", "is being terminated", "error looking up service account",
            "not yet ready to handle request", "cannot create resource")  # fmt: skip
"""What is said of a quota that is used up or new, of a namespace that is gone or not ready yet, by a server that has just
started, and of rights that the operator has not given to the executor: none of this is about the pod."""
_log = get_logger("runtime")


@dataclass(frozen=True, slots=True)
class Pod:
    """What of a pod we look at; the rest of it is forgotten at once, as there may be ten thousand."""

    name: str
    namespace: str
    uid: str
    version: str
    notes: Mapping[str, str]
    """The spec's labels."""
    created: datetime | None
    deleted: datetime | None
    """When it was to be gone: the time of the deletion and its grace."""
    held: bool
    """Our finalizer is on it."""
    others: tuple[str, ...]
    """Other finalizers."""
    grace: int
    """Seconds between TERM and KILL when its node ends it."""
    secret: str
    """Name of the Secret that it waits for."""
    node: str
    phase: str
    reason: str
    message: str
    job: Mapping[str, Any]
    """State of the job's container: waiting, running or terminated; empty before kubelet knows the pod."""
    before: Mapping[str, Mapping[str, Any]]
    """The same of the init containers by name, also of services and of those that the cluster has added, with `last`: how it
    ended when it has been started again."""
    sidecars: frozenset[str]
    """Names of the init containers that go on beside the job."""
    disruption: str
    """Reason of the condition DisruptionTarget."""
    disruption_message: str
    unschedulable: str
    """What the scheduler says while it finds no node."""
    mark: str
    mark_message: str
    ending: datetime | None
    """When we told its node to end it."""
    memory: str
    """Limit of the job's container, whoever has set it: the job, a LimitRange, a webhook; "" for none."""
    containers: int
    """How many it has, init containers included, also those that the cluster has added."""

    @property
    def vanishing(self) -> bool:
        """Deleted, and nothing of ours holds it: it is gone for us."""
        return self.deleted is not None and not self.held

    @property
    def waiting(self) -> Mapping[str, str]:
        """Why the job's container, or one before it, has not started: reason and message; empty if nobody says."""
        for name, state in (*self.before.items(), (body.JOB, self.job)):
            told = state.get("waiting") or {}
            if told.get("reason") not in {None, "PodInitializing", "ContainerCreating"}:
                return told if name == body.JOB else {**told, "message": f"container {name}: {told.get('message', '')}"}
        return {}


def pod_of(document: Mapping[str, Any]) -> Pod:
    """The pod in a document of the API server."""
    metadata, status = document["metadata"], document.get("status") or {}
    notes = metadata.get("annotations") or {}
    finalizers = metadata.get("finalizers") or []
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    disruption = conditions.get("DisruptionTarget") or {}
    scheduled = conditions.get("PodScheduled") or {}
    return Pod(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        notes={key[len(body.NOTE) :]: value for key, value in notes.items() if key.startswith(body.NOTE)},
        created=moment(metadata.get("creationTimestamp")),
        deleted=moment(metadata.get("deletionTimestamp")),
        held=body.FINALIZER in finalizers,
        others=tuple(each for each in finalizers if each != body.FINALIZER),
        grace=document["spec"].get("terminationGracePeriodSeconds") or 0,
        secret=_secret_of(document["spec"]),
        node=document["spec"].get("nodeName") or "",
        phase=status.get("phase") or "",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        job=_state(status.get("containerStatuses"), body.JOB),
        before={
            each["name"]: {**(each.get("state") or {}), "last": each.get("lastState") or {}}
            for each in status.get("initContainerStatuses") or ()
        },
        sidecars=frozenset(
            each["name"]
            for each in document["spec"].get("initContainers") or ()
            if each.get("restartPolicy") == "Always"
        ),
        disruption=disruption.get("reason", "") if disruption.get("status") == "True" else "",
        disruption_message=disruption.get("message", ""),
        unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        mark=notes.get(body.ENDED_REASON, ""),
        mark_message=notes.get(body.ENDED_MESSAGE, ""),
        ending=moment(notes.get(body.ENDING_SINCE)),
        memory=_memory_of(document["spec"]),
        containers=sum(len(document["spec"].get(kind) or ()) for kind in ("containers", "initContainers")),
    )


def _memory_of(spec: Mapping[str, Any]) -> str:
    for each in spec.get("containers") or ():
        if each["name"] == body.JOB:
            limit = str(((each.get("resources") or {}).get("limits") or {}).get("memory") or "")
            return f"{int(limit) / (1 << 20):.0f} MiB" if limit.isdecimal() else limit
    return ""


def _secret_of(spec: Mapping[str, Any]) -> str:
    for volume in spec.get("volumes") or ():
        if volume["name"] == body.DOCUMENT_VOLUME:
            return str(volume["secret"]["secretName"])
    return ""


def _state(statuses: list[dict[str, Any]] | None, name: str) -> Mapping[str, Any]:
    for each in statuses or ():
        if each["name"] == name:
            state: Mapping[str, Any] = each.get("state") or {}
            return state
    return {}


def observe(pod: Pod, now: datetime) -> Observation | None:
    """What the pod shows; None if it is gone for us. One that cannot be understood makes nobody blind for the others (T17)."""
    try:
        return _observed(pod, now)
    except Exception as error:
        _log.exception("pod not understood", pod=pod.name)
        message = f"pod {pod.name} cannot be understood: {error!r}"
        if "terminated" not in pod.job:
            return Observation(pod.name, pod.uid, Phase.PENDING, pod.notes, message=message)
        return Observation(pod.name, pod.uid, Phase.FINISHED, pod.notes, reason=Reason.WRAPPER_FAILED, message=message)


def _observed(pod: Pod, now: datetime) -> Observation | None:
    if pod.vanishing:
        return None
    if "terminated" in pod.job:
        return _ended(pod, pod.job["terminated"])
    if pod.phase in {"Failed", "Succeeded"}:
        return _never_ran(pod)
    if pod.deleted is not None:
        if not pod.node:
            return _finished(pod, *_why_gone(pod, alive=True))
        if now > pod.deleted + LEAVING_PATIENCE:
            return _finished(pod, *_why_gone(pod, alive=False))
    if "running" in pod.job:
        return Observation(pod.name, pod.uid, Phase.RUNNING, pod.notes, started_at=_running_since(pod))
    return Observation(pod.name, pod.uid, Phase.PENDING, pod.notes, message=why_pending(pod))


def is_over(pod: Pod, now: datetime) -> bool:
    """Has it ended, or is it lost with its node? `now` by the API server's clock, as in all of these."""
    seen = observe(pod, now)
    return seen is not None and seen.phase is Phase.FINISHED


def why_pending(pod: Pod) -> str:
    """What the pod waits for, for people; "" if nobody says."""
    if told := pod.waiting:
        return f"{told['reason']}: {told.get('message', '')}".strip(": ")
    return pod.unschedulable


def _ended(pod: Pod, state: Mapping[str, Any]) -> Observation:
    result, code = _result(pod, state), state.get("exitCode")
    reason, message = _why_ended(pod, state)
    if result is not None:
        if code == 0 and result.get("outcome") == "exited":
            reason, message = "", ""  # it had done its work when the rest happened
        # containerd drops the carriage return before a line's end (docs/kubernetes.md).
        return finished(
            pod.name, pod.uid, pod.notes, result, reason=reason, message=message, exit_code=code, keeps_crlf=False
        )
    if not reason and state.get("reason") == "Unknown":
        reason = Reason.NODE_LOST
        message = f"pod {pod.name} on node {pod.node}: the node, or its container runtime, was restarted under the job"
    if not reason:
        reason = Reason.WRAPPER_FAILED
        message = (
            f"the command wrapper left no result; container {body.JOB} of pod {pod.name} ended with {code} "
            f"({state.get('reason', 'no reason')}): was it killed? {_words(state)}"
        ).rstrip()
    return Observation(
        pod.name,
        pod.uid,
        Phase.FINISHED,
        pod.notes,
        reason=reason,
        message=message,
        exit_code=code,
        started_at=moment(state.get("startedAt")),
        finished_at=moment(state.get("finishedAt")),
    )


def _result(pod: Pod, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The wrapper's document. A job may write to the same file: what is none, or another attempt's, counts as none."""
    try:
        result = json.loads(state.get("message") or "")
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) and result.get("attempt") == pod.name else None


def _why_ended(pod: Pod, state: Mapping[str, Any]) -> tuple[str, str]:
    """Reason and message where the cluster knows better than the exit code; "" if it does not."""
    told = state.get("reason")
    if told == "OOMKilled":
        limit = f"its limit of {pod.memory}" if pod.memory else "what its node had"
        return Reason.OOM_KILLED, f"container {body.JOB} of pod {pod.name} used more memory than {limit}"
    if told in {"StartError", "ContainerCannotRun"}:
        return Reason.START_FAILED, f"the container could not be started: {_words(state)}"
    if told == "ContainerStatusUnknown":
        return _why_gone(pod, alive=False) if not pod.reason else _of_pod(pod)
    if pod.mark or pod.disruption or pod.deleted is not None:
        return _why_gone(pod, alive=True)
    return _of_pod(pod)


def _never_ran(pod: Pod) -> Observation:
    """The pod is over, and its job's container has not ended: it never began, or its node is gone."""
    if pod.mark:
        return _finished(pod, pod.mark, pod.mark_message)
    reason, message = _of_pod(pod)
    if not reason:
        reason, message = _failed_before(pod)
    if not reason:
        reason, message = _why_gone(pod, alive=pod.disruption != "DeletionByPodGC")
    return _finished(pod, reason, message)


def _failed_before(pod: Pod) -> tuple[str, str]:
    """An init container that has failed, and the pod with it; not one that was ended with the pod."""
    leaving = pod.deleted is not None or pod.disruption
    for name, state in pod.before.items():
        ended = state.get("terminated") or {}
        code = ended.get("exitCode")
        if code and name not in pod.sidecars and not (leaving and code in {137, 143}):
            what = "which brings the command wrapper" if name == body.WRAPPER else "which the cluster has added"
            how = f"ended with {code} ({ended.get('reason', 'no reason')})"
            message = f"container {name} of pod {pod.name}, {what}, {how}: {_words(ended)}"
            return Reason.INIT_FAILED, message.rstrip(": ")
    return "", ""


_POD_REASONS: Mapping[str, Reason] = {
    "Evicted": Reason.EVICTED,
    "Preempting": Reason.EVICTED,
    "NodeShutdown": Reason.EVICTED,
    "Terminated": Reason.EVICTED,
    "Shutdown": Reason.EVICTED,
    "NodeLost": Reason.NODE_LOST,
    "NodeAffinity": Reason.EVICTED,
    "UnexpectedAdmissionError": Reason.EVICTED,
    "DeadlineExceeded": Reason.JOB_TIMEOUT,
}


def _of_pod(pod: Pod) -> tuple[str, str]:
    """By `status.reason`, which kubelet sets when it ends, or refuses, a whole pod."""
    # OutOfcpu, OutOfmemory, OutOfephemeral-storage, OutOf<device>, ...: its node had less left than the scheduler thought.
    reason = Reason.EVICTED if pod.reason.startswith("OutOf") else _POD_REASONS.get(pod.reason)
    if reason is None:
        return "", ""
    return reason, f"pod {pod.name} on node {pod.node}: {pod.reason}: {pod.message}".rstrip(": ")


def _why_gone(pod: Pod, *, alive: bool) -> tuple[str, str]:
    """Why a pod was ended from outside. `alive`: its node still tells of it."""
    if pod.mark:
        return pod.mark, pod.mark_message
    where = f"pod {pod.name}" + (f" on node {pod.node}" if pod.node else "")
    # Who is deleted with a lost node bears a condition (Kubernetes 1.26), who is deleted on a slow one does not.
    if not alive and (pod.disruption or pod.deleted is None):
        return Reason.NODE_LOST, f"{where}: the node does not answer any more, and nobody knows how the job ended"
    told = f"{pod.disruption}: {pod.disruption_message}".strip(": ")
    if pod.disruption == "DeletionByPodGC":
        return Reason.NODE_LOST, f"{where}: {told}"
    if pod.disruption:
        return Reason.EVICTED, f"{where} was evicted: {told}"
    if pod.deleted is not None:
        return (
            Reason.CONTAINER_GONE,
            f"{where} was deleted by somebody who is not Hubflow: by hand, or by a cleaning job?"
            + ("" if alive else " Its node did not tell in time how the job ended."),
        )
    return Reason.CONTAINER_GONE, f"{where} ended as {pod.phase} ({pod.reason or 'no reason'}) and left no outcome"


def _finished(pod: Pod, reason: str, message: str) -> Observation:
    """It has no end of its own. Where its node was lost, its container may be said to run for ever: its code has begun."""
    return Observation(
        pod.name, pod.uid, Phase.FINISHED, pod.notes, reason=reason, message=message, started_at=_running_since(pod)
    )


def _running_since(pod: Pod) -> datetime | None:
    return moment((pod.job.get("running") or {}).get("startedAt"))


def _words(state: Mapping[str, Any]) -> str:
    return str(state.get("message") or "")[-500:].strip()


def may_pass(refusal: str) -> bool:
    """May the same pod be taken later that the API server has forbidden (403) with these words?

    What an admission controller has against the pod itself (its security, classes, amounts, an image) stays as it is.
    """
    return any(words in refusal for words in _PASSING)


def trouble(pod: Pod) -> Reason | None:
    """What keeps a pod from starting and may pass: that an image is not pulled, or that kubelet cannot create a container."""
    told = pod.waiting.get("reason")
    if told in PULL_REASONS:
        return Reason.IMAGE_PULL
    return Reason.START_FAILED if told in CREATE_REASONS else None


def hopeless(pod: Pod, seconds: float, pull_seconds: float, create_seconds: float) -> tuple[str, str] | None:
    """Reason and message if this pod will never start by itself, and must be ended by us; None while it may.

    `seconds`: for how long it has had its trouble. Not its age, as it may have waited for its node.
    """
    if pod.deleted is not None or pod.phase != "Pending":
        return None
    if failed := _failed_service(pod):
        return failed
    what = trouble(pod)
    reason, message = pod.waiting.get("reason"), pod.waiting.get("message", "")
    if what is Reason.IMAGE_PULL:
        never = reason == "InvalidImageName" or any(word in message.lower() for word in HOPELESS)
        if never or seconds > pull_seconds:
            after = "" if never else f" after {seconds:.0f} s"
            return what, f"an image of pod {pod.name} cannot be pulled{after}: {reason}: {message}"
    if what is Reason.START_FAILED and seconds > create_seconds:
        return what, f"pod {pod.name} does not start after {seconds:.0f} s: {reason}: {message}"
    return None


def overdue(pod: Pod, now: datetime) -> bool:
    """Has its node not ended it in time? It is lost, or no kubelet (simulated, or virtual)."""
    if pod.ending is None or pod.deleted is not None:
        return False
    patience = timedelta(seconds=pod.grace) + ENDING_PATIENCE if "running" in pod.job else STARTING_PATIENCE
    return now - pod.ending > patience


def _failed_service(pod: Pod) -> tuple[str, str] | None:
    """A service that has ended while the job has not begun; kubelet would start it again and again."""
    for name, state in pod.before.items():
        ended = state.get("terminated") or state["last"].get("terminated")
        if name.startswith(body.SERVICE) and ended and not pod.job.keys() & {"running", "terminated"}:
            message = (
                f"service {name[len(body.SERVICE) :]} ended with {ended.get('exitCode')} "
                f"({ended.get('reason', 'no reason')}) before it was ready, or was not ready in time. {_words(ended)}"
            )
            return Reason.START_FAILED, message.rstrip()
    return None
