"""The topics of nudges about logs."""

from __future__ import annotations

import uuid

import pytest

from shared.logs import log_topic

TENANT = "t" * 63
"""As long as the console lets a tenant's name be."""


@pytest.mark.parametrize(
    ("character", "times"), [("x", 200), ("造", 50), ("造", 200), ("🚀", 200), (".", 200), ("b", 1)]
)
def test_a_topic_is_short_enough_for_amqp_and_has_its_words(character: str, times: int) -> None:
    """A routing key has at most 255 bytes."""
    run = uuid.uuid4()
    topic = log_topic(TENANT, run, character * times, 2**31 - 1)
    assert len(topic.encode()) <= 255
    assert topic.split(".")[:3] == [TENANT, "log", str(run)]
    assert len(topic.split(".")) == 5


def test_jobs_with_long_names_have_topics_of_their_own() -> None:
    run = uuid.uuid4()
    assert len({log_topic("acme", run, "造" * 100 + end, 1) for end in ("a", "b", "")}) == 3
    assert log_topic("acme", run, "build.arm", 1) == f"acme.log.{run}.build_arm.1"
