"""What a workflow may ask of a runtime."""

from __future__ import annotations

from typing import Any

import pytest

from shared.config import load
from shared.errors import ConfigurationError, PermanentError
from shared.runtime.allowed import Allowed
from shared.runtime.docker_body import OFFER as DOCKER
from shared.runtime.kubernetes_options import OFFER as KUBERNETES
from shared.settings import HostSettings, RuntimeSettings


@pytest.mark.parametrize(
    "options", [{}, {"network": "none"}, {"network": "bridge"}, {"read_only_root": True}, {"pull": "always"}]
)
def test_t89_what_takes_nothing_from_anybody_is_always_allowed(options: dict[str, Any]) -> None:
    Allowed.parse("", DOCKER).check(options)
    Allowed.parse("network=shop, runtime", DOCKER).check(options)


@pytest.mark.parametrize("options", [{"network": "host"}, {"network": "container:other"}, {"runtime": "nvidia"}])
def test_t89_the_engines_machine_and_other_jobs_are_not_a_workflows_to_choose(options: dict[str, Any]) -> None:
    with pytest.raises(PermanentError, match="HUBFLOW_RUNTIME_DOCKER_ALLOW"):
        Allowed.parse("", DOCKER).check(options)
    Allowed.parse("network, runtime", DOCKER).check(options)


def test_t89_only_listed_values_are_allowed() -> None:
    allowed = Allowed.parse("network=shop|stock", DOCKER)
    allowed.check({"network": "stock"})
    with pytest.raises(PermanentError, match=r"network 'host' is not allowed here, only: shop, stock"):
        allowed.check({"network": "host"})
    with pytest.raises(PermanentError, match="docker does not offer 'dind'"):
        allowed.check({"dind": True})
    with pytest.raises(PermanentError, match="must be a text, not True"):
        allowed.check({"network": True})
    with pytest.raises(PermanentError, match="kubernetes does not offer 'network'"):
        Allowed.parse("", KUBERNETES).check({"network": "host"})


def test_all_wrong_settings_are_told_at_once() -> None:
    environment = {
        "HUBFLOW_RUNTIME_KIND": "kubernets", "HUBFLOW_RUNTIME_DOCKER_ALLOW": "privileged", "HUBFLOW_LOG_LEVEL": "loud",
    }  # fmt: skip
    with pytest.raises(ConfigurationError) as told:
        load(environment, HostSettings, RuntimeSettings)
    text = str(told.value)
    for words in ("DATABASE_URL", "SECRET_KEY", "LOG_LEVEL", "did you mean 'kubernetes'?", "'privileged' is no option"):
        assert words in text
