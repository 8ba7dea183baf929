"""The log collector on a real database, runtime, wrapper and S3."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.executor.handlers import on_job_ready
from services.log_collector import store
from services.log_collector.config import LogCollectorSettings
from services.log_collector.handlers import FORGOTTEN_AFTER, TASKS, Context, on_job_submitted, take_over_once
from services.log_collector.main import context_of
from shared.embedded import S3Address
from shared.errors import TemporaryError
from shared.events import JobLogStored, JobReady
from shared.logs import log_status, log_topic, read_log
from tests.integration.jobs import ROOT, TENANT, House, container_of, opened_house, submitted, tasks_of, until
from tests.integration.test_executor import executor_of, watching

MIB = 1 << 20


@pytest.fixture
async def house(database: str, s3: S3Address, tmp_path: Path) -> AsyncIterator[House]:
    async with opened_house(database, s3, tmp_path) as opened:
        yield opened


@asynccontextmanager
async def collecting(house: House, name: str = "here", **settings: Any) -> AsyncIterator[Context]:
    host = dataclasses.replace(house.host, name=name)
    context = context_of(host, LogCollectorSettings(**settings))
    await store.renew(host.database, host.name, context.settings.lease_seconds)
    try:
        async with tasks_of(*(task(context) for task in TASKS.values())):
            yield context
    finally:
        for follower in list(context.following.values()):
            follower.cancel()


async def started(house: House, script: str, env: str = "") -> JobReady:
    name = f"w{secrets.token_hex(4)}"
    job = f"{{script: {json.dumps(script)}{', env: ' + env if env else ''}}}"
    ready = await house.ready(await house.run(f"name: {name}\nstages: [{{name: s, jobs: {{j: {job}}}}}]\n"), "j")
    await on_job_ready(ready, executor_of(house))
    return ready


async def complete(house: House, ready: JobReady, timeout: float = 30.0) -> bytes:
    """The whole stored log, once it is complete."""

    async def look() -> bool:
        status = await log_status(house.database, ready.run, ready.job, ready.attempt)
        return status is not None and status.complete

    await until(look, timeout)
    return await kept(house, ready)


async def kept(house: House, ready: JobReady, piece: int = 3 * MIB) -> bytes:
    """What a reader sees now, read in pieces."""
    whole = b""
    while part := await read_log(
        house.database, house.host.objects, ready.run, ready.job, ready.attempt, len(whole), piece
    ):
        whole += part
    return whole


async def raw(house: House, ready: JobReady) -> bytes:
    return b"".join([chunk async for chunk in house.host.runtime.logs(container_of(ready))])


async def tail_rows(house: House) -> int:
    return int(await house.database.fetchval("SELECT count(*) FROM log_tails"))


async def test_a_short_log_is_stored_and_told(house: House) -> None:
    async with collecting(house) as context:
        ready = await started(house, "echo one; echo two >&2; printf three")
        await on_job_submitted(submitted(ready), context)
        await on_job_submitted(submitted(ready), context)  # delivered twice
        assert await complete(house, ready) == b"one\ntwo\nthree"
    (stored,) = await house.told(ready.run, JobLogStored)
    assert (stored.size, stored.truncated, stored.container) == (13, False, container_of(ready))
    assert await tail_rows(house) == 0
    assert [piece async for piece in house.host.objects.list(f"{TENANT}/runs/{ready.run}/logs/j/1/")]


async def test_an_empty_log_needs_no_object(house: House) -> None:
    async with collecting(house) as context:
        ready = await started(house, "true")
        await on_job_submitted(submitted(ready), context)
        assert await complete(house, ready) == b""
    assert [piece async for piece in house.host.objects.list(f"{TENANT}/runs/{ready.run}/logs/")] == []
    assert (await house.told(ready.run, JobLogStored))[0].size == 0


async def test_t53_ten_megabytes_in_a_second_are_stored_byte_for_byte(house: House) -> None:
    async with collecting(house) as context:
        ready = await started(house, "head -c 10485760 /dev/urandom")
        await on_job_submitted(submitted(ready), context)
        stored = await complete(house, ready)
    assert len(stored) == 10 * MIB
    assert stored == await raw(house, ready)
    assert await tail_rows(house) == 0
    assert len([piece async for piece in house.host.objects.list(f"{TENANT}/runs/{ready.run}/logs/")]) >= 2
    assert (await read_log(house.database, house.host.objects, ready.run, "j", 1, 5 * MIB - 7, 100)) == stored[
        5 * MIB - 7 :
    ][:100]


async def test_t63_a_follower_sees_a_line_within_a_second_and_is_nudged(house: House) -> None:
    nudges: list[str] = []
    async with collecting(house) as context:
        ready = await started(house, "sleep 0.5; echo first; sleep 1.5; echo second; sleep 1")
        await house.host.bus.listen(
            [log_topic(TENANT, ready.run, "j", 1)], lambda topic, _: nudges.append(f"{topic} {time.monotonic()}")
        )
        await on_job_submitted(submitted(ready), context)
        for line in (b"first\n", b"first\nsecond\n"):
            await until(lambda line=line: _has(raw(house, ready), line))
            begin = time.monotonic()
            await until(lambda line=line: _has(kept(house, ready), line))
            assert time.monotonic() - begin < 1
        assert len(nudges) >= 2
        assert await complete(house, ready) == b"first\nsecond\n"


async def _has(text: Any, wanted: bytes) -> bool:
    return await text == wanted


async def test_t62_secrets_are_masked_wherever_they_come_from(house: House) -> None:
    await house.tenant(TOKEN="s3cr3t-value", SHORT="ab", MULTI="line one of it\nline two of it")
    async with collecting(house) as context:
        script = (
            'echo "abc $T"; printf %s "x:$T" | base64; printf "s3cr3t-"; sleep 0.4; echo "value cab"; echo "$M"; '
            'echo "https://u:pass%40word@host"'
        )
        run = await house.run(
            "name: leaky\ninputs: {PIN: {secret: true}}\nstages: [{name: s, jobs: {j: {env: {T: '${{ secrets.TOKEN }}', "
            f"M: '${{{{ secrets.MULTI }}}}'}}, script: {json.dumps(script + '; echo pin 987654')}}}}}}}]\n",
            inputs={"PIN": "987654"},
            trigger={"type": "push", "git": {"clone_url": "https://u:pass%40word@host/x.git"}},
        )
        ready = await house.ready(run, "j")
        await on_job_ready(ready, executor_of(house))
        await on_job_submitted(submitted(ready), context)
        log = await complete(house, ready)
    lines = log.decode().splitlines()
    assert lines[0] == "abc ***"
    assert "***" in lines[1]
    assert len(lines[1]) < 10
    assert lines[2] == "*** cab"
    assert lines[3:] == ["***", "https://u:***@host", "pin ***"]


async def test_a_log_over_its_limit_ends_with_a_line_that_says_so(house: House) -> None:
    async with collecting(house, limit_bytes=1000) as context:
        ready = await started(house, "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; sleep 60")
        await on_job_submitted(submitted(ready), context)
        log = await complete(house, ready)  # complete although the job goes on
    whole = await raw(house, ready)
    assert log.startswith(whole[:1000])
    assert log.splitlines()[-1].startswith(b"[hubflow] the log ends here")
    status = await log_status(house.database, ready.run, "j", 1)
    assert status is not None
    assert (status.truncated, status.size) == (True, len(log))
    assert (await house.told(ready.run, JobLogStored))[0].truncated


async def test_t58_with_object_storage_away_the_log_stays_readable_and_is_stored_later(house: House) -> None:
    async with collecting(house, segment_bytes=MIB, tail_limit_bytes=2 * MIB) as context, watching(house):
        objects = context.tools.objects
        put, away = objects.put, True

        async def failing(*arguments: Any, **values: Any) -> Any:
            if away:
                raise TemporaryError("S3 does not answer")
            return await put(*arguments, **values)

        objects.put = failing  # type: ignore[method-assign]
        ready = await started(house, "head -c 6000000 /dev/urandom | base64; echo end")
        await on_job_submitted(submitted(ready), context)
        assert (await house.finished(ready))["state"] == "succeeded", "the outcome does not wait for the log"
        await until(lambda: _at_least(house, ready, 2 * MIB))
        await asyncio.sleep(1.0)  # it does not go on reading without bound
        status = await log_status(house.database, ready.run, "j", 1)
        assert status is not None
        assert 2 * MIB <= status.size < 5 * MIB
        assert (await raw(house, ready)).startswith(await kept(house, ready))
        away = False
        log = await complete(house, ready, 60)
    assert log == await raw(house, ready)
    assert log.endswith(b"end\n")


async def _at_least(house: House, ready: JobReady, size: int) -> bool:
    status = await log_status(house.database, ready.run, "j", 1)
    return status is not None and status.size >= size


async def test_a_small_log_is_readable_while_object_storage_is_away(house: House) -> None:
    async with collecting(house) as context:
        put = context.tools.objects.put

        async def failing(*arguments: Any, **values: Any) -> Any:
            raise TemporaryError("S3 does not answer")

        context.tools.objects.put = failing  # type: ignore[method-assign]
        ready = await started(house, "echo hello")
        await on_job_submitted(submitted(ready), context)
        await until(lambda: _has(kept(house, ready), b"hello\n"))
        context.tools.objects.put = put  # type: ignore[method-assign]
        assert await complete(house, ready) == b"hello\n"


@asynccontextmanager
async def collector_process(house: House) -> AsyncIterator[asyncio.subprocess.Process]:
    """One that has taken over a log; small pieces, so that many are cut."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.collector_process", cwd=ROOT,
        env={
            **house.environment,
            "HUBFLOW_LOG_COLLECTOR_SEGMENT_BYTES": "20000", "HUBFLOW_LOG_COLLECTOR_LEASE_SECONDS": "2",
            "HUBFLOW_LOG_COLLECTOR_FLUSH_SECONDS": "0.01",
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"follows\n"
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def test_t55_killed_collectors_lose_and_double_nothing(house: House) -> None:
    """Several processes with kill -9 in turn, while the job prints numbered lines."""
    script = "i=0; while [ ! -e stop ]; do echo line $i of it; i=$((i+1)); [ $((i % 300)) = 0 ] && sleep 0.05; done"
    ready = await started(house, script)
    await house.tenant(TOKEN="line 777 of it")
    # The delivery reached a process that died at once: the row is there, and nobody follows it.
    await store.take([store.Taking(submitted(ready))], house.database, "dead")
    for delay in (0.02, 0.2, 0.4, 0.6):
        async with collector_process(house) as process:
            await asyncio.sleep(delay)  # the moment of the murder
            process.send_signal(signal.SIGKILL)
    (house.runtime_root / "containers" / container_of(ready) / "work" / "stop").touch()
    async with collector_process(house) as process:
        log = await complete(house, ready, 60)
    assert log == (await raw(house, ready)).replace(b"line 777 of it", b"***")
    assert len(await house.told(ready.run, JobLogStored)) == 1


async def test_t55_a_collector_that_slept_writes_nothing_into_anothers_log(house: House) -> None:
    async with collecting(house, "sleeper", lease_seconds=2.0) as sleeper, collecting(house, "other") as other:
        ready = await started(house, "echo one; sleep 1; echo two; sleep 1; echo three")
        await on_job_submitted(submitted(ready), sleeper)
        await until(lambda: _has(kept(house, ready), b"one\n"))
        await house.database.execute("UPDATE leases SET expires_at = now() WHERE holder = 'sleeper'")
        await take_over_once(other)
        log = await complete(house, ready)
        await until(lambda: _idle(sleeper))
    assert log == b"one\ntwo\nthree\n"
    assert len(await house.told(ready.run, JobLogStored)) == 1


async def _idle(context: Context) -> bool:
    return not context.following


async def test_t55_a_piece_whose_storing_nobody_heard_of_is_not_written_over(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has committed, and its answer is lost. What follows in the tail, pieces as long as the first, must not take
    its place."""
    note, lost = store.note_segment, asyncio.Event()

    async def noted_unheard(*given: Any) -> bool:
        noted = await note(*given)
        if not lost.is_set():
            lost.set()
            raise TemporaryError("the answer is lost")
        return noted

    monkeypatch.setattr(store, "note_segment", noted_unheard)
    async with collecting(house, segment_bytes=1 << 18) as context:
        ready = await started(house, "for n in 1 2 3 4 5; do seq ${n}00001 ${n}50000; sleep 0.3; done")
        await on_job_submitted(submitted(ready), context)
        log = await complete(house, ready, 60)
    assert lost.is_set()
    assert log == b"".join(
        b"%d\n" % n for hundred in range(1, 6) for n in range(hundred * 100000 + 1, hundred * 100000 + 50001)
    )
    segments = await house.database.fetchval("SELECT segments FROM logs WHERE container = $1", container_of(ready))
    there = [piece.key async for piece in house.host.objects.list(f"{TENANT}/runs/{ready.run}/logs/")]
    assert sorted(there) == sorted(each["key"] for each in segments), "something was put where nothing is missing"


async def test_a_container_that_is_gone_completes_what_there_is(house: House) -> None:
    async with collecting(house) as context:
        ready = await started(house, "echo here; sleep 60")
        await on_job_submitted(submitted(ready), context)
        await until(lambda: _has(kept(house, ready), b"here\n"))
        await house.host.runtime.remove(container_of(ready))
        assert await complete(house, ready) == b"here\n"


async def test_a_container_whose_submission_nobody_told_has_its_log_stored(house: House) -> None:
    """Seen in a storm: its executor was killed before it could note it, and it was over before another one was asked."""
    ready = await started(house, "echo here")
    seen = await house.host.runtime.inspect(container_of(ready))
    assert seen is not None
    note = """INSERT INTO attempt_outcomes (container, run, job, attempt, uid, running_at)
              VALUES ($1, $2, 'j', 1, $3, now() - make_interval(secs => $4))"""
    async with collecting(house) as context:
        await house.database.execute(note, container_of(ready), ready.run, seen.uid, FORGOTTEN_AFTER / 2)
        assert await take_over_once(context) == 0  # its submission may still be on its way
        await house.database.execute("DELETE FROM attempt_outcomes")
        await house.database.execute(note, container_of(ready), ready.run, seen.uid, FORGOTTEN_AFTER + 1)
        assert await complete(house, ready) == b"here\n"
        assert await take_over_once(context) == 0


@pytest.mark.parametrize("collectors", [1, 3])
async def test_t54_a_log_that_was_rotated_away_says_how_much_is_missing_once(house: House, collectors: int) -> None:
    """Whoever comes late, or takes over, gets less from the runtime than the wrapper has passed on."""
    ready = await started(house, "echo one; echo two; echo three")
    runtime = house.host.runtime
    whole = runtime.logs

    async def rotated(name: str, offset: int = 0, *, follow: bool = False) -> AsyncIterator[bytes]:
        read = b"".join([chunk async for chunk in whole(name, 0, follow=follow)])
        if read[offset:4]:
            yield read[offset:4]

    runtime.logs = rotated  # type: ignore[method-assign]
    late = dataclasses.replace(submitted(ready), time=datetime.now(UTC) - timedelta(minutes=1))
    async with contextlib.AsyncExitStack() as stack:
        for number in range(collectors):
            context = await stack.enter_async_context(collecting(house, f"c{number}"))
            await on_job_submitted(late, context)
        stored = await complete(house, ready)
    assert stored.startswith(b"one\n\n[hubflow] at least 10 of the 14 bytes that this job printed are missing above")
    assert stored.count(b"[hubflow]") == 1


async def test_a_log_that_ended_early_is_asked_for_again(house: House) -> None:
    """Seen in a storm: a node's log stream ended before the last lines, though the node had them."""
    ready = await started(house, "echo one; echo two; echo three")
    runtime = house.host.runtime
    whole, reads = runtime.logs, 0

    async def early(name: str, offset: int = 0, *, follow: bool = False) -> AsyncIterator[bytes]:
        nonlocal reads
        reads += 1
        read = b"".join([chunk async for chunk in whole(name, 0, follow=follow)])
        yield read[offset:4] if reads == 1 else read[offset:]

    runtime.logs = early  # type: ignore[method-assign]
    late = dataclasses.replace(submitted(ready), time=datetime.now(UTC) - timedelta(minutes=1))
    async with collecting(house) as context:
        await on_job_submitted(late, context)
        assert await complete(house, ready) == b"one\ntwo\nthree\n"
    assert reads == 2


async def test_a_log_that_is_whole_says_nothing_of_that(house: House) -> None:
    ready = await started(house, "echo one; printf two; echo three >&2")
    late = dataclasses.replace(submitted(ready), time=datetime.now(UTC) - timedelta(minutes=1))
    async with collecting(house) as context:
        await on_job_submitted(late, context)
        assert await complete(house, ready) == b"one\ntwothree\n"


async def test_many_logs_at_once_share_few_writes(house: House) -> None:
    jobs = ", ".join(f"j{number}: {{script: 'echo {number}; sleep 1; echo end'}}" for number in range(40))
    run = await house.run(f"name: many\nstages: [{{name: s, jobs: {{{jobs}}}}}]\n")
    executor = executor_of(house)
    readies = [await house.ready(run, f"j{number}") for number in range(40)]
    async with collecting(house) as context:
        for ready in readies:
            await on_job_ready(ready, executor)
            await on_job_submitted(submitted(ready), context)
        for number, ready in enumerate(readies):
            assert await complete(house, ready) == f"{number}\nend\n".encode()
    assert len(await house.told(run, JobLogStored)) == 40
    assert not context.following
