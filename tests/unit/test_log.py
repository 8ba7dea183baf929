"""What a bug writes into the log."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from shared.log import configure, get_logger
from shared.settings import HostSettings


@pytest.mark.parametrize("json", [True, False])
def test_a_trace_says_where_and_never_the_values_there(tmp_path: Path, json: bool) -> None:
    path = tmp_path / "log"
    before = structlog.get_config()
    try:
        configure(json=json, file=str(path))
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


def test_settings_do_not_show_their_secrets() -> None:
    shown = repr(HostSettings(database_url="postgresql://u:pw@h/d", amqp_url="amqp://u:pw@h", secret_key="k" * 44))
    assert "pw" not in shown
    assert "kkk" not in shown
