"""Settings of console: HUBFLOW_CONSOLE_*."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.config import setting


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """The REST API."""

    PREFIX = "CONSOLE"

    trigger_url: str = setting(
        "", "http:// address of trigger where it is another process: its requests are passed on; empty: it is this one"
    )
    operator_token: str = setting(
        "", "makes this an operator's token at start, named `bootstrap`: the first one of an installation", secret=True
    )
    followers: int = setting(
        1000, "most readers of one tenant that follow runs and logs at a time, in each process; more are refused (429)"
    )
    all_followers: int = setting(5000, "the same of all tenants together")
    file_bytes: int = setting(512 * 1024 * 1024, "largest file that `thub push` may upload")

    def __post_init__(self) -> None:
        if self.trigger_url and urlsplit(self.trigger_url).scheme not in {"http", "https"}:
            raise ValueError(
                f"HUBFLOW_CONSOLE_TRIGGER_URL={self.trigger_url!r} does not begin with http:// or https://"
            )
        if self.operator_token and len(self.operator_token) < 20:
            raise ValueError(
                "HUBFLOW_CONSOLE_OPERATOR_TOKEN is shorter than 20 characters; make one with `hubflow token key`"
            )
        for name in ("followers", "all_followers"):
            if getattr(self, name) < 1:
                raise ValueError(f"HUBFLOW_CONSOLE_{name.upper()} must be above 0")
        if self.file_bytes < 1:
            raise ValueError("HUBFLOW_CONSOLE_FILE_BYTES must be above 0")
