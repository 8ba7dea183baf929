"""What comes in from outside: the HTTP interface of trigger, described once.

Trigger serves it. Where trigger runs in a process of its own, console passes it on (`HUBFLOW_CONSOLE_TRIGGER_URL`), so that
users know one address.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

import pydantic

from shared.api import PUBLIC, Call, Endpoint
from shared.errors import UserError
from shared.http import JSON

SOURCES = ("github", "gitea", "generic")
"""Senders of hooks: the last part of a hook's address."""


class StartRun(pydantic.BaseModel):
    """What a run is started with. Values of inputs are texts, numbers or truth values."""

    model_config = pydantic.ConfigDict(extra="forbid")

    inputs: dict[str, str | bool | int | float] = {}
    ref: str = pydantic.Field("", description="git ref: `refs/heads/main`, `refs/tags/v1`, a branch, or a commit")
    commit: str = pydantic.Field("", description="commit in full")
    clone_url: str = pydantic.Field("", description="repository that the jobs clone")


class StartedRun(pydantic.BaseModel):
    """A run that was recorded."""

    id: uuid.UUID
    number: int
    workflow: str
    state: str
    url: str = pydantic.Field(description="address of the run in the API")


class HookAnswer(pydantic.BaseModel):
    """What a hook has led to. `ignored`: `detail` says why no run was started."""

    outcome: Literal["started", "duplicate", "ignored", "pong"]
    detail: str = ""
    run: StartedRun | None = None


async def _described_only(_: Call, __: Any) -> Any:
    raise UserError("this endpoint has no handler here", code="not-implemented", status=501)


START_RUN = Endpoint(
    "POST", "/api/v1/workflows/{workflow}/runs", _described_only, "Start a run", scope="run",
    body=StartRun, answer=StartedRun, status=201,
)  # fmt: skip
HOOK = Endpoint(
    "POST", "/hooks/{tenant}/{workflow}/{source}", _described_only, "Receive a signed webhook of another system",
    scope=PUBLIC, body=dict[str, Any], answer=HookAnswer, status=201,
    takes=JSON + ", application/x-www-form-urlencoded",
)  # fmt: skip
"""`dataclasses.replace(..., handle=...)` gives them their handlers."""
