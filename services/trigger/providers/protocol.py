"""What a provider is, and what several need: HMAC in constant time, JSON bodies, push payloads in GitHub's shape."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from services.trigger.core import LONGEST_PATH, NO_COMMIT, Incoming, Push, is_commit
from shared.errors import UserError
from shared.text import fit, indexable, may_be_unfit

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MOST_PATHS = 3000
"""Changed files of a push that are compared with a workflow's patterns; of more it counts as unknown what they are."""
Headers = Mapping[str, str]
"""Case-insensitive."""


@dataclass(frozen=True, slots=True)
class Request:
    """A hook's request. `content_type` without parameters, in lower case."""

    headers: Headers
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Provider:
    """`verify` raises UserError 401 unless the body was signed with the secret; then `read` says what it is (or raises
    UserError 4xx). `large`: the body may be as large as a push (see TriggerSettings)."""

    name: str
    verify: Callable[[Request, str], None]
    read: Callable[[Request], Incoming]
    large: bool


def refused(message: str, hint: str = "") -> UserError:
    return UserError(
        message, code="bad-signature", status=401,
        hint=hint or "sign with the workflow's hook secret: `hubflow hook show WORKFLOW`",
    )  # fmt: skip


def check_hmac(request: Request, secret: str, header: str, prefix: str = "") -> None:
    """HMAC-SHA-256 of the body in hexadecimal, in `header` after `prefix`. Compared in constant time."""
    given = request.headers.get(header, "")
    if prefix and not given.startswith(prefix):
        raise refused(f"the header {header} does not begin with {prefix!r}: only HMAC-SHA-256 is accepted")
    expected = hmac.new(secret.encode(), request.body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(given.removeprefix(prefix).encode(), expected.encode()):
        raise refused(f"the signature in {header} does not belong to this body and the workflow's hook secret")


def json_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object; a form's field `payload` holds it where senders are set up so."""
    raw: bytes | str = request.body
    if request.content_type == FORM:
        try:
            fields = parse_qs(request.body.decode("utf-8"), max_num_fields=100)
        except ValueError as error:
            raise UserError(f"the form cannot be read: {error}", code="invalid-body") from None
        raw = fields.get("payload", [""])[0]
    elif request.content_type != JSON:
        raise UserError(
            f"the content type is {request.content_type or 'missing'}", code="unsupported-media-type", status=415,
            hint=f"send {JSON}",
        )  # fmt: skip
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON: {error}", code="invalid-body") from None
    if not isinstance(document, dict):
        raise UserError("the body is not a JSON object", code="invalid-body")
    # Nobody can change what another system sends, so text that cannot be kept is no reason to refuse it.
    kept: dict[str, Any] = fit(document) if may_be_unfit(raw) else document
    return kept


def need_header(request: Request, name: str) -> str:
    value = request.headers.get(name, "").strip()
    if not value or len(value) > 200:
        raise UserError(
            f"the header {name} is missing or too long", code="invalid-header", hint="is the hook's address right?"
        )
    return value


def push_of(payload: Mapping[str, Any], all_commits_listed: Callable[[Mapping[str, Any]], bool]) -> Push:
    """A push payload in the shape that GitHub has given the world. Raises UserError if it is none."""
    ref, after = payload.get("ref"), payload.get("after")
    if not isinstance(ref, str) or not isinstance(after, str) or not ref or not is_commit(after):
        raise UserError("the push payload has no `ref` and `after`", code="invalid-body")
    if len(ref) > LONGEST_PATH:
        raise UserError(f"the ref has more than {LONGEST_PATH} characters", code="invalid-body")
    head, repository, pusher = (_map(payload.get(name)) for name in ("head_commit", "repository", "pusher"))
    created = NO_COMMIT.fullmatch(_text(payload.get("before")) or "0") is not None
    known = not created and payload.get("forced") is not True and all_commits_listed(payload)
    return Push(
        ref=ref,
        # For an annotated tag `after` is the tag itself; the head commit is what it points at.
        commit=head["id"] if is_commit(head.get("id")) else after,
        clone_url=_text(repository.get("clone_url")),
        repository=_text(repository.get("full_name")),
        url=_text(repository.get("html_url")),
        author=_text(pusher.get("name")) or _text(pusher.get("login")) or _text(pusher.get("username")),
        message=_text(head.get("message"))[:10_000],
        paths=_paths(commits_of(payload)) if known else None,
        deleted=payload.get("deleted") is True or NO_COMMIT.fullmatch(after) is not None,
    )


def fingerprint(push: Push) -> str:
    """What a push says, to know the same said twice."""
    return indexable(f"{push.repository}\n{push.ref}\n{push.commit}")


def commits_of(payload: Mapping[str, Any]) -> Sequence[Any]:
    """The commits that a push payload lists."""
    return _list(payload.get("commits"))


def _paths(commits: Sequence[Any]) -> frozenset[str] | None:
    if not commits:
        return None
    paths = {
        path
        for commit in commits
        for kind in ("added", "modified", "removed")
        for path in _list(_map(commit).get(kind))
        if isinstance(path, str)
    }
    return frozenset(paths) if len(paths) <= MOST_PATHS and max(map(len, paths), default=0) <= LONGEST_PATH else None


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
