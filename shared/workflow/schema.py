"""The JSON Schema of the workflow file, for editors: `python -m shared.workflow.schema` writes it, `--check` compares.

It describes the shape of each key, short forms included. What a schema cannot say (references, order, names) only
`parse_workflow` checks.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import click

from shared.workflow.model import Workflow

PATH = Path(__file__).parents[2] / "docs" / "schema" / "workflow.schema.json"


def workflow_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a workflow file."""
    schema = Workflow.model_json_schema(by_alias=True, mode="validation")
    definitions = schema["$defs"]
    definitions["ServiceInMap"] = _in_map(definitions["Service"])
    named = {"$ref": "#/$defs/ServiceInMap"}
    _map_of(definitions["Job"]["properties"]["services"], {"anyOf": [{"type": "string"}, named]})
    definitions["JobInMap"] = _in_map(definitions["Job"])
    _map_of(definitions["Stage"]["properties"]["jobs"], {"$ref": "#/$defs/JobInMap"})
    _tidy(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Hubflow workflow",
        "description": "A workflow file (hubflow.yaml). Keys that begin with x- are ignored: a place for anchors.",
        "patternProperties": {"^x-": True},
        **{key: value for key, value in schema.items() if key not in {"title", "description"}},
    }


def _map_of(part: dict[str, Any], values: dict[str, Any]) -> None:
    """Where a list may also be a map, its values are these."""
    for choice in part["anyOf"]:
        if choice.get("type") == "object":
            choice["additionalProperties"] = values


def _in_map(part: dict[str, Any]) -> dict[str, Any]:
    """A job or service whose name is the key before it."""
    inner = deepcopy(part)
    del inner["properties"]["name"]
    inner["required"] = [name for name in inner.get("required", ()) if name != "name"]
    return inner


def _tidy(part: Any) -> None:
    """Titles and empty defaults say nothing to an editor; limits of lists stand beside a choice of forms."""
    if isinstance(part, list):
        for item in part:
            _tidy(item)
    if not isinstance(part, dict):
        return
    if isinstance(part.get("title"), str):
        del part["title"]
    if part.get("default", "") in (None, "", [], {}) or isinstance(part.get("default"), dict):
        part.pop("default", None)
    if not part.get("required", True):
        del part["required"]
    _move_limits(part)
    for key, item in part.items():
        for inner in item.values() if key == "properties" else (item,):
            _tidy(inner)


def _move_limits(part: dict[str, Any]) -> None:
    for limit, better in (("maxLength", "maxItems"), ("minLength", "minItems")):
        value = part.pop(limit, None) if "anyOf" in part else None
        for choice in part["anyOf"] if value is not None else ():
            if choice.get("type") == "array":
                choice[better] = value


def as_text() -> str:
    """The file's content."""
    return json.dumps(workflow_schema(), indent=2, ensure_ascii=False) + "\n"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if the file is not up to date.")
def main(check: bool) -> None:
    """Write docs/schema/workflow.schema.json."""
    current = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    if current == as_text():
        click.echo(f"{PATH.name} is up to date")
    elif check:
        click.echo(f"{PATH.name} is not up to date: run python -m shared.workflow.schema", err=True)
        sys.exit(1)
    else:
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(as_text(), encoding="utf-8")
        click.echo(f"{PATH.name} written")


if __name__ == "__main__":
    main()
