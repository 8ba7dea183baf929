"""The document of all events: fresh, and true of what is really sent."""

from __future__ import annotations

import dataclasses
import typing
import uuid
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from shared import asyncapi
from shared.events import EVENTS, Event

_SAMPLES: dict[Any, Any] = {
    str: "x",
    int: 1,
    float: 1.5,
    bool: True,
    uuid.UUID: uuid.uuid4(),
    datetime: datetime.now(UTC),
}


def sample(cls: type[Event], *, full: bool) -> Event:
    """An event with every field, or only those without a default."""
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if optional and not full:
            continue
        kinds = [each for each in (typing.get_args(hints[field.name]) or (hints[field.name],)) if each in _SAMPLES]
        values[field.name] = ["x"] if hints[field.name] == list[str] else _SAMPLES[kinds[0]]
    return cls(**values)


def test_the_file_is_fresh() -> None:
    assert asyncapi.main(["--check"]) == 0, "run `python -m shared.asyncapi`"


def test_a_stale_file_is_noticed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncapi, "FILE", tmp_path / "asyncapi.json")
    assert asyncapi.main(["--check"]) == 1
    asyncapi.main([])
    assert asyncapi.main(["--check"]) == 0
    asyncapi.FILE.write_text(asyncapi.FILE.read_text() + " ")
    assert asyncapi.main(["--check"]) == 1


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_is_as_described(name: str) -> None:
    message = asyncapi.document()["components"]["messages"][name]
    schema = {**message["payload"], "additionalProperties": False}
    for full in (True, False):
        jsonschema.Draft202012Validator(schema).validate(sample(EVENTS[name], full=full).to_map())


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_says_who_tells_and_who_hears_it(name: str) -> None:
    text = EVENTS[name].__doc__ or ""
    assert "Told by" in text
    assert "heard by" in text
