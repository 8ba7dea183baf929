"""Writes docs/settings.md from the settings themselves: `python -m cli.settings_reference`. `make check` checks it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.generated import write_or_check
from cli.serving import SERVICES, load_services
from shared.config import variable
from shared.settings import HostSettings, KubernetesSettings, ObjectsSettings, RuntimeSettings

PLACE = Path(__file__).parents[1] / "docs" / "settings.md"

_HEAD = """# Settings

<!-- Made by `python -m cli.settings_reference` from the settings themselves; change them, not this file. -->

`hubflow serve` reads them from the environment, once, at its start. A process reads those of the services that it runs.
`hubflow serve all --check` tells every fault at once and starts nothing; a wrong setting ends `serve` with exit code 78.
`hubflow dev` needs none.

The least that an installation sets: `HUBFLOW_DATABASE_URL`, `HUBFLOW_SECRET_KEY`, `HUBFLOW_AMQP_URL` (as soon as there is more
than one process), `HUBFLOW_PUBLIC_URL`, and `HUBFLOW_S3_*`."""


def document() -> str:
    """The whole of docs/settings.md."""
    shared = [
        ("Each process", HostSettings),
        ("Objects", ObjectsSettings),
        ("Runtime", RuntimeSettings),
        ("Kubernetes", KubernetesSettings),
    ]
    services = [(service.name, service.settings) for service in load_services(list(SERVICES))]
    return "\n\n".join([_HEAD, *("\n".join(_section(title, cls)) for title, cls in (*shared, *services))]) + "\n"


def _section(title: str, cls: type[Any]) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{' '.join((cls.__doc__ or '').split())}\n"
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    for field in dataclasses.fields(cls):
        yield f"| `{variable(cls, field)}` | {_default(field.default)} | {field.metadata['help'].replace('|', chr(92) + '|')} |"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if value != "" else ""


if __name__ == "__main__":
    sys.exit(write_or_check(PLACE, document()))
