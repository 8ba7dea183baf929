"""docs/monitoring.md tells of every metric there is, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from cli.serving import SERVICES, load_services
from shared.states import Reason

PAGE = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text("utf-8")


def ours() -> dict[str, set[str]]:
    """Name as Prometheus has it -> labels."""
    load_services(list(SERVICES))
    import shared.runtime.kubernetes_api  # noqa: F401 - loaded where jobs run as pods

    found = {}
    for metric in {*REGISTRY._collector_to_names}:
        if isinstance(metric, MetricWrapperBase) and metric._name.startswith("hubflow_"):
            suffix = "_total" if metric._type == "counter" else ""
            found[metric._name + suffix] = set(metric._labelnames)
    return found


def test_the_table_has_every_metric_with_its_labels() -> None:
    rows = re.findall(r"^\| `(hubflow_\w+)` \|([^|]*)\|", PAGE, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == ours()


def test_the_alerts_are_rules_of_metrics_and_reasons_that_there_are() -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    [group] = yaml.safe_load(block)["groups"]
    named = {name for rule in group["rules"] for name in re.findall(r"hubflow_\w+", rule["expr"])}
    assert {name.removesuffix("_bucket") for name in named} <= ours().keys()
    reasons = {word for rule in group["rules"] for found in re.findall(r'reason=~"([^"]*)"', rule["expr"])
               for word in found.split("|")}  # fmt: skip
    assert reasons
    assert reasons <= {*Reason}
