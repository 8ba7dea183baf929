"""What the kubernetes runtime sends to the API server: pods, secrets and their marks, as pure functions."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.errors import PermanentError
from shared.oci.reference import parse_reference
from shared.runtime.protocol import ContainerSpec, Resources, ServiceSpec
from shared.states import Reason

DOMAIN = "hubflow.dev"
INSTALLATION = f"{DOMAIN}/installation"
"""Label: whose pod this is, among several Hubflows on one cluster."""
TENANT = f"{DOMAIN}/tenant"
RUN = f"{DOMAIN}/run"
OS = "kubernetes.io/os"
"""Label of nodes. Among them may be some with Windows, where no job could start."""
NOTE = f"label.{DOMAIN}/"
"""Prefix of annotations that hold the spec's labels: labels of Kubernetes are short and of few characters (T50)."""
FINALIZER = f"{DOMAIN}/outcome"
"""Keeps the pod, and with it its outcome, until outcome and log are stored, whoever deletes it (T01). The log is its node's,
which removes it with a deleted pod's container as soon as that has ended: what nobody has read by then is lost (T56)."""
ENDED_REASON = f"{DOMAIN}/ended-reason"
"""Annotation of a pod that we have ended: why. One without it was ended by somebody else."""
ENDED_MESSAGE = f"{DOMAIN}/ended-message"
ENDING_SINCE = f"{DOMAIN}/ending-since"
"""Annotation of a pod whose node was told to end it: when, by the API server's clock."""
JOB = "job"
"""Name of the container that runs the component."""
WRAPPER = "wrapper"
"""Name of the init container that brings the wrapper."""
FOLDER = "/.hubflow"
FOLDER_TOO = "/.workflow"
"""Where components of TencentHub look for bin/thub."""
PROGRAM = f"{FOLDER}/bin/hubflow-wrapper"
DOCUMENT = "/.hubflow-job"
DOCUMENT_VOLUME = "document"
RESULT = "/dev/termination-log"
MESSAGE_LIMIT = 4096
"""Bytes that kubelet keeps of a termination message at most."""
MESSAGES_LIMIT = 12288
"""Bytes that it keeps of all messages of a pod together; each container may have its share, also one that says nothing."""
SHARED = "/workflow-cache"
SHARED_TOO = "/workflow_cache"
SERVICE = "service-"
"""Prefix of the containers of services: init containers that go on beside the job."""
SECRET_LIMIT = 1 << 20
"""Bytes of all values of a Secret together, as the API server counts them."""
STOP_MARGIN = 5
DEADLINE_MARGIN = 3600
"""Seconds beyond the job's own time limit, for pulling, restoring and saving, after which kubelet ends the pod: a backstop
for a wrapper that does not (T12)."""
_DOCUMENT_KEY = "job.json"
_PULL_KEY = ".dockerconfigjson"
_DROPPED = ["AUDIT_WRITE", "MKNOD", "NET_RAW", "SETPCAP"]
_INSTALLER = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}}
"""No limit of cpu: with a small one, copying 8 MB takes seconds (T13)."""


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """What the operator has decided for all pods of jobs."""

    installation: str
    default_image: str
    wrapper_image: str
    pull: str = "missing"
    """The registry is asked about images that workflows name "always", or about those that a node has not (other values)."""
    image_volume: bool | None = False
    """The wrapper's image is mounted instead of copied by an init container. None: where the cluster and all its nodes can."""
    service_account: str = "hubflow-jobs"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    priority_class: str = ""
    runtime_class: str = ""
    pull_secrets: tuple[str, ...] = ()
    ephemeral_storage: str = ""
    restricted: bool = False
    lost_seconds: int = 60
    """How long a pod stays bound to a node that does not answer."""


def check_name(name: str) -> None:
    """Raise PermanentError for what can never be a pod's name."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise PermanentError(f"{name!r} cannot be a pod's name", reason=Reason.BAD_INPUT)


def label(text: str) -> str:
    """`text` as a label's value: unchanged if it can be one, else cut, with a digest that keeps it unique."""
    if re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", text)[:40].strip("-")
    return f"{readable}-{digest}" if readable else digest


def new_secret_name(pod: str) -> str:
    """Another one for each pod, so that one which takes an earlier one's name can never be given that one's document."""
    return f"{pod}-{secrets.token_hex(4)}"


def selector(installation: str) -> str:
    """Label selector of all pods of an installation."""
    return f"{INSTALLATION}={label(installation)}"


def labels(installation: str, spec_labels: Mapping[str, str]) -> dict[str, str]:
    """Labels of all that belongs to one attempt."""
    return {
        "app.kubernetes.io/managed-by": "hubflow",
        INSTALLATION: label(installation),
        TENANT: label(spec_labels.get("tenant", "")),
        RUN: label(spec_labels.get("run", "")),
    }


def pod(spec: ContainerSpec, defaults: PodDefaults, secret_name: str, *, shared_claim: str = "") -> dict[str, Any]:
    """The pod of an attempt. It waits on its node for the Secret of this name."""
    options, grace = spec.options, float(spec.document.get("grace_s") or 0)
    notes = {f"{NOTE}{key}": value for key, value in spec.labels.items()}
    body: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": defaults.service_account,
        "terminationGracePeriodSeconds": math.ceil(grace) + STOP_MARGIN,
        "activeDeadlineSeconds": _deadline(spec, grace),
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [
            *([] if defaults.image_volume else [_installer(defaults)]),
            *(_service(service, defaults, secret_name) for service in spec.services),
        ],
        "containers": [_job(spec, defaults, shared=bool(shared_claim))],
        "volumes": _volumes(defaults, secret_name, shared_claim),
        "nodeSelector": {OS: "linux", **defaults.node_selector, **options.get("node_selector", {})},
        "tolerations": [*_lost(defaults), *defaults.tolerations, *options.get("tolerations", [])],
        "imagePullSecrets": [{"name": name} for name in defaults.pull_secrets],
    }
    if _accounts(spec):
        body["imagePullSecrets"].insert(0, {"name": secret_name})
    if spec.services:
        body["hostAliases"] = [{"ip": "127.0.0.1", "hostnames": [service.name for service in spec.services]}]
    classes = {
        "priorityClassName": options.get("priority_class") or defaults.priority_class,
        "runtimeClassName": options.get("runtime_class") or defaults.runtime_class,
    }
    body |= {key: value for key, value in classes.items() if value}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "labels": labels(defaults.installation, spec.labels),
            "annotations": notes,
            "finalizers": [FINALIZER],
        },
        "spec": body,
    }


def _deadline(spec: ContainerSpec, grace: float) -> int | None:
    limit = float(spec.document.get("timeout_s") or 0)
    return math.ceil(limit + grace) + DEADLINE_MARGIN if limit else None


def _lost(defaults: PodDefaults) -> list[dict[str, Any]]:
    """Without these, Kubernetes itself waits 5 minutes before it gives up a pod on a lost node (T05)."""
    return [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute",
         "tolerationSeconds": defaults.lost_seconds}
        for key in ("not-ready", "unreachable")
    ]  # fmt: skip


def _installer(defaults: PodDefaults) -> dict[str, Any]:
    return {
        "name": WRAPPER,
        "image": defaults.wrapper_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/hubflow-wrapper", "install", f"{FOLDER}/bin"],
        "resources": _INSTALLER,
        "securityContext": _security(defaults) | {"readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "hubflow", "mountPath": FOLDER}],
    }


def _job(spec: ContainerSpec, defaults: PodDefaults, *, shared: bool) -> dict[str, Any]:
    security = _security(defaults)
    if spec.options.get("read_only_root"):
        security["readOnlyRootFilesystem"] = True
    folders = [(FOLDER, "hubflow"), (FOLDER_TOO, "hubflow"), (DOCUMENT, DOCUMENT_VOLUME)]
    mounts = [{"name": name, "mountPath": path} for path, name in folders]
    if defaults.image_volume:
        mounts += [{"name": "wrapper", "mountPath": f"{path}/bin"} for path in (FOLDER, FOLDER_TOO)]
    if shared:
        mounts += [{"name": "shared", "mountPath": path} for path in (SHARED, SHARED_TOO)]
    return {
        "name": JOB,
        "image": spec.image or defaults.default_image,
        "imagePullPolicy": _pull_policy(spec, defaults),
        "command": [PROGRAM, "run", f"{DOCUMENT}/{_DOCUMENT_KEY}"],
        "resources": _resources(spec, defaults),
        "securityContext": security,
        "terminationMessagePath": RESULT,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }


def _service(service: ServiceSpec, defaults: PodDefaults, secret_name: str) -> dict[str, Any]:
    """A native sidecar: the next container starts when this one is ready, and it ends when the job has (T14)."""
    environment = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret_name, "key": _service_key(service, name)}}}
        for name in service.env
    ]
    amounts = _amounts(service.resources)
    content: dict[str, Any] = {
        "name": f"{SERVICE}{service.name}",
        "image": service.image,
        "imagePullPolicy": _pull_policy(service, defaults),
        "restartPolicy": "Always",
        "env": environment,
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": _security(defaults),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if service.command:
        content["command"] = list(service.command)
    if service.port or service.check:
        ask = {"exec": {"command": list(service.check)}} if service.check else {"tcpSocket": {"port": service.port}}
        tries = max(1, math.ceil(service.ready_seconds))
        content["startupProbe"] = {**ask, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": tries}
    return content


def _pull_policy(spec: ContainerSpec | ServiceSpec, defaults: PodDefaults) -> str:
    """Whether the node asks the registry about an image that it has. The operator's own (no name) is everybody's."""
    return "Always" if spec.image and (defaults.pull == "always" or spec.ask_registry) else "IfNotPresent"


def _service_key(service: ServiceSpec, variable: str) -> str:
    """Where a service's variable stands in the Secret."""
    return f"{SERVICE}{service.name}.{variable}"


def _accounts(spec: ContainerSpec) -> list[tuple[str, Mapping[str, str]]]:
    """Images with the account that pulls them."""
    images = [(spec.image, spec.registry_auth), *((each.image, each.registry_auth) for each in spec.services)]
    return [(image, auth) for image, auth in images if auth]


def _amounts(resources: Resources) -> dict[str, str]:
    amounts = {}
    if resources.cpu_millis:
        amounts["cpu"] = f"{resources.cpu_millis}m"
    if resources.memory_bytes:
        amounts["memory"] = str(resources.memory_bytes)
    return amounts


def _resources(spec: ContainerSpec, defaults: PodDefaults) -> dict[str, Any]:
    """What is asked for is also the limit, so that one job cannot live on what another was promised."""
    amounts = _amounts(spec.resources)
    if storage := spec.options.get("ephemeral_storage") or defaults.ephemeral_storage:
        amounts["ephemeral-storage"] = storage
    return {"requests": amounts, "limits": amounts}


def _security(defaults: PodDefaults) -> dict[str, Any]:
    """What Pod Security calls restricted, or as much of it as images need that run as root: baseline, and no new privileges."""
    if defaults.restricted:
        return {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": _DROPPED}}


def _volumes(defaults: PodDefaults, secret_name: str, shared_claim: str) -> list[dict[str, Any]]:
    items = [{"key": _DOCUMENT_KEY, "path": _DOCUMENT_KEY}]
    volumes: list[dict[str, Any]] = [
        {"name": "hubflow", "emptyDir": {}},
        {"name": DOCUMENT_VOLUME, "secret": {"secretName": secret_name, "items": items, "defaultMode": 0o444}},
    ]
    if defaults.image_volume:
        volumes.append({"name": "wrapper", "image": {"reference": defaults.wrapper_image}})
    if shared_claim:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": shared_claim}})
    return volumes


def message_limit(containers: int) -> int:
    """Bytes that kubelet keeps of the job's termination message in a pod of so many containers, init containers included."""
    return min(MESSAGE_LIMIT, MESSAGES_LIMIT // containers)


def secret_data(spec: ContainerSpec, message_limit: int = MESSAGE_LIMIT) -> dict[str, bytes]:
    """What the pod waits for: the job document, the variables of its services, and the accounts for pulling.

    `message_limit`: largest result document in bytes. Raises PermanentError for what no Secret can hold; to be asked before
    there is a pod, which would wait in vain. A smaller `message_limit` makes nothing larger.
    """
    data = {_DOCUMENT_KEY: json.dumps(_document(spec, message_limit)).encode()}
    for service in spec.services:
        data |= {_service_key(service, name): value.encode() for name, value in service.env.items()}
    if accounts := _accounts(spec):
        data[_PULL_KEY] = _pull_config(accounts)
    if (size := sum(map(len, data.values()))) > SECRET_LIMIT:
        raise PermanentError(
            f"what the job is told has {size} bytes, and Kubernetes takes {SECRET_LIMIT}: give it fewer or smaller inputs, "
            f"caches and artifacts, or its services smaller variables (its document alone has {len(data[_DOCUMENT_KEY])})",
            reason=Reason.BAD_INPUT,
        )
    return data


def secret(
    spec: ContainerSpec, defaults: PodDefaults, name: str, uid: str, data: Mapping[str, bytes]
) -> dict[str, Any]:
    """The Secret with this data, for the pod with this uid. It goes with the pod."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": spec.name, "uid": uid}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "labels": labels(defaults.installation, spec.labels),
            "ownerReferences": [owner],
        },
        "immutable": True,
        # One Secret for all: a type that pulls may have further keys.
        "type": "kubernetes.io/dockerconfigjson" if _PULL_KEY in data else "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def _document(spec: ContainerSpec, message_limit: int) -> dict[str, Any]:
    environment = dict(spec.document.get("env") or {})
    if spec.shared_directory:
        environment["WORKFLOW_CACHE"] = SHARED
    return {
        **spec.document,
        "env": environment,
        "result_path": RESULT,
        "running_path": "",
        "output_path": f"{FOLDER}/outputs",
        "message_limit": message_limit,
        "drain_log": True,
    }


def _pull_config(accounts: list[tuple[str, Mapping[str, str]]]) -> bytes:
    """A registry's first account is that of its host; another is that of its image's repository, which kubelet prefers."""
    auths: dict[str, Mapping[str, str]] = {}
    for image, auth in accounts:
        first, slash, _ = image.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        account = base64.b64encode(f"{auth['username']}:{auth['password']}".encode()).decode()
        entry = {**auth, "auth": account}
        if auths.setdefault(first if named else "https://index.docker.io/v1/", entry) != entry:
            reference = parse_reference(image)
            auths[f"{reference.registry}/{reference.repository}"] = entry
    return json.dumps({"auths": auths}).encode()


def claim(name: str, installation: str, storage_class: str, size: str) -> dict[str, Any]:
    """The volume that containers of one run share."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": {INSTALLATION: label(installation)}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
        },
    }


def claim_name(installation: str, shared_directory: str) -> str:
    """Readable, and unique whatever characters the directory's name has."""
    digest = hashlib.sha256(f"{installation}/{shared_directory}".encode()).hexdigest()[:16]
    readable = re.sub(r"[^a-z0-9]+", "-", shared_directory.lower())[:32].strip("-")
    return f"hubflow-shared-{readable}-{digest}"


def mark(uid: str, reason: str, message: str) -> dict[str, Any]:
    """Patch: we are about to end this very pod, and why."""
    return {"metadata": {"uid": uid, "annotations": {ENDED_REASON: reason, ENDED_MESSAGE: message[:1000]}}}


def ending(uid: str, reason: str, message: str, since: datetime) -> dict[str, Any]:
    """Patch: this very pod's time is over. Its node ends it, with the grace of its spec, and keeps its log: of a pod that is
    deleted it removes the log as soon as the job has ended."""
    patch = mark(uid, reason, message)
    patch["metadata"]["annotations"][ENDING_SINCE] = since.isoformat()
    return patch | {"spec": {"activeDeadlineSeconds": 1}}


def release(uid: str, others: list[str]) -> dict[str, Any]:
    """Patch: this very pod may vanish."""
    return {"metadata": {"uid": uid, "finalizers": others or None}}


def deletion(uid: str, grace: int) -> dict[str, Any]:
    """Body of a DELETE of this very pod."""
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": grace,
        "preconditions": {"uid": uid},
        "propagationPolicy": "Background",
    }
