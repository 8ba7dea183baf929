"""`hubflow serve` in a process of its own, without servers: what it says of its settings."""

import json
import os
import subprocess
import sys

import pytest

from cli.serving import SERVICES, all_settings, load_services
from shared.vault import new_key

ENVIRONMENT = {
    "PATH": os.environ["PATH"], "HUBFLOW_DATABASE_URL": "postgresql://hubflow@127.0.0.1:1/hubflow",
    "HUBFLOW_SECRET_KEY": new_key(), "HUBFLOW_AMQP_URL": "amqp://127.0.0.1:1/", "HUBFLOW_SCHEDULER_MAX_JOBS": "5",
    "HUBFLOW_CONSOLE_FOLOWERS": "5",
}  # fmt: skip


def test_the_settings_of_all_services_are_found_without_the_services():
    assert all_settings() == [service.settings for service in load_services(list(SERVICES))]


@pytest.mark.parametrize("arguments", [["console"], ["scheduler", "--check"]])
def test_a_setting_is_unknown_only_if_no_service_knows_it(arguments):
    command = [sys.executable, "-m", "cli.main", "serve", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
    told = [line for line in said.stderr.splitlines() if "is not a setting" in line]
    assert len(told) == 1
    assert "HUBFLOW_CONSOLE_FOLOWERS is not a setting; did you mean HUBFLOW_CONSOLE_FOLLOWERS?" in told[0]
    assert "is not a setting" not in said.stdout
    if "--check" not in arguments:
        assert json.loads(told[0])["level"] == "warning"
