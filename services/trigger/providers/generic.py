"""Any sender: signed per Standard Webhooks (https://www.standardwebhooks.com), or by HMAC-SHA-256 of the body in
X-Hubflow-Signature-256 where nothing better can be had. The latter has no time in it: who has read one can send it again."""

from __future__ import annotations

import hashlib
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from services.trigger.core import Incoming
from services.trigger.providers.protocol import Provider, Request, check_hmac, json_body, refused
from shared.clock import new_id


def _verify(request: Request, secret: str) -> None:
    if "webhook-signature" in request.headers:
        try:
            Webhook(secret).verify(request.body, dict(request.headers), json_parse=False)
        except (WebhookVerificationError, ValueError) as error:
            raise refused(f"the Standard Webhooks signature is not valid: {error}") from None
    elif "X-Hubflow-Signature-256" in request.headers:
        check_hmac(request, secret, "X-Hubflow-Signature-256", "sha256=")
    else:
        raise refused(
            "neither X-Hubflow-Signature-256 nor the headers webhook-id, webhook-timestamp and webhook-signature are there"
        )


def _read(request: Request) -> Incoming:
    values = {name: value for name, value in json_body(request).items() if _plain(value)}
    given = (request.headers.get("webhook-id") or request.headers.get("X-Hubflow-Delivery", "")).strip()[:200]
    if given:
        return Incoming("webhook", given, values=values)
    # Nothing names this message, so only what it says can tell whether it was sent twice.
    return Incoming("webhook", str(new_id()), hashlib.sha256(request.body).hexdigest(), values=values)


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


GENERIC = Provider("generic", _verify, _read, large=False)
