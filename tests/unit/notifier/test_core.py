"""What is delivered, and when again; and which addresses are ours."""

from __future__ import annotations

import ipaddress
import json
import uuid

import pytest

from services.notifier import core
from shared.events import RunFinished
from shared.outgoing import is_internal

RUN = uuid.uuid4()


@pytest.mark.parametrize(
    ("types", "type", "wanted"),
    [
        ((), "run.finished", True), ((), "stage.running", True), ((), "job.ended", True),
        ((), "workflow.applied", False), ((), "tenant.quota_changed", False), (("run.finished",), "run.created", False),
        (("workflow.applied",), "workflow.applied", True), (("run.finished",), "subscription.tested", True),
        (("delivery.failed",), "delivery.failed", False),
    ],
)  # fmt: skip
def test_types(types: tuple[str, ...], type: str, wanted: bool) -> None:
    assert core.is_wanted(types, type) == wanted


def test_a_payload_is_the_event_as_it_was() -> None:
    event = RunFinished(
        tenant="acme", run=RUN, seq=7, state="failed", reason="ExitCode", message="é\u2028", trace="00-x"
    )
    document = json.loads(core.payload(event, {"workflow": "w", "number": 3}))
    assert document["type"] == "run.finished"
    assert document["timestamp"].endswith("Z")
    assert document["data"] == {
        "tenant": "acme", "id": str(event.id), "run": str(RUN), "seq": 7, "state": "failed", "reason": "ExitCode",
        "message": "é\u2028", "workflow": "w", "number": 3,
    }  # fmt: skip


def test_t79_delays_grow_have_jitter_and_end() -> None:
    least = [core.delay_after(tries, 0.0) for tries in range(1, 8)]
    most = [core.delay_after(tries, 1.0) for tries in range(1, 8)]
    assert least == [5, 30, 120, 600, 3600, 21600, None]
    assert most[0] == 6.0
    assert most[-1] is None
    assert core.delay_after(1, 0.0, retry_after=60) == 60
    assert core.delay_after(1, 0.0, retry_after=1e9) == core.LONGEST_RETRY_AFTER
    assert core.delay_after(7, 0.0, retry_after=60) is None


def test_an_id_is_of_one_event_and_one_subscription() -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    assert core.delivery_id(one, RUN) == core.delivery_id(one, RUN)
    assert len({core.delivery_id(a, b) for a in (one, other) for b in (RUN, one)}) == 4


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "224.0.0.1", "255.255.255.255", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1", "fd12::1", "ff02::1",
     "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b::169.254.169.254"],
)  # fmt: skip
def test_t82_internal_addresses(address: str) -> None:
    assert is_internal(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses(address: str) -> None:
    assert not is_internal(ipaddress.ip_address(address))
