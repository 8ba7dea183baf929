"""Gitea and Forgejo: https://docs.gitea.com/usage/webhooks. Their payload of a push has GitHub's shape."""

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


def _verify(request: Request, secret: str) -> None:
    if "X-Gitea-Signature" in request.headers:
        check_hmac(request, secret, "X-Gitea-Signature")
    elif "X-Hub-Signature-256" in request.headers:
        check_hmac(request, secret, "X-Hub-Signature-256", "sha256=")
    else:
        raise refused("the header X-Gitea-Signature is missing", "set a secret in the webhook's settings")


def _read(request: Request) -> Incoming:
    event, delivery = need_header(request, "X-Gitea-Event"), need_header(request, "X-Gitea-Delivery")
    payload = json_body(request)
    if event != "push":
        return Incoming("other", delivery, detail=f"the event {event!r} starts nothing; only push does")
    push = push_of(payload, _all_commits_listed)
    return Incoming("push", delivery, fingerprint(push), push=push)


def _all_commits_listed(payload: Mapping[str, Any]) -> bool:
    """Gitea lists only the newest few; `total_commits` tells how many there are (old versions do not say)."""
    total = payload.get("total_commits")
    return isinstance(total, int) and total <= len(commits_of(payload))


GITEA = Provider("gitea", _verify, _read, large=True)
