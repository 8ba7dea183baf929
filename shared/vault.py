"""Secrets at rest, signed links, and derived keys: all from HUBFLOW_SECRET_KEY.

That is one key, or several while it is changed: the first encrypts and signs, what any of them has encrypted or signed is read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from datetime import UTC, datetime

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from shared.errors import ConfigurationError, PermanentError, UserError

_KEY_LENGTH = 44
"""32 bytes in base64."""


def new_key() -> str:
    """A fresh HUBFLOW_SECRET_KEY."""
    return Fernet.generate_key().decode()


class Vault:
    """Encrypts (Fernet: AES-128-CBC with HMAC-SHA-256) and signs."""

    def __init__(self, keys: str) -> None:
        """`keys`: one, or several with commas between them."""
        each = [key.strip() for key in keys.split(",")]
        try:
            # base64 ends at the first `=`, and would say nothing of what follows it.
            ciphers = [Fernet(key if len(key) == _KEY_LENGTH else "") for key in each]
            self._keys = [base64.urlsafe_b64decode(key) for key in each]
        except (ValueError, binascii.Error):
            raise ConfigurationError(
                "HUBFLOW_SECRET_KEY is not 32 bytes in URL-safe base64 (or several of these: NEW,OLD); "
                "make one with `hubflow token key`"
            ) from None
        self._first, self._fernet = ciphers[0], MultiFernet(ciphers)

    def encrypt(self, text: str) -> bytes:
        return self._fernet.encrypt(text.encode())

    def decrypt(self, token: bytes) -> str:
        """Raises PermanentError when it was encrypted with none of our keys."""
        try:
            return self._fernet.decrypt(bytes(token)).decode()
        except InvalidToken:
            raise PermanentError(
                "a stored secret cannot be read with this HUBFLOW_SECRET_KEY; start with the key it was written with, "
                "or set the secret again",
                reason="WrongKey",
            ) from None

    def renewed(self, token: bytes) -> bytes | None:
        """The same, encrypted with the first key; None if it is already. Raises PermanentError as `decrypt`."""
        try:
            self._first.decrypt(bytes(token))
        except InvalidToken:
            return self.encrypt(self.decrypt(token))
        return None

    def sign_link(self, purpose: str, subject: str, expires: datetime) -> str:
        """A token for a URL: only letters, digits, `-`, `_` and `.`, so that old components may paste it anywhere."""
        payload = _encode(f"{int(expires.timestamp())}:{subject}".encode())
        return f"{payload}.{_encode(_mac(self._keys[0], purpose, payload))}"

    def open_link(self, purpose: str, token: str, now: datetime) -> str:
        """The subject that was signed. Raises UserError (404 if forged or cut off, 410 if expired)."""
        return self.opened_link(purpose, token, now)[0]

    def opened_link(self, purpose: str, token: str, now: datetime) -> tuple[str, datetime]:
        """The same, and when the link expires."""
        payload, _, mac = token.strip().rstrip(")").partition(".")
        try:
            given = _decode(mac)
            genuine = any(hmac.compare_digest(given, _mac(key, purpose, payload)) for key in self._keys)
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
        """32 bytes for one purpose, the same in every process whose HUBFLOW_SECRET_KEY begins with the same key."""
        return hmac.new(self._keys[0], f"key {purpose}".encode(), hashlib.sha256).digest()


def new_token() -> str:
    """A bearer token or hook secret: 256 random bits, with a prefix that secret scanners can know."""
    return f"hf_{secrets.token_urlsafe(32)}"


def _mac(key: bytes, purpose: str, payload: str) -> bytes:
    return hmac.new(key, f"{purpose}\n{payload}".encode(), hashlib.sha256).digest()[:20]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
