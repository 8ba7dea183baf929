"""What an incoming message means: a run with these inputs, or nothing, and why. No I/O, no clock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shared.errors import PermanentError, UserError
from shared.states import RunState
from shared.text import indexable
from shared.workflow.expressions import cause, render, render_globals
from shared.workflow.faults import shorten
from shared.workflow.inputs import resolve_inputs
from shared.workflow.model import Workflow
from shared.workflow.triggers import matches_push

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
LONGEST_PATH = 4096
"""Characters of a path or a ref; operating systems and git take no longer ones."""
NO_COMMIT = re.compile(r"0+")
"""What senders write for "there is none": a ref that was created or deleted."""


def is_commit(value: Any) -> bool:
    """Whether it is the whole id of a git object, SHA-1 or SHA-256."""
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Push:
    """A push to git. `ref` in full; `paths`: changed files, None if they are not all known."""

    ref: str
    commit: str
    clone_url: str = ""
    repository: str = ""
    url: str = ""
    author: str = ""
    message: str = ""
    paths: frozenset[str] | None = None
    deleted: bool = False

    @property
    def branch(self) -> str | None:
        return self.ref.removeprefix("refs/heads/") if self.ref.startswith("refs/heads/") else None

    @property
    def tag(self) -> str | None:
        return self.ref.removeprefix("refs/tags/") if self.ref.startswith("refs/tags/") else None


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a provider has read from a hook's request.

    `delivery`: the sender's id of this message. `fingerprint`: what it says, to know the same said twice; "": only the id
    counts. `values`: the texts, numbers and truth values of a webhook's body by name.
    """

    kind: Literal["push", "webhook", "ping", "other"]
    delivery: str
    fingerprint: str = ""
    detail: str = ""
    push: Push | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """All of a new run that follows from its cause."""

    trigger: dict[str, Any]
    inputs: dict[str, str]
    concurrency_group: str | None


def git_of_push(push: Push) -> dict[str, str]:
    """The `git` part of a run's trigger, as `${{ git.… }}` knows it; empty values are left out."""
    kind = "tag" if push.tag is not None else "branch" if push.branch is not None else "commit"
    git = {
        "ref": push.ref, "branch": push.branch or "", "tag": push.tag or "", "type": kind, "commit": push.commit,
        "clone_url": push.clone_url, "repository": push.repository, "url": push.url,
        "author": push.author, "pusher": push.author, "message": push.message,
    }  # fmt: skip
    return {name: value for name, value in git.items() if value}


def git_of_request(ref: str, commit: str, clone_url: str) -> dict[str, str]:
    """The same for a start by API. A ref without `refs/` is a commit if it looks like one, else a branch."""
    if not (ref or commit or clone_url):
        return {}
    if len(ref) > LONGEST_PATH:
        raise UserError(f"the ref has more than {LONGEST_PATH} characters", code="bad-ref", status=422)
    if not commit and is_commit(ref):
        ref, commit = "", ref
    if ref and not ref.startswith("refs/"):
        ref = f"refs/heads/{ref}"
    if commit and not is_commit(commit):
        raise UserError(f"{commit[:80]!r} is no commit", code="bad-commit", status=422,
                        hint="give all 40 (or 64) hexadecimal digits in lower case")  # fmt: skip
    return git_of_push(Push(ref=ref, commit=commit, clone_url=clone_url))


def start(model: Workflow, version: int, trigger: Mapping[str, Any], given: Mapping[str, Any]) -> Start:
    """The run that `trigger` starts. Raises UserError for inputs that do not fit, and for a concurrency group that cannot be
    named."""
    inputs = resolve_inputs(model, given)
    context = {"inputs": inputs, "workflow": {"name": model.name, "version": version}, **cause(trigger)}
    return Start(dict(trigger), inputs, _group(model, context))


def _group(model: Workflow, context: dict[str, Any]) -> str | None:
    """The concurrency group; None if there is none, or if its name comes to nothing."""
    if model.concurrency is None:
        return None
    written = model.concurrency.group
    try:
        group = render(written, {**context, "env": render_globals(model.environment, context)})
    except PermanentError as error:
        raise UserError(
            f"the concurrency group `{shorten(written)}` cannot be named: {error}", code="bad-concurrency-group",
            status=422, hint="a group may name inputs, git, trigger, workflow, and global variables made of these",
        ) from None  # fmt: skip
    return indexable(group) if group.strip() else None


def reason_to_ignore(model: Workflow, incoming: Incoming) -> str:
    """Why a message starts no run of this workflow; "" if it does."""
    if incoming.kind == "other":
        return incoming.detail
    if incoming.kind == "webhook":
        return "" if model.on.webhook else f"the workflow {model.name!r} has no `webhook` under `on`"
    push = incoming.push
    if push is None:
        return "nothing was pushed"
    if push.deleted:
        return f"{push.ref} was deleted"
    if not push.branch and not push.tag:
        return f"{push.ref} is neither a branch nor a tag"
    if not matches_push(model, branch=push.branch, tag=push.tag, changed_paths=push.paths):
        return f"the workflow {model.name!r} has no trigger for a push of {push.ref}"
    return ""


def trigger_of(incoming: Incoming, source: str) -> dict[str, Any]:
    """The `trigger` of a run that a hook starts."""
    trigger: dict[str, Any] = {"type": incoming.kind, "source": source, "delivery": incoming.delivery}
    if incoming.push is None:
        return {**trigger, "by": f"hook:{source}"}
    return {**trigger, "by": incoming.push.author or f"hook:{source}", "git": git_of_push(incoming.push)}


def inputs_of(model: Workflow, incoming: Incoming) -> dict[str, Any]:
    """Those values of a webhook that the workflow declares as inputs; it may hold many others."""
    return {name: value for name, value in incoming.values.items() if name in model.inputs}


def may_start_again(first_run_state: str | None) -> bool:
    """May the same delivery, sent once more, start a run? Yes if it has started none yet, or one that did not succeed."""
    return first_run_state in {None, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT}
