"""The keys of everything that Hubflow keeps in object storage: derived, so that writing twice is writing once.

<tenant>/runs/<run>/artifacts/<job>/<attempt>/<name>        files that jobs keep
<tenant>/runs/<run>/artifact-indexes/<job>/<attempt>/<name> what is in them
<tenant>/runs/<run>/caches/<name>                           shared by the jobs of one run, removed after it
<tenant>/caches/<workflow>/<name>                           shared by the runs of one workflow
<tenant>/runs/<run>/results/<container>                     result documents too large for their place
<tenant>/runs/<run>/logs/<job>/<attempt>/<offset>-<size>    pieces of a log
"""

from __future__ import annotations

import hashlib
import re
import uuid

_LONGEST = 160
"""Bytes of one part; S3 allows 1024 for a whole key, and names may have 200 characters of any script."""
_UNSAFE = re.compile("[/\x00-\x1f\x7f\ufffe\uffff]")
"""What no part holds. S3 is told in XML 1.0 what to remove, which has no control characters and reads a carriage return as a
line feed: one such key, and nothing of the same request is removed."""
_DIGESTED = re.compile(r"\.[0-9a-f]{16}\Z")
_MAY_BE_CUT = 120
"""Bytes of a part from which on its name may have been a longer one."""


def artifact(tenant: str, run: uuid.UUID, job: str, attempt: int, name: str) -> str:
    """An artifact's archive."""
    return f"{tenant}/runs/{run}/artifacts/{_part(job)}/{attempt}/{_part(name)}"


def artifact_index(tenant: str, run: uuid.UUID, job: str, attempt: int, name: str) -> str:
    """The list of entries of an artifact."""
    return f"{tenant}/runs/{run}/artifact-indexes/{_part(job)}/{attempt}/{_part(name)}"


def run_caches(tenant: str, run: uuid.UUID) -> str:
    """Prefix of the caches that end with a run."""
    return f"{tenant}/runs/{run}/caches/"


def run_cache(tenant: str, run: uuid.UUID, name: str) -> str:
    """A cache of one run."""
    return run_caches(tenant, run) + _part(name)


def workflow_cache(tenant: str, workflow: str, name: str) -> str:
    """A cache of all runs of one workflow."""
    return f"{tenant}/caches/{_part(workflow)}/{_part(name)}"


def result(tenant: str, run: uuid.UUID, container: str) -> str:
    """A result document that did not fit into the termination message."""
    return f"{tenant}/runs/{run}/results/{container}"


def log_segment(tenant: str, run: uuid.UUID, job: str, attempt: int, offset: int, size: int) -> str:
    """Bytes `offset` to `offset + size` of a log. The size is in the key, so that the same key always has the same bytes."""
    return f"{tenant}/runs/{run}/logs/{_part(job)}/{attempt}/{offset:012}-{size}"


def file(tenant: str, namespace: str, repo: str, path: str, tag: str) -> str:
    """A file of a component's repository."""
    return f"{tenant}/files/{_part(namespace)}/{_part(repo)}/{_part(path)}/{_part(tag)}"


def _part(name: str) -> str:
    """A name as one part of a key: safe in XML, without `/`, never `.` or `..`, of bounded length, different for different
    names."""
    safe = _UNSAFE.sub("~", name)
    if safe == name and name not in {".", ".."} and len(name.encode()) <= _LONGEST and not _looks_made(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return safe.encode()[: _LONGEST - 20].decode(errors="ignore").strip(".") + "." + digest


def _looks_made(name: str) -> bool:
    """Whether a name, kept as it is, could be the part that was made of another one. Only these, and not all that end like a
    digest: what is stored by such a name has to be found again."""
    made = _DIGESTED.search(name)
    return made is not None and (made.start() == 0 or "~" in name or len(name.encode()) > _MAY_BE_CUT)
