"""The two errors that carry meaning, and the one that users meet.

    HubflowError
    ├── TemporaryError      try again later: handlers are retried with growing delays
    │   ├── UnavailableError    a server that Hubflow stands on is away: handlers are retried for as long as it is
    │   ├── InUseError          others have not done with it: handlers are retried until they have
    │   └── LostRaceError       the database let another transaction go first: handlers begin again at once
    ├── PermanentError      will never work: the message is parked, or the job fails with the reason
    │   └── RefusedError        a server has answered that whoever asks may not have it, or that it does not have it
    └── UserError           somebody asked for what cannot be; becomes a problem document or a CLI message

Anything else that is raised is a bug: logged once with its trace, retried, then parked with the reason.
Drivers' errors are translated into these at the edge (database, bus, runtime, object storage).
"""

from __future__ import annotations

from typing import Any


class HubflowError(Exception):
    """Base of all errors that Hubflow raises on purpose."""


class TemporaryError(HubflowError):
    """Something outside does not answer now. `delay` (seconds) is how long to wait before the next try, None: the usual."""

    def __init__(self, message: str, *, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class UnavailableError(TemporaryError):
    """The database, the object storage, the container engine or the cluster's API does not answer. That is nobody's message's
    fault: it costs no try, and no message is parked because of it, however long it lasts."""


class InUseError(TemporaryError):
    """What is to be removed is still used, and whoever uses it may wait for something that is away. Handlers are retried with
    the usual delays, the last of them again and again: no message is parked because of it."""


class LostRaceError(TemporaryError):
    """Of two transactions the database chose the other one; nothing of this one has happened."""


class PermanentError(HubflowError):
    """It will never work. `reason` is stable and machine-readable (often a `shared.states.Reason`)."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class RefusedError(PermanentError):
    """A registry has answered, and does not give the image to whoever asks: it does not have it, or not for this account."""


class UserError(HubflowError):
    """The request is wrong. `code` is stable (RFC 9457 `code`), `status` the HTTP status, `hint` what to try next."""

    def __init__(
        self, message: str, *, code: str, status: int = 400, hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.hint = hint
        self.details = details or {}


class ConfigurationError(HubflowError):
    """Settings are wrong. All problems are in the message, one a line; nothing has been started."""
