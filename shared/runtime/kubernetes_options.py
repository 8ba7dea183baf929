"""How what an operator decides about the cluster is written in settings. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

from shared.runtime.allowed import Offer

_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTPE]i|[mkMGTPE]|[eE][0-9]+)?")
_TOLERATION = {
    "key": str,
    "operator": ("Exists", "Equal"),
    "value": str,
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "tolerationSeconds": int,
}
"""Fields of a toleration: the type, or the words."""


def _check_node_selector(selector: dict[Any, Any]) -> None:
    for key, value in selector.items():
        _check_text(key, f"the key {key!r}")
        _check_text(value, f"{key} is {value!r}")
        if not _LABEL.fullmatch(value):
            raise ValueError(f"{key}: {value!r} cannot be a label's value (63 letters, digits, '-', '_' and '.')")


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        raise ValueError(f'{what}, and must be a text: write "{text}"')  # noqa: TRY004 - a workflow's


def _check_tolerations(tolerations: list[Any]) -> None:
    for each in tolerations:
        if not isinstance(each, dict):
            raise ValueError(f"{each!r} must be a map with {', '.join(_TOLERATION)}")  # noqa: TRY004 - a workflow's
        for name, value in each.items():
            kind = _TOLERATION.get(name)
            if kind is None:
                raise ValueError(f"a toleration has no {name!r}, only: {', '.join(_TOLERATION)}")
            if kind is str:
                _check_text(value, f"{name} is {value!r}")
            elif kind is int and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{name} must be a whole number of seconds, not {value!r}")
            elif isinstance(kind, tuple) and value not in kind:
                raise ValueError(f"{name} must be one of {', '.join(kind)}, not {value!r}")


def _check_quantity(amount: str) -> None:
    if not _QUANTITY.fullmatch(amount):
        raise ValueError(f'{amount!r} is no amount: write for example "2Gi"')


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
    checks={
        "node_selector": _check_node_selector,
        "tolerations": _check_tolerations,
        "ephemeral_storage": _check_quantity,
    },
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
