"""What people see, ranges, and who is woken."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.console import core, pages
from services.console.live import Changes
from services.console.ranges import parse_range
from shared.bus.memory import MemoryBus
from shared.errors import UserError
from shared.events import JobRunning, RunFinished, encode
from tests.contract.test_bus import DeadLettersInMemory


@pytest.mark.parametrize(
    ("header", "size", "found"),
    [
        (None, 10, None), ("", 10, None), ("bytes=", 10, None), ("bytes=-", 10, None), ("lines=1-2", 10, None),
        ("bytes=1-2,4-5", 10, None), ("bytes=5-3", 10, None), ("bytes=0-0", 10, (0, 1)), ("bytes=3-", 10, (3, 10)),
        ("bytes=3-99", 10, (3, 10)), ("bytes=-4", 10, (6, 10)), ("bytes=-99", 10, (0, 10)), ("bytes = 1 - 2", 10, (1, 3)),
    ],
)  # fmt: skip
def test_ranges(header: str | None, size: int, found: tuple[int, int] | None) -> None:
    assert parse_range(header, size) == found


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_ranges_outside_are_refused(header: str, size: int) -> None:
    with pytest.raises(UserError) as caught:
        parse_range(header, size)
    assert caught.value.status == 416


@pytest.mark.parametrize(
    ("until", "state", "seq", "reached"),
    [
        ("finished", "paused", 9, False), ("finished", "succeeded", 1, True), ("paused", "paused", 1, True),
        ("paused", "running", 9, False), ("paused", "cancelled", 1, True), ("change", "running", 5, False),
        ("change", "running", 6, True), ("change", "failed", 5, True),
    ],
)  # fmt: skip
def test_waiting_ends(until: str, state: str, seq: int, reached: bool) -> None:
    assert core.is_reached(until, state, seq, since=5) == reached


def test_secret_inputs_are_not_shown() -> None:
    declared = {"token": {"secret": True}, "name": {"secret": False}}
    values = {"token": "x", "name": "y", "other": "z"}
    assert core.masked_inputs(values, declared) == {"token": "***", "name": "y", "other": "z"}


async def test_only_those_who_wait_for_it_are_woken() -> None:
    bus = MemoryBus(DeadLettersInMemory())
    changes, run, other = Changes(bus), uuid.uuid4(), uuid.uuid4()
    await changes.open()
    async with (
        changes.watching(run, "run.finished") as end,
        changes.watching(run) as all_of_it,
        changes.watching(other) as rest,
    ):
        running = JobRunning(tenant="t", run=run, stage="s", job="j", attempt=1)
        changes.heard(running.topic, encode(running))
        assert (end.woken, all_of_it.woken, rest.woken) == (False, True, False)
        finished = RunFinished(tenant="t", run=run, state="failed")
        changes.heard(finished.topic, encode(finished))
        assert (end.woken, rest.woken) == (True, False)
        changes.heard(f"t.log.{other}.j.1", b"")
        assert rest.woken
        await rest.wait(5)
        assert not rest.woken
        for topic, body in (("", b""), ("a", b"\xc1"), ("t.log", b""), ("t.log.", b""), ("t.run.finished", b"\x01")):
            changes.heard(topic, body)
        assert not rest.woken
        changes.close()
        assert rest.woken
    assert REGISTRY.get_sample_value("hubflow_console_readers") == 0


def asked(message: str, env: dict[str, Any], **trigger: Any) -> str:
    about = {
        "trigger": {"type": "api", "by": "ada", **trigger}, "number": 7, "workflow": "w", "version": 2, "tenant": "acme",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC), "inputs": {"KEY": "s3cret"}, "env": env, "id": "r1",
        "declared_inputs": {"KEY": {"secret": True}}, "stage": {"pause": {"message": message}}, "jobs": None,
    }  # fmt: skip
    return str(core.decision_view(about, "ask", "https://hub")["message"])


def test_the_message_of_a_pause_is_rendered_as_far_as_it_is_known() -> None:
    env = {"T": {"value": "at-${{ inputs.KEY }}"}, "S": {"value": "${{ secrets.X }}"}}
    text = "${{ env.T }} ${{ git.branch }}/${{ git.tag }} ${{ jobs.a.outputs.X }} ${{ env.S }} ${{ run.url }}${{ image.tag }}"
    told = "at-*** main/ ${{ jobs.a.outputs.X }} ${{ env.S }} https://hub/runs/r1"
    assert asked(text, env, git={"branch": "main"}) == told


def test_the_message_of_a_pause_shows_no_password() -> None:
    assert asked("${{ git.clone_url }}", {}, git={"clone_url": "https://u:pw@h/x.git"}) == "https://u:***@h/x.git"


def test_pages_escape_what_others_wrote() -> None:
    evil = "<script>alert('x')</script>"
    view = {"title": evil, "message": evil, "facts": {"Branch": evil, "Tag": ""}}
    for html in (pages.question(view, "approve", '"><b>'), pages.answer("decided", evil)):
        assert "<script" not in html
        assert "<b>" not in html
    assert "Tag" not in pages.question(view, "cancel", "x")
