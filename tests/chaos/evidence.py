"""What is left to see when it is quiet again: from the API, the broker, the webhook receiver, the witness, the runtime's own
side, the object storage, and (for leftovers only) the tables of the database.

Each check gives findings: a kind (`lost`, `doubled`, ...: the keys of build/chaos.json) and a sentence for people.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.artifact import opened_archive
from shared.db.database import Database
from shared.objects import ObjectStore
from tests.chaos.client import Client, RefusedError
from tests.chaos.ears import Receiver, Said, Subscriber
from tests.chaos.load import API, TENANTS, WEBHOOKS, Load, Planned
from tests.chaos.place import Place, processes_of_jobs
from tests.chaos.pods import PodEngine
from tests.chaos.workflows import ENDED_EARLY, End, JobEnd

KINDS = ("lost", "doubled", "stuck", "wrong_state", "event_gaps", "log_gaps", "leftovers")
BEFORE_ITS_CODE = frozenset({"NodeLost", "Evicted", "ContainerGone", "WrapperFailed", "RestoreFailed"})
"""Reasons for which an attempt may be made again although nobody asked for it, if its code had not begun."""

_MISSING = re.compile(r"\n\[hubflow\] at least \d+ of the \d+ bytes that this job printed are missing above: .*\n\Z")
"""What a log that was cut off says of itself."""
_OF_THE_WRAPPER = re.compile(r"^hubflow-wrapper: .*\n", re.MULTILINE)
"""What the wrapper says of its own trouble, where its stderr is in the log: that S3 is away and it tries again, for one."""


@dataclass(slots=True)
class Findings:
    """What is wrong, by kind; and what was looked at."""

    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    looked: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, sentence: str) -> None:
        self.found[kind].append(sentence)

    @property
    def good(self) -> bool:
        return not any(self.found.values())


# ---------------------------------------------------------------- runs and attempts


async def look_at_runs(findings: Findings, load: Load, said: Sequence[Said]) -> None:
    """Every run in the state that the model says, every attempt with one container, every log and artifact whole."""
    begun = Counter((each.run, each.job, each.attempt) for each in said if each.what == "begin")
    gate = asyncio.Semaphore(12)

    async def look(run: Planned) -> None:
        async with gate:
            await _look_at_run(findings, load.clients[run.tenant], run, begun)

    async with asyncio.TaskGroup() as group:
        for run in load.runs:
            group.create_task(look(run))
    for (run_id, job, attempt), times in begun.items():
        if times > 1:
            findings.add("doubled", f"run {run_id} job {job} attempt {attempt} began {times} times")
    await _look_for_others(findings, load, {each.run for each in said})


async def _look_at_run(findings: Findings, client: Client, run: Planned, begun: Counter[tuple[str, str, int]]) -> None:
    what = f"{run.kind.name} run {run.id or '(never accepted)'} of {run.tenant}"
    if run.trouble:
        findings.add("stuck" if "not over" in run.trouble else "wrong_state", f"{what}: {run.trouble}")
    if not run.id:
        return
    findings.looked["runs"] += 1
    try:
        view = await client.get(f"{API}/runs/{run.id}")
    except RefusedError as error:
        findings.add("lost", f"{what}: {error}")
        return
    end = run.end
    if not view["finished_at"]:
        findings.add("stuck", f"{what}: still {view['state']} ({view['reason']}: {view['message']})")
        return
    if view["state"] not in end.states or (end.reasons is not None and view["reason"] not in end.reasons):
        findings.add(
            "wrong_state",
            f"{what} is {view['state']} ({view['reason']}: {view['message'][:200]}), expected {sorted(end.states)} "
            f"{sorted(end.reasons or ())}",
        )
        return
    await _look_at_jobs(findings, client, run, end, begun, what)
    for (job, name), text in end.artifacts.items():
        await _look_at_artifact(findings, client, run, job, name, text, what)


async def _look_at_jobs(
    findings: Findings, client: Client, run: Planned, end: End, begun: Counter[tuple[str, str, int]], what: str
) -> None:
    for name in end.skipped:
        if any((run.id, name, attempt) in begun for attempt in range(1, 9)):
            findings.add("wrong_state", f"{what}: the job {name} began, but must not have")
    for name, expected in end.jobs.items():
        job = await client.get(f"{API}/runs/{run.id}/jobs/{name}")
        attempts = [
            each
            for each in job["attempts"]
            if not _costs_nothing(each, begun[run.id, name, each["attempt"]])
            and not (expected.lost and each["state"] == "lost" and each["reason"] in BEFORE_ITS_CODE)
        ]
        findings.looked["attempts"] += len(job["attempts"])
        findings.looked["attempts lost, or before any code"] += len(job["attempts"]) - len(attempts)
        states = [each["state"] for each in attempts]
        if expected.attempts is not None and not (
            len(states) == len(expected.attempts)
            and all(state in may for state, may in zip(states, expected.attempts, strict=True))
        ):
            wanted = [sorted(may) for may in expected.attempts]
            why = "; ".join(f"{each['reason']} {each['message']}"[:150] for each in attempts)
            findings.add("wrong_state", f"{what}: attempts of {name} are {states} ({why}), expected {wanted}")
            continue
        for each in attempts:
            _look_at_beginnings(findings, begun[run.id, name, each["attempt"]], each, f"{what}, {name}")
            await _look_at_log(findings, client, run, name, each, expected, what)
        if expected.outputs and {key: job["outputs"].get(key) for key in expected.outputs} != dict(expected.outputs):
            findings.add("wrong_state", f"{what}: outputs of {name} are {job['outputs']}, expected {expected.outputs}")


def _costs_nothing(attempt: Mapping[str, Any], times: int) -> bool:
    return times == 0 and attempt["reason"] in BEFORE_ITS_CODE


def _look_at_beginnings(findings: Findings, times: int, attempt: Mapping[str, Any], what: str) -> None:
    if times == 0 and attempt["state"] not in ENDED_EARLY:
        findings.add(
            "lost", f"{what}: attempt {attempt['attempt']} is {attempt['state']}, but no container of it began"
        )


async def _look_at_log(
    findings: Findings, client: Client, run: Planned, job: str, attempt: Mapping[str, Any], expected: JobEnd, what: str
) -> None:
    """Whole if the attempt came to its own end; else a beginning of it."""
    number = attempt["attempt"]
    wanted = expected.log(job, number)
    log = await client.get(f"{API}/runs/{run.id}/jobs/{job}/log?attempt={number}")
    text = _OF_THE_WRAPPER.sub("", log.decode(errors="replace"))
    findings.looked["logs"] += 1
    # Beyond 127: ended by a signal, as what is stopped or takes too long may be.
    ended_itself = attempt["state"] not in {*ENDED_EARLY, "lost"} and attempt["exit_code"] in range(128)
    whole = text == wanted if ended_itself else wanted.startswith(_MISSING.sub("", text))
    if not whole:
        findings.add(
            "log_gaps",
            f"{what}: the log of {job}, attempt {number} ({attempt['state']}), has {len(text)} characters, expected "
            f"{len(wanted)}; it ends {text[-80:]!r}",
        )


async def _look_at_artifact(
    findings: Findings, client: Client, run: Planned, job: str, name: str, text: str, what: str
) -> None:
    findings.looked["artifacts"] += 1
    try:
        archive = await client.get(f"{API}/runs/{run.id}/artifacts/{job}/{name}")
        content = _only_file(archive)
    except (RefusedError, tarfile.TarError) as error:
        findings.add("lost", f"{what}: artifact {job}/{name}: {error}")
        return
    if content != text:
        findings.add("lost", f"{what}: artifact {job}/{name} holds {content[:80]!r}, expected {text!r}")


def _only_file(archive: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(archive)
        file.flush()
        with opened_archive(Path(file.name)) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    return content.read().decode()
    raise tarfile.ReadError("there is no file in it")


async def _look_for_others(findings: Findings, load: Load, witnessed: set[str]) -> None:
    """Runs that nobody has started: a start that was repeated was done twice."""
    ours = {run.id for run in load.runs}
    for run in witnessed - ours:
        findings.add("doubled", f"run {run} was run, but nobody has started it")
    for tenant, client in load.clients.items():
        cursor = ""
        while True:
            page = await client.get(f"{API}/runs?limit=100{cursor}")
            for row in page["items"]:
                if row["id"] not in ours:
                    findings.add(
                        "doubled", f"run {row['id']} of {tenant} ({row['workflow']}) exists, but nobody has started it"
                    )
            if not page.get("next_cursor"):
                break
            cursor = f"&cursor={page['next_cursor']}"


async def look_at_pods(findings: Findings, place: Place) -> None:
    """One pod for each attempt, by what the cluster's scheduler has written down: also of pods that the witness did not see, as
    its watch was away, and of those that never ran anything."""
    if not isinstance(place.engine, PodEngine):
        return
    scheduled = await place.engine.scheduled()
    findings.looked["pods"] = sum(map(len, scheduled.values()))
    for name, uids in scheduled.items():
        if len(uids) > 1:
            findings.add("doubled", f"there were {len(uids)} pods {name}: {', '.join(sorted(uids))}")


def look_at_limits(findings: Findings, load: Load, said: Sequence[Said]) -> None:
    """Never more jobs of a tenant at a time than its quota, never two runs of a group: by the order of the witness's lines."""
    tenants = {run.id: run.tenant for run in load.runs}
    locked = {run.id for run in load.runs if run.kind.name == "locked"}
    ended = {(each.run, each.job, each.attempt) for each in said if each.what == "end"}
    active: dict[str, set[tuple[str, str, int]]] = defaultdict(set)
    for each in said:
        key = (each.run, each.job, each.attempt)
        if key not in ended or each.run not in tenants:
            continue  # it was ended from outside, and nobody has written down when
        tenant = tenants[each.run]
        groups = [tenant, f"{tenant}/lock"] if each.run in locked else [tenant]
        for group in groups:
            limit = 1 if group.endswith("/lock") else TENANTS[tenant].get("jobs", 10**9)
            active[group].add(key) if each.what == "begin" else active[group].discard(key)
            if len(active[group]) > limit:
                findings.add(
                    "wrong_state",
                    f"{len(active[group])} jobs of {group} at a time, allowed are {limit}: {active[group]}",
                )


# ---------------------------------------------------------------- events


async def look_at_events(findings: Findings, database: Database, load: Load, heard: Subscriber) -> None:
    """The subscriber heard each event that the journal holds, and `seq` rises without gaps in each run."""
    journal = {str(row["id"]): row for row in await database.fetch("SELECT id, run, seq, type FROM events")}
    findings.looked["events"] = len(journal)
    findings.looked["events heard again"] = sum(heard.times.values()) - len(heard.times)
    for id in journal.keys() - heard.events.keys():
        row = journal[id]
        findings.add("event_gaps", f"{row['type']} (seq {row['seq']} of run {row['run']}) never came to the subscriber")
    for id in heard.events.keys() - journal.keys():
        findings.add("event_gaps", f"{heard.events[id]['type']} {id} came to the subscriber, but was never committed")
    for id in heard.changed:
        findings.add("event_gaps", f"event {id} came with different contents")
    seqs: dict[str, set[int]] = defaultdict(set)
    types: dict[str, Counter[str]] = defaultdict(Counter)
    ended: Counter[tuple[str, str]] = Counter()
    for event in heard.events.values():
        if run := event.get("run"):
            seqs[str(run)].add(event["seq"])
            types[str(run)][event["type"]] += 1
            if event["type"] == "job.ended":
                ended[str(run), event["job"]] += 1
    for run in load.runs:
        if not run.id:
            continue
        mine = seqs[run.id]
        if mine != set(range(1, len(mine) + 1)):
            missing = sorted(set(range(1, max(mine, default=0) + 1)) - mine)
            findings.add("event_gaps", f"run {run.id} has seq up to {max(mine, default=0)}, without {missing[:10]}")
        for type in ("run.created", "run.finished"):
            if types[run.id][type] != 1:
                findings.add("event_gaps", f"run {run.id} told {type} {types[run.id][type]} times")
        for job in (*run.end.jobs, *run.end.skipped):
            if ended[run.id, job] != 1:
                findings.add("event_gaps", f"run {run.id} told job.ended of {job} {ended[run.id, job]} times")


def look_at_webhooks(findings: Findings, heard: Subscriber, receiver: Receiver) -> None:
    """Each event that a tenant wants has come to its receiver, rightly signed."""
    wanted = {(event["tenant"], id) for id, event in heard.events.items() if event["type"] in WEBHOOKS}
    got = {(body["data"]["tenant"], body["data"]["id"]) for body in receiver.bodies.values()}
    findings.looked["webhooks"] = len(got)
    for tenant, id in sorted(wanted - got):
        event = heard.events[id]
        findings.add("lost", f"the webhook of {event['type']} of run {event.get('run')} never came to {tenant}")
    if len(receiver.bodies) > len(got):
        findings.add("doubled", f"{len(receiver.bodies) - len(got)} events were delivered with two ids")
    if receiver.forged:
        findings.add("wrong_state", f"{receiver.forged} webhooks came with a wrong signature")


# ---------------------------------------------------------------- leftovers

_UNSETTLED = {
    "events not sent": "SELECT count(*) FROM events WHERE sent_at IS NULL",
    "parked messages": "SELECT count(*) FROM dead_events",
    "runs not over": "SELECT count(*) FROM runs WHERE finished_at IS NULL",
    "jobs not over": "SELECT count(*) FROM jobs WHERE state IN ('waiting', 'ready', 'submitted', 'running')",
    "logs not stored": "SELECT count(*) FROM logs WHERE completed_at IS NULL",
    "ends of logs kept in the database": "SELECT count(*) FROM log_tails",
    "containers not removed": "SELECT count(*) FROM attempt_outcomes WHERE removed_at IS NULL",
    "webhooks not delivered": "SELECT count(*) FROM deliveries WHERE state <> 'delivered'",
    "transactions left open": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND state LIKE 'idle in transaction%' AND state_change < now() - interval '5 seconds'",
}


async def unsettled(place: Place, database: Database) -> dict[str, int]:
    """What is not back to nothing yet."""
    counts = {what: await database.fetchval(query) for what, query in _UNSETTLED.items()}
    for queue in await place.broker.api("GET", "queues"):
        if queue.get("name", "").startswith("hubflow.live."):
            continue
        # Of a queue that has just been declared there are no figures yet.
        counts[f"messages in {queue['name']}"] = queue.get("messages", 1)
    counts |= await _of_runtime(place)
    return {what: count for what, count in counts.items() if count}


async def _of_runtime(place: Place) -> dict[str, int]:
    if isinstance(place.engine, PodEngine):
        return await place.engine.left()
    if place.engine is not None:
        label = f"hubflow.installation={place.environment['HUBFLOW_RUNTIME_INSTALLATION']}"
        filters = f'{{"label":["{label}"]}}'
        containers = await place.engine.api("GET", f"/containers/json?all=1&filters={filters}")
        return {"containers": len(containers)}
    folders = {
        f"files in {name}": sum(1 for _ in (place.jobs_folder / name).iterdir())
        for name in ("containers", "events", "shared", "removed")
    }
    return {**folders, "processes of jobs": sum(1 for _ in processes_of_jobs(place))}


async def look_at_objects(findings: Findings, database: Database, objects: ObjectStore) -> None:
    """Every object belongs to a log, an artifact, or a cache that outlives its run."""
    known = set()
    for row in await database.fetch("SELECT object_key, index_key FROM artifacts"):
        known |= {row["object_key"], row["index_key"]}
    for row in await database.fetch("SELECT segments FROM logs"):
        known |= {segment["key"] for segment in row["segments"]}
    kept = [key async for key in _keys(objects)]
    findings.looked["objects"] = len(kept)
    for key in kept:
        if key not in known:
            findings.add("leftovers", f"the object {key} belongs to nothing")
    for key in known - {None} - set(kept):
        findings.add("lost", f"the object {key} is not there")


async def _keys(objects: ObjectStore) -> Any:
    async for each in objects.list(""):
        yield each.key if hasattr(each, "key") else each


def logged_errors(place: Place) -> Counter[str]:
    """Lines of level error in the services' logs, for whoever looks for causes: not evidence by themselves."""
    counts: Counter[str] = Counter()
    for replica in place.replicas.values():
        for line in replica.log.read_text(errors="replace").splitlines():
            if '"level": "error"' in line:
                with contextlib.suppress(ValueError):
                    first, *_ = str(json.loads(line)["event"]).splitlines() or [""]
                    counts[f"errors logged: {replica.name}: {re.sub(r'0x[0-9a-f]+', '0x…', first)[:200]}"] += 1
    return counts
