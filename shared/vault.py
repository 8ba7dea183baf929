"""Secrets at rest, signed links, and derived keys: all from one key, HUBFLOW_SECRET_KEY."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from datetime import UTC, datetime

from cryptography.fernet import Fernet, InvalidToken

from shared.errors import ConfigurationError, PermanentError, UserError


def new_key() -> str:
    """A fresh HUBFLOW_SECRET_KEY."""
    return Fernet.generate_key().decode()


class Vault:
    """Encrypts (Fernet: AES-128-CBC with HMAC-SHA-256) and signs."""

    def __init__(self, key: str) -> None:
        try:
            self._fernet = Fernet(key)
            self._key = base64.urlsafe_b64decode(key)
        except (ValueError, binascii.Error):
            raise ConfigurationError(
                "HUBFLOW_SECRET_KEY is not 32 bytes in URL-safe base64; make one with `hubflow token key`"
            ) from None

    def encrypt(self, text: str) -> bytes:
        return self._fernet.encrypt(text.encode())

    def decrypt(self, token: bytes) -> str:
        """Raises PermanentError when it was encrypted with another key."""
        try:
            return self._fernet.decrypt(bytes(token)).decode()
        except InvalidToken:
            raise PermanentError(
                "a stored secret cannot be read with this HUBFLOW_SECRET_KEY; start with the key it was written with, "
                "or set the secret again",
                reason="WrongKey",
            ) from None

    def sign_link(self, purpose: str, subject: str, expires: datetime) -> str:
        """A token for a URL: only letters, digits, `-`, `_` and `.`, so that old components may paste it anywhere."""
        payload = _encode(f"{int(expires.timestamp())}:{subject}".encode())
        return f"{payload}.{_encode(self._mac(purpose, payload))}"

    def open_link(self, purpose: str, token: str, now: datetime) -> str:
        """The subject that was signed. Raises UserError (404 if forged or cut off, 410 if expired)."""
        return self.opened_link(purpose, token, now)[0]

    def opened_link(self, purpose: str, token: str, now: datetime) -> tuple[str, datetime]:
        """The same, and when the link expires."""
        payload, _, mac = token.strip().rstrip(")").partition(".")
        try:
            genuine = hmac.compare_digest(_decode(mac), self._mac(purpose, payload))
            expires, _, subject = _decode(payload).decode().partition(":")
        except (ValueError, binascii.Error):
            genuine = False
        if not genuine:
            raise UserError(
                "this link is not valid; it may have been cut off when it was copied", code="link-invalid", status=404
            )
        if now.timestamp() > int(expires):
            raise UserError("this link has expired", code="link-expired", status=410)
        return subject, datetime.fromtimestamp(int(expires), UTC)

    def derived_key(self, purpose: str) -> bytes:
        """32 bytes for one purpose, the same in every process that has this HUBFLOW_SECRET_KEY."""
        return hmac.new(self._key, f"key {purpose}".encode(), hashlib.sha256).digest()

    def _mac(self, purpose: str, payload: str) -> bytes:
        return hmac.new(self._key, f"{purpose}\n{payload}".encode(), hashlib.sha256).digest()[:20]


def new_token() -> str:
    """A bearer token or hook secret: 256 random bits, with a prefix that secret scanners can know."""
    return f"hf_{secrets.token_urlsafe(32)}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
