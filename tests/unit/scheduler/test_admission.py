"""Quotas: what fits, what waits, and why."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.admission import Quota, Request, Usage, admit_jobs, admit_run
from shared.states import Reason


def test_unlimited_tenants_wait_for_nothing() -> None:
    names, held, _ = admit_jobs([Request(str(n), 1000, 2**30) for n in range(1000)], Quota(), Usage(jobs=10_000))
    assert (len(names), held) == (1000, None)
    assert admit_run(Quota(), Usage(runs=10_000)) is None


def test_a_full_quota_says_by_how_much() -> None:
    held = admit_run(Quota(runs=3), Usage(runs=3))
    assert held is not None
    assert (held.reason, "3 of the tenant's 3 runs") == (Reason.QUOTA, held.message[:24])
    names, held, used = admit_jobs([Request("a", 0, 0), Request("b", 0, 0)], Quota(jobs=2), Usage(jobs=1))
    assert (names, used.jobs) == (["a"], 2)
    assert held is not None
    assert "2 of 2" in held.message


def test_large_jobs_are_not_overtaken_by_small_ones() -> None:
    names, held, _ = admit_jobs(
        [Request("large", 900, 0), Request("small", 100, 0)], Quota(cpu_millis=1000), Usage(jobs=1, cpu_millis=500)
    )
    assert names == []
    assert held is not None


def test_a_job_larger_than_the_whole_quota_runs_alone() -> None:
    quota = Quota(memory_bytes=100)
    assert admit_jobs([Request("huge", 0, 500)], quota, Usage())[0] == ["huge"]
    assert admit_jobs([Request("huge", 0, 500)], quota, Usage(jobs=1))[0] == []


def test_a_quota_of_no_jobs_lets_nothing_in() -> None:
    assert admit_jobs([Request("a", 0, 0)], Quota(jobs=0), Usage())[0] == []


def test_t41_a_lowered_limit_admits_nothing_until_enough_has_ended() -> None:
    assert admit_jobs([Request("a", 0, 0)], Quota(jobs=2), Usage(jobs=5))[0] == []
    assert admit_jobs([Request("a", 0, 0)], Quota(jobs=2), Usage(jobs=1))[0] == ["a"]


@given(st.lists(st.integers(0, 500), max_size=20), st.integers(1, 5), st.integers(0, 2000))
def test_what_is_admitted_fits_and_is_a_prefix(sizes: list[int], jobs: int, cpu: int) -> None:
    requests = [Request(str(n), size, 0) for n, size in enumerate(sizes)]
    names, held, used = admit_jobs(requests, Quota(jobs=jobs, cpu_millis=cpu), Usage())
    assert names == [request.name for request in requests[: len(names)]]
    assert (held is None) == (len(names) == len(requests))
    assert used.jobs == len(names) <= jobs
    assert used.cpu_millis <= cpu or len(names) == 1
