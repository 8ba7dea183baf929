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


def configure(level: str = "info", *, json: bool | None = None) -> None:
    """Set up logging of this process to stderr. `json` None: JSON unless stderr is a terminal."""
    as_json = not sys.stderr.isatty() if json is None else json
    render: list[Any] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(pad_event_to=28)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; only what somebody must act on is wanted from them.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(name)s: %(message)s")


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
