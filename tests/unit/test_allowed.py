"""What a workflow may ask of a runtime."""

from __future__ import annotations

from typing import Any

import pytest

from shared.config import load
from shared.errors import ConfigurationError, PermanentError
from shared.runtime.allowed import Allowed, Offer
from shared.runtime.docker_body import OFFER as DOCKER
from shared.runtime.kubernetes_options import OFFER as KUBERNETES
from shared.settings import HostSettings, RuntimeSettings


def refusal(listed: str, options: dict[str, Any], offer: Offer = DOCKER) -> str:
    """Why these options are refused; "" if they are not."""
    try:
        Allowed.parse(listed, offer).check(options)
    except PermanentError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "options", [{}, {"network": "none"}, {"network": "bridge"}, {"read_only_root": True}, {"pull": "always"}]
)
def test_t89_what_takes_nothing_from_anybody_is_always_allowed(options: dict[str, Any]) -> None:
    assert refusal("", options) == refusal("network=shop, runtime", options) == ""


@pytest.mark.parametrize("options", [{"network": "host"}, {"network": "container:other"}, {"runtime": "nvidia"}])
def test_t89_the_engines_machine_and_other_jobs_are_not_a_workflows_to_choose(options: dict[str, Any]) -> None:
    assert "HUBFLOW_RUNTIME_DOCKER_ALLOW" in refusal("", options)
    assert refusal("network, runtime", options) == ""


def test_t89_only_listed_values_are_allowed() -> None:
    assert refusal("network=shop|stock", {"network": "stock"}) == ""
    for offer, options, words in (
        (DOCKER, {"network": "host"}, "network 'host' is not allowed here, only: shop, stock"),
        (DOCKER, {"dind": True}, "docker does not offer 'dind'"),
        (DOCKER, {"network": True}, "must be a text, not True"),
        (KUBERNETES, {"network": "host"}, "kubernetes does not offer 'network'"),
    ):
        assert words in refusal("network=shop|stock" if offer is DOCKER else "", options, offer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"node_selector": {"gpu": True}}, 'gpu is True, and must be a text: write "true"'),
        ({"node_selector": {"zone": 2}}, 'write "2"'),
        ({"node_selector": {"pool": "two words"}}, "cannot be a label's value"),
        ({"tolerations": ["gpu"]}, "must be a map"),
        ({"tolerations": [{"keys": "gpu"}]}, "no 'keys', only: key, operator"),
        ({"tolerations": [{"key": "gpu", "value": True}]}, 'write "true"'),
        ({"tolerations": [{"key": "gpu", "operator": "exists"}]}, "operator must be one of Exists, Equal"),
        ({"tolerations": [{"key": "gpu", "effect": "NoRun"}]}, "effect must be one of NoSchedule"),
        ({"tolerations": [{"key": "gpu", "tolerationSeconds": "5"}]}, "whole number of seconds"),
        ({"ephemeral_storage": "2 GB"}, "no amount"),
    ],
)
def test_what_kubernetes_would_refuse_is_told_when_the_workflow_is_applied(options: dict[str, Any], words: str) -> None:
    assert words in refusal("node_selector, tolerations, ephemeral_storage", options, KUBERNETES)


@pytest.mark.parametrize(
    "options",
    [
        {"node_selector": {"gpu": "true", "any": ""}},
        {"tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]},
        *({"ephemeral_storage": amount} for amount in ("2Gi", "500M", "1.5Gi", "1e9", "1000")),
    ],
)
def test_what_kubernetes_takes_is_not_refused(options: dict[str, Any]) -> None:
    assert refusal("node_selector, tolerations, ephemeral_storage", options, KUBERNETES) == ""


def test_all_wrong_settings_are_told_at_once() -> None:
    environment = {
        "HUBFLOW_RUNTIME_KIND": "kubernets", "HUBFLOW_RUNTIME_DOCKER_ALLOW": "privileged", "HUBFLOW_LOG_LEVEL": "loud",
    }  # fmt: skip
    with pytest.raises(ConfigurationError) as told:
        load(environment, HostSettings, RuntimeSettings)
    text = str(told.value)
    for words in ("DATABASE_URL", "SECRET_KEY", "LOG_LEVEL", "did you mean 'kubernetes'?", "'privileged' is no option"):
        assert words in text
