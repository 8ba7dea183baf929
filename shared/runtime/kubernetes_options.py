"""How what an operator decides about the cluster is written in settings. Pure."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from shared.runtime.allowed import Offer

OFFER = Offer(
    runtime="kubernetes",
    setting="HUBFLOW_KUBERNETES_ALLOW",
    types={
        "node_selector": dict,
        "tolerations": list,
        "priority_class": str,
        "runtime_class": str,
        "ephemeral_storage": str,
        "read_only_root": bool,
    },
    free={"read_only_root": frozenset()},
)
"""What workflows may ask for."""
CREDENTIALS = (
    "169.254.0.0/16", "fe80::/10",  # nearly all clouds' metadata, and what EKS and ECS hand out
    "fd00:ec2::254/128", "fd00:ec2::23/128",  # AWS: metadata, and EKS Pod Identity
    "fd20:ce::254/128",  # GCE
    "168.63.129.16/32",  # Azure's WireServer
    "100.100.100.200/32",  # Alibaba
)  # fmt: skip
"""Networks where clouds hand out credentials of the node or the account; the default of HUBFLOW_KUBERNETES_EGRESS_EXCEPT."""


def words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def networks(text: str) -> tuple[str, ...]:
    """IPv4 and IPv6 networks (10.0.0.0/8), separated by commas. Raises ValueError."""
    for word in words(text):
        try:
            ipaddress.ip_network(word)
        except ValueError as error:
            raise ValueError(f"{error} (a network is written like 10.0.0.0/8)") from error
    return words(text)


def pairs(text: str) -> dict[str, str]:
    """key=value, separated by commas. Raises ValueError."""
    found = {}
    for part in words(text):
        key, sign, value = part.partition("=")
        if not (sign and key.strip()):
            raise ValueError(f"{part!r} is not key=value")
        found[key.strip()] = value.strip()
    return found


def json_map(text: str) -> dict[str, Any]:
    """A JSON object, or nothing. Raises ValueError."""
    found: dict[str, Any] = _json(text, dict)
    return found


def json_list(text: str) -> list[dict[str, Any]]:
    """A JSON list of objects, or nothing. Raises ValueError."""
    found: list[dict[str, Any]] = _json(text, list)
    if not all(isinstance(each, dict) for each in found):
        raise ValueError("expected a JSON list of objects")
    return found


def _json(text: str, kind: type) -> Any:
    if not text.strip():
        return kind()
    found = json.loads(text)
    if not isinstance(found, kind):
        raise ValueError(f"expected a JSON {'object' if kind is dict else 'list'}")  # noqa: TRY004 - a setting's value
    return found
