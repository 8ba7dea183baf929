"""GitHub: https://docs.github.com/webhooks/webhook-events-and-payloads#push"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.trigger.core import Incoming
from services.trigger.providers.protocol import (
    Provider,
    Request,
    check_hmac,
    commits_of,
    fingerprint,
    json_body,
    need_header,
    push_of,
    refused,
)

MOST_COMMITS = 2048
"""A push payload lists no more; then the changed files are not all known."""


def _verify(request: Request, secret: str) -> None:
    if "X-Hub-Signature-256" not in request.headers:
        old = " (X-Hub-Signature is SHA-1 and not accepted)" if "X-Hub-Signature" in request.headers else ""
        raise refused(f"the header X-Hub-Signature-256 is missing{old}", "set a secret in the webhook's settings")
    check_hmac(request, secret, "X-Hub-Signature-256", "sha256=")


def _read(request: Request) -> Incoming:
    event, delivery = need_header(request, "X-GitHub-Event"), need_header(request, "X-GitHub-Delivery")
    payload = json_body(request)
    if event == "ping":
        return Incoming("ping", delivery)
    if event != "push":
        return Incoming("other", delivery, detail=f"the event {event!r} starts nothing; only push does")
    push = push_of(payload, _all_commits_listed)
    return Incoming("push", delivery, fingerprint(push), push=push)


def _all_commits_listed(payload: Mapping[str, Any]) -> bool:
    return len(commits_of(payload)) < MOST_COMMITS


GITHUB = Provider("github", _verify, _read, large=True)
