"""What a bug writes into the log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import structlog

from shared.log import Libraries, configure, get_logger
from shared.settings import HostSettings


@pytest.mark.parametrize("as_json", [True, False])
def test_a_trace_says_where_and_never_the_values_there(tmp_path: Path, as_json: bool) -> None:
    path = tmp_path / "log"
    before = structlog.get_config()
    try:
        configure(json=as_json, file=str(path))
        secret = "of-a-tenant-" + "x" * 4
        try:
            [][len(secret)]
        except IndexError:
            get_logger("test").exception("request failed")
    finally:
        structlog.configure(**before)
    text = path.read_text()
    assert "list index out of range" in text
    assert "test_a_trace_says_where" in text
    assert secret not in text


def test_a_trace_of_a_library_is_one_line_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = structlog.get_config()
    library, handler = logging.getLogger("library"), Libraries()
    library.addHandler(handler)
    try:
        configure(json=True, file=str(path))
        try:
            [][1]
        except IndexError:
            library.exception("Unhandled %s", "exception")
    finally:
        library.removeHandler(handler)
        structlog.configure(**before)
    line = json.loads(path.read_text())
    assert (line["service"], line["level"], line["event"]) == ("library", "error", "Unhandled exception")
    assert line["exception"][0]["exc_value"] == "list index out of range"


def test_settings_do_not_show_their_secrets() -> None:
    shown = repr(HostSettings(database_url="postgresql://u:pw@h/d", amqp_url="amqp://u:pw@h", secret_key="k" * 44))
    assert "pw" not in shown
    assert "kkk" not in shown
