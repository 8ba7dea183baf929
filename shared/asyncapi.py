"""The AsyncAPI 3.0 document of all events, made from `shared.events`.

python -m shared.asyncapi            writes docs/asyncapi.json
python -m shared.asyncapi --check    exit code 1 if the file is not what would be written
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
import types
import typing
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from shared.bus.topology import TOPICS
from shared.events import CONTENT_TYPE, EVENTS, Event

FILE = Path(__file__).parent.parent / "docs" / "asyncapi.json"
_KINDS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    datetime: {"type": "string", "format": "date-time"},
    list[str]: {"type": "array", "items": {"type": "string"}},
}
_SHARED = {
    "id": "UUIDv7: consumers drop what they have handled by it",
    "tenant": "first word of the topic",
    "time": "when it was told",
    "run": "the run it is about",
    "seq": "rises without gaps within a run, in the order of commits",
    "cause": "id of the event whose handling told it",
    "trace": "W3C traceparent",
}


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Hubflow events",
            "version": "1",
            "description": "Topic exchange `hubflow.events`, routing key `<tenant>.<type>`, flat msgpack maps. Delivery is "
            "at-least-once; readers ignore fields they do not know.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {name: _channel(name) for name in EVENTS},
        "operations": {f"send.{name}": _operation(name) for name in EVENTS},
        "components": {"messages": {name: _message(cls) for name, cls in EVENTS.items()}},
        "x-consumers": {group: list(topics) for group, topics in TOPICS.items()},
    }


def _channel(name: str) -> dict[str, Any]:
    return {
        "address": f"{{tenant}}.{name}",
        "parameters": {"tenant": {"description": "name of the tenant"}},
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {
            "amqp": {"is": "routingKey", "exchange": {"name": "hubflow.events", "type": "topic", "durable": True}}
        },
    }


def _operation(name: str) -> dict[str, Any]:
    # A slash of a JSON pointer would be `~1`; types have none.
    return {"action": "send", "channel": {"$ref": f"#/channels/{name}"}}


def _message(cls: type[Event]) -> dict[str, Any]:
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    return {
        "name": cls.TYPE,
        "summary": text.partition(". ")[0].rstrip(".") + ".",
        "description": text,
        "contentType": CONTENT_TYPE,
        "payload": _payload(cls),
    }


def _payload(cls: type[Event]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {"type": {"const": cls.TYPE}}
    required = ["type", "id", "tenant", "time"]
    for field in dataclasses.fields(cls):
        properties[field.name] = _schema(hints[field.name])
        if field.name in _SHARED:
            properties[field.name]["description"] = _SHARED[field.name]
        without_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        # Empty texts are left out on the wire, whatever their field says.
        if without_default and hints[field.name] is not str and field.name not in required:
            required.append(field.name)
    return {"type": "object", "properties": properties, "required": required}


def _schema(kind: Any) -> dict[str, Any]:
    if isinstance(kind, types.UnionType):
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))  # None is left out on the wire
    return dict(_KINDS[kind])


def render() -> str:
    """The file's text."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Writes the AsyncAPI document of all events.")
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 if the file is stale")
    check = parser.parse_args(arguments).check
    if not check:
        FILE.write_text(render(), "utf-8")
        return 0
    if FILE.exists() and FILE.read_text("utf-8") == render():
        return 0
    print(f"{FILE.name} is not what shared/events.py says; run `python -m shared.asyncapi`", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
