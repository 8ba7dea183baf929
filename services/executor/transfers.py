"""The presigned URLs by which a job's wrapper moves caches and artifacts: it never holds credentials of the object storage."""

from __future__ import annotations

from typing import Any

from services.executor.core import Claim, Composed, Facts, transfer_seconds
from shared import object_keys
from shared.errors import PermanentError
from shared.objects import ObjectStore
from shared.states import Reason
from shared.workflow.model import Artifact, Cache, Fetch, Job

PART_BYTES = 16 << 20
PARTS = 640
"""10 GiB at most for one archive; each part costs 64 bytes of signature in the job document."""
ROOMY = frozenset({"process", "docker"})
"""Runtimes whose place for the result document takes all that the wrapper may write."""


async def transfers_of(
    objects: ObjectStore, claimed: Claim, job: Job, composed: Composed, facts: Facts
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(restore, save) of the job document. Asks the object storage only if the job has any.

    Raises PermanentError(BadInput) for an artifact that was not kept, TemporaryError while the storage is away.
    """
    seconds = transfer_seconds(job)
    restore: list[dict[str, Any]] = []
    save: list[dict[str, Any]] = []
    for cache, name in zip(job.cache, composed.caches, strict=True):
        key = _cache_key(claimed, cache, name)
        restore.append(await _restored_cache(objects, cache, name, key, seconds))
        save.append(await _saved_cache(objects, cache, name, key, seconds))
    for fetch in job.fetch:
        restore += await _fetched(objects, claimed, fetch, facts, seconds)
    save += [await _saved_artifact(objects, claimed, artifact, seconds) for artifact in job.artifacts]
    return restore, save


async def overflow_of(objects: ObjectStore, runtime: str, claimed: Claim, job: Job) -> dict[str, str] | None:
    """Where a result document goes that the runtime has no room for; None where it always has."""
    if runtime in ROOMY:
        return None
    key = object_keys.result(claimed.tenant, claimed.run, claimed.container)
    return {"key": key, "put_url": await objects.presign_put(key, transfer_seconds(job))}


def _cache_key(claimed: Claim, cache: Cache, name: str) -> str:
    if cache.scope == "workflow":
        return object_keys.workflow_cache(claimed.tenant, claimed.workflow, name)
    return object_keys.run_cache(claimed.tenant, claimed.run, name)


async def _restored_cache(objects: ObjectStore, cache: Cache, name: str, key: str, seconds: int) -> dict[str, Any]:
    url = await objects.presign_get(key, seconds)
    return {"kind": "cache", "name": name, "path": cache.path, "url": url, "required": False}


async def _saved_cache(objects: ObjectStore, cache: Cache, name: str, key: str, seconds: int) -> dict[str, Any]:
    # Saved also after a hit: a name without a digest in it would else stay as it was at first, for ever.
    upload = await objects.create_upload(key, PART_BYTES, PARTS, seconds)
    return {
        "kind": "cache", "name": name, "base": cache.path, "paths": list(cache.paths), "when": "success",
        "required": False, "skip_if_restored": False, "upload": upload.document(), "index_upload": None,
    }  # fmt: skip


async def _fetched(
    objects: ObjectStore, claimed: Claim, fetch: Fetch, facts: Facts, seconds: int
) -> list[dict[str, Any]]:
    source = claimed.model.artifact_source(fetch)
    kept = facts.artifacts.get((source, fetch.artifact))
    if kept is None:
        if fetch.optional:
            return []
        raise PermanentError(
            f"the job {source} has kept no artifact {fetch.artifact}: it was skipped or failed, or `when` of the artifact "
            "did not apply; make the fetch `optional` if the job can do without it",
            reason=Reason.BAD_INPUT,
        )
    url = await objects.presign_get(kept.key, seconds)
    entry = {"kind": "artifact", "name": fetch.artifact, "path": fetch.path, "url": url, "required": not fetch.optional}
    return [{**entry, "sha256": kept.sha256}]


async def _saved_artifact(objects: ObjectStore, claimed: Claim, artifact: Artifact, seconds: int) -> dict[str, Any]:
    place = (claimed.tenant, claimed.run, claimed.job, claimed.attempt, artifact.name)
    upload = await objects.create_upload(object_keys.artifact(*place), PART_BYTES, PARTS, seconds)
    index = await objects.presign_put(object_keys.artifact_index(*place), seconds)
    return {
        "kind": "artifact", "name": artifact.name, "base": artifact.path, "paths": list(artifact.paths),
        "when": artifact.when, "required": artifact.required, "skip_if_restored": False,
        "upload": upload.document(), "index_upload": {"put_url": index},
    }  # fmt: skip
