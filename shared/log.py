"""Service logs: structlog, JSON lines where nobody watches, readable in a terminal.

A message is constant and begins with a noun ("job finished"); values are keys. `bind` puts tenant, run, job and event on
every line of a handler.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

LEVELS = ("debug", "info", "warning", "error")
# Where it happened, and never the values of variables there: they hold keys, tokens and secrets of tenants.
_TRACES = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def configure(level: str = "info", *, json: bool | None = None, file: str = "") -> None:
    """Set up logging of this process to stderr, or to the end of `file`. `json` None: JSON unless it is a terminal."""
    stream = open(file, "a", encoding="utf-8", buffering=1) if file else sys.stderr  # noqa: PTH123, SIM115 -- as long as the process
    as_json = not stream.isatty() if json is None else json
    render: list[Any] = (
        [structlog.processors.ExceptionRenderer(_TRACES), structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(pad_event_to=28, exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; only what somebody must act on is wanted from them.
    logging.basicConfig(level=logging.ERROR, handlers=[Libraries()])


class Libraries(logging.Handler):
    """Hands on what libraries log, so that their traces, too, are one line each where lines are JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)
        except Exception:
            self.handleError(record)  # as every handler: a line that cannot be written breaks nothing else


def get_logger(service: str) -> structlog.stdlib.BoundLogger:
    """The logger of one part; the name is on each line."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(service=service)
    return logger


@contextmanager
def bound(values: Mapping[str, Any]) -> Iterator[None]:
    """Put `values` on every line logged inside, in this task."""
    tokens = structlog.contextvars.bind_contextvars(**values)
    try:
        yield
    finally:
        structlog.contextvars.reset_contextvars(**tokens)
