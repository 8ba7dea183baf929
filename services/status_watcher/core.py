"""What an observation means: pure.

The wrapper's result document comes from inside the job's container, so everything in it is bounded and checked here. Where
runtime and document disagree, the document's exit code decides (T07): the user's code has ended then, whatever happened to
its container afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.outcomes import KeptArtifact, Outcome, clean
from shared.runtime.protocol import Observation, Phase
from shared.states import JobState, Reason

OUTPUT_KEYS = 256
OUTPUT_BYTES = 65536
OUTPUTS_BYTES = 262144
"""The wrapper refuses more; a document that has more was not written by it."""
RESULT_TEXT = 4096
RESULT_ITEMS = 256
RESULT_KEYS = (
    "version",
    "outcome",
    "exit_code",
    "signal",
    "started",
    "phase",
    "message",
    "job_result",
    "log_bytes",
    "log_crlf",
)
SHARES = tuple("0123456789abcdef")
"""The parts into which replicas divide the work (the rows of `watcher_shares`)."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_ARTIFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
_NEVER_BEGAN = frozenset({Reason.START_FAILED, Reason.INIT_FAILED, Reason.IMAGE_PULL})
"""Some places tell a moment of start for these, too."""
_OF_THE_PLACE = frozenset({Reason.NODE_LOST, Reason.EVICTED, Reason.CONTAINER_GONE})

_WRAPPER_FAILURES: Mapping[str, tuple[Reason, str]] = {
    "start_failed": (
        Reason.START_FAILED,
        "the command could not be started; check that it is in the image and executable",
    ),
    "restore_failed": (Reason.RESTORE_FAILED, "a cache or artifact could not be fetched; try again"),
    "save_failed": (Reason.SAVE_FAILED, "an artifact could not be kept; check its paths"),
    "output_too_large": (Reason.OUTPUT_TOO_LARGE, "an output is too large; keep large data as an artifact"),
    "wrapper_failed": (
        Reason.WRAPPER_FAILED,
        "the command wrapper failed; try again, and tell the operator if it stays",
    ),
}
_EXIT_HINTS = {
    126: "a file that was to be run is not executable: `chmod +x`, or name its interpreter",
    127: "a program was not found: is it in the image and on its PATH?",
    137: "a process was killed, often for lack of memory: give the job more, or let it do less at once",
    139: "a process crashed (segmentation fault): is the image made for this architecture?",
    143: "a process was told to end (SIGTERM)",
}


def outcome_of(seen: Observation) -> Outcome:
    """The outcome that a FINISHED or GONE observation tells."""
    document = seen.result if isinstance(seen.result, Mapping) else None
    if document is not None and document.get("outcome"):
        state, reason, message = _of_document(document, seen)
    else:
        state, reason, message = _without_document(seen)
    started = document.get("started") if document is not None else None
    untold = document is None or seen.reason == Reason.CONTAINER_GONE
    if untold and seen.started_at is not None and seen.reason not in _NEVER_BEGAN:
        # Whoever could have seen it run was down, or too late; its code must not begin again for nothing.
        started = True
    return Outcome(
        container=seen.name,
        uid=seen.uid,
        state=state,
        reason=reason,
        message=clean(message),
        exit_code=_exit_code(seen),
        started=started if isinstance(started, bool) else None,
        started_at=seen.started_at,
        ended_at=seen.finished_at,
        outputs=_outputs(document),
        result=_without_outputs(document),
        artifacts=_artifacts(document),
    )


def overflowed(seen: Observation) -> bool:
    """Is this result document only the beginning of one that was too large for its place?"""
    return isinstance((seen.result or {}).get("overflow"), Mapping)


def stands_for(new: Observation, old: Observation | None) -> bool:
    """Does `new` take the place of `old` (of the same container)? An end is never forgotten for what came before it (T18)."""
    return old is None or _RANK[new.phase] >= _RANK[old.phase]


_RANK = {Phase.PENDING: 0, Phase.RUNNING: 1, Phase.GONE: 2, Phase.FINISHED: 3}


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database holds about a container that the runtime lists."""

    uid: str
    """Of the container seen running, or ""."""
    live: bool
    """Its attempt and its run are not over."""
    removed: bool
    """It has been removed once already."""
    told: bool
    """Its outcome is recorded."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the database holds about a container that the runtime has accepted and that has not ended."""

    uid: str
    """Of the container seen running, or ""."""
    submitted_at: datetime
    started_at: datetime | None
    """When it began, if it was seen running."""


def share_of(container: str) -> str:
    """The share that a container belongs to. Names of attempts end with a digest, so its last digit spreads them evenly."""
    return container[-1:] if container[-1:] in SHARES else SHARES[0]


def is_orphan(seen: Observation, standing: Standing | None) -> bool:
    """Has nobody any use for this container? Never true of one whose attempt is alive (T91)."""
    if standing is None:
        return True
    another = bool(standing.uid and seen.uid and standing.uid != seen.uid)
    if seen.phase is Phase.FINISHED:
        return another or standing.removed
    return another or not standing.live


def _of_document(document: Mapping[str, Any], seen: Observation) -> tuple[str, str, str]:
    outcome, told = str(document["outcome"]), _text(document.get("message"))
    if outcome == "exited" and seen.exit_code == 0:
        return _of_success(document)
    if seen.reason == Reason.OOM_KILLED and outcome in {"exited", "signaled", "wrapper_failed"}:
        return JobState.FAILED, Reason.OOM_KILLED, seen.message or told or _OOM
    if outcome == "exited":
        return JobState.FAILED, Reason.EXIT_CODE, _exit_sentence(seen.exit_code, told)
    if outcome == "signaled":
        signal = _text(document.get("signal")) or "unknown"
        told = told or f"the process was ended by signal {signal}; nobody asked Hubflow for that: look at the log's end"
        return JobState.FAILED, Reason.SIGNAL, told
    if outcome == "timed_out":
        told = told or "it ran longer than its `timeout`; raise it, or make the job quicker"
        return JobState.TIMED_OUT, Reason.JOB_TIMEOUT, told
    if outcome == "stopped":
        # Who asked for it is the scheduler's to say; without a request of ours the place itself has ended it.
        if seen.reason in _OF_THE_PLACE:
            return JobState.LOST, seen.reason, seen.message or told or _GONE
        if seen.reason == Reason.JOB_TIMEOUT:
            return JobState.TIMED_OUT, seen.reason, seen.message or told
        return JobState.CANCELLED, Reason.CANCELLED, told or "it was told to end and has ended"
    reason, otherwise = _WRAPPER_FAILURES.get(
        outcome,
        (
            Reason.WRAPPER_FAILED,
            f"the command wrapper told an outcome `{outcome[:50]}` that this version does not know",
        ),
    )
    return JobState.FAILED, reason, told or otherwise


_GONE = "the place where it ran is gone; try again"
_OOM = "it used more memory than its limit; raise `resources.memory`, or let the job need less"


def _of_success(document: Mapping[str, Any]) -> tuple[str, str, str]:
    if document.get("job_result") is False:
        return (
            JobState.FAILED,
            Reason.JOB_RESULT_FALSE,
            "the process ended with 0 but printed the output JOB_RESULT = false; see its log for why",
        )
    return JobState.SUCCEEDED, "", ""


def _without_document(seen: Observation) -> tuple[str, str, str]:
    if seen.reason in _OF_THE_PLACE:
        return JobState.LOST, seen.reason, seen.message or _GONE
    if seen.reason == Reason.JOB_TIMEOUT:
        return JobState.TIMED_OUT, seen.reason, seen.message or "it ran longer than its `timeout`"
    if seen.reason == Reason.CANCELLED:
        return JobState.CANCELLED, Reason.CANCELLED, seen.message or "it was stopped before it could tell how it ended"
    if seen.reason == Reason.OOM_KILLED:
        return JobState.FAILED, Reason.OOM_KILLED, seen.message or _OOM
    if seen.reason in {reason.value for reason in Reason}:
        return JobState.FAILED, seen.reason, seen.message or f"it failed with {seen.reason}; try again"
    status = "an unknown status" if seen.exit_code is None else f"status {seen.exit_code}"
    message = seen.message or f"the container ended with {status} and left no result; try again, then ask the operator"
    return JobState.FAILED, Reason.WRAPPER_FAILED, message


def _exit_code(seen: Observation) -> int | None:
    code = seen.exit_code
    return code if isinstance(code, int) and -(2**31) <= code < 2**31 else None


def _exit_sentence(code: int | None, told: str) -> str:
    if told:
        return told
    hint = _EXIT_HINTS.get(code or 0, "its log says why")
    return f"the process ended with status {code}: {hint}"


def _outputs(document: Mapping[str, Any] | None) -> dict[str, str]:
    given = document.get("outputs") if document is not None else None
    outputs: dict[str, str] = {}
    if not isinstance(given, Mapping):
        return outputs
    room = OUTPUTS_BYTES
    for key, value in given.items():
        if not (isinstance(key, str) and isinstance(value, str) and _NAME.match(key)):
            continue
        text = clean(value)
        size = len(key) + len(text.encode())
        if size > OUTPUT_BYTES + 200 or size > room or len(outputs) == OUTPUT_KEYS:
            continue
        room -= size
        outputs[key] = text
    return outputs


def _artifacts(document: Mapping[str, Any] | None) -> tuple[KeptArtifact, ...]:
    saved = document.get("saved") if document is not None else None
    kept: dict[str, KeptArtifact] = {}
    for item in saved[:RESULT_ITEMS] if isinstance(saved, list) else ():
        if not isinstance(item, Mapping) or item.get("kind") != "artifact" or item.get("error"):
            continue
        name = item.get("name")
        if not isinstance(name, str) or not _ARTIFACT.match(name):
            continue
        sha256 = _text(item.get("sha256"))
        kept[name] = KeptArtifact(
            name, _count(item.get("bytes")), sha256 if _SHA256.match(sha256) else "", _count(item.get("files"))
        )
    return tuple(kept.values())


def _without_outputs(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The document for the record: its known fields only, each of bounded size."""
    if document is None:
        return None
    kept: dict[str, Any] = {}
    for key in RESULT_KEYS:
        value = document.get(key)
        if isinstance(value, (str, int, float)) or value is None:
            kept[key] = _text(value) if isinstance(value, str) else clean(value)
    for key in ("restored", "saved", "warnings"):
        items = document.get(key)
        if isinstance(items, list):
            kept[key] = [_bounded(item) for item in items[:RESULT_ITEMS]]
    kept["timings"] = _bounded(document.get("timings"))
    return kept


def _bounded(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {_text(key)[:100]: _bounded_leaf(value) for key, value in list(item.items())[:20]}
    return _bounded_leaf(item)


def _bounded_leaf(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    return clean(value) if isinstance(value, (int, float)) else None


def _text(value: Any) -> str:
    cleaned: str = clean(value) if isinstance(value, str) else ""
    return cleaned[:RESULT_TEXT]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**62 else 0
