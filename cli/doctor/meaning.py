"""What facts mean. Pure: no cluster, no clock."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cli.doctor.finding import Finding, failed, ok, warning

KUBERNETES = (1, 27)
SIDECARS = (1, 29)
POSTGRES = 14
RABBITMQ = (3, 10)
SKEW_WARNED = 5.0
SKEW_FAILED = 60.0
"""Seconds. S3 refuses signatures that are 15 minutes off; our time limits and links suffer before."""
LOSING = ("message-ttl", "expires", "max-length", "max-length-bytes")
"""What a policy may say that makes RabbitMQ throw messages away."""
_CONNECTIONS = 10
"""HUBFLOW_DATABASE_CONNECTIONS by default, for an image older than this command, whose facts do not tell it."""
_FURTHER_CONNECTIONS = 2
"""Of one process to PostgreSQL beyond its HUBFLOW_DATABASE_CONNECTIONS (`shared.db.database`)."""
_OTHERS = 10
"""Connections that are left to others."""


def kubernetes_version(version: str) -> Finding:
    """`version` as the API server tells it: v1.34.4."""
    found = numbers(version)
    if found < KUBERNETES:
        return failed("kubernetes", f"{version} is older than 1.27", "upgrade the cluster")
    if found < SIDECARS:
        return warning("kubernetes", f"{version}: services beside a job need 1.29", "upgrade the cluster")
    return ok("kubernetes", version)


def postgres(facts: Mapping[str, Any], processes: int, namespace: str) -> list[Finding]:
    """`facts`: error, or version (server_version_num), pending, max_connections, and connections (of one process at most).
    `processes`: of services, all replicas."""
    if error := facts.get("error"):
        return [failed("postgresql", str(error), "HUBFLOW_DATABASE_URL in the Secret hubflow-core")]
    findings = []
    if facts["version"] < POSTGRES * 10000:
        findings.append(
            failed("postgresql", f"version {facts['version'] // 10000} is older than {POSTGRES}", "upgrade it")
        )
    else:
        findings.append(ok("postgresql", f"version {facts['version'] // 10000}"))
    if facts["pending"]:
        again = f"kubectl -n {namespace} delete job migrate --ignore-not-found, then apply the overlay again"
        findings.append(failed("migrations", f"the database lacks {', '.join(facts['pending'])}", again))
    else:
        findings.append(ok("migrations", "the database is of this version"))
    allowed = facts["max_connections"]
    if (needed := processes * (facts.get("connections", _CONNECTIONS) + _FURTHER_CONNECTIONS)) > allowed - _OTHERS:
        message = f"{processes} processes may want {needed} connections, PostgreSQL allows {allowed}"
        fix = f"max_connections = {needed + 50}"
        if (fitting := (allowed - _OTHERS) // processes - _FURTHER_CONNECTIONS) > 1:
            fix += f", or HUBFLOW_DATABASE_CONNECTIONS={fitting} in settings.env"
        findings.append(warning("connections", message, fix))
    return findings


def rabbitmq(facts: Mapping[str, Any]) -> list[Finding]:
    """`facts`: error, or version, queues (name -> error or ""), policies (None: not to be seen)."""
    if error := facts.get("error"):
        return [failed("rabbitmq", str(error), "HUBFLOW_AMQP_URL in the Secret hubflow-core")]
    if numbers(facts["version"]) < RABBITMQ:
        return [failed("rabbitmq", f"version {facts['version']} is older than 3.10", "upgrade it")]
    return [ok("rabbitmq", f"version {facts['version']}"), _policies(facts.get("policies"))]


def _policies(policies: Sequence[Mapping[str, Any]] | None) -> Finding:
    check = "rabbitmq policies"
    if policies is None:
        return warning(
            check, "cannot be seen: the management plugin does not answer at port 15672", "rabbitmqctl list_policies"
        )
    losing = [
        (each["name"], sorted(set(LOSING) & set(each["definition"])))
        for each in policies
        if set(LOSING) & set(each["definition"]) and re.search(each["pattern"], "hubflow.scheduler hubflow.dead")
    ]
    if losing:
        name, keys = losing[0]
        message = f"the policy {name} sets {', '.join(keys)} on our queues: RabbitMQ would throw events away"
        return failed(check, message, f"rabbitmqctl clear_policy {name}")
    return ok(check, "none throws events away")


def objects(check: str, facts: Mapping[str, Any], endpoint: str) -> Finding:
    """`facts`: error ("" if all went well), and what to set."""
    if error := facts.get("error"):
        return failed(
            check,
            f"{endpoint or 'AWS'}: {error}",
            str(facts.get("fix", "HUBFLOW_S3_* in settings.env and hubflow-objects")),
        )
    return ok(check, f"{endpoint or 'AWS'} answers")


def names(facts: Mapping[str, str]) -> Finding:
    """`facts`: host -> error or ""."""
    bad = {name: error for name, error in facts.items() if error}
    if bad:
        name, error = next(iter(bad.items()))
        return failed(
            "names",
            f"a job cannot resolve {name}: {error}",
            f"kubectl -n kube-system logs -l k8s-app=kube-dns; is {name} right?",
        )
    return ok("names", f"a job resolves {', '.join(facts)}")


def clocks(check: str, times: Mapping[str, float]) -> Finding:
    """`times`: whose -> seconds since 1970, all of one moment."""
    skew = max(times.values()) - min(times.values())
    text = f"{' and '.join(times)} are {skew:.1f} s apart"
    if skew > SKEW_FAILED:
        return failed(check, text, "run an NTP client (chrony) on all nodes and servers")
    if skew > SKEW_WARNED:
        return warning(check, text, "run an NTP client (chrony) on all nodes and servers")
    return ok(check, text)


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(each) for each in re.findall(r"\d+", version)[:2])
