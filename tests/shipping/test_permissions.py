"""What each service's account may do on the cluster, and that it is nothing else."""

from __future__ import annotations

import pytest

from tests.shipping.kubectl import Kubectl

pytestmark = pytest.mark.servers
JOBS = "hubflow-jobs"
READING = {"get", "list", "watch"}
ALLOWED = {
    "executor": {
        "pods": {"create", "get", "patch", "delete"},
        "secrets": {"create"},
        "persistentvolumeclaims": {"create", "get", "delete"},
        "nodes": {"list"},
    },
    "status-watcher": {"pods": {*READING, "patch", "delete"}, "secrets": {"delete"}},
    "log-collector": {"pods": READING, "pods/log": {"get"}},
    "console": {}, "trigger": {}, "scheduler": {}, "notifier": {}, "migrate": {},
}  # fmt: skip
"""Account -> kind -> verbs, in the namespace of jobs."""
ELSEWHERE = {"executor": {"nodes": {"list"}}}
"""The same in all others, which is what components/image-volumes lets it do. Nodes are in no namespace."""
REFUSED = [
    ("executor", "get", "secrets", JOBS),
    ("executor", "create", "pods/exec", JOBS),
    ("executor", "get", "nodes/proxy", ""),
    ("status-watcher", "list", "nodes", ""),
    ("executor", "create", "pods", "hubflow"),
    ("executor", "create", "rolebindings.rbac.authorization.k8s.io", JOBS),
    ("status-watcher", "create", "pods", JOBS),
    ("status-watcher", "list", "secrets", JOBS),
    ("log-collector", "delete", "pods", JOBS),
    ("log-collector", "get", "pods/log", "hubflow"),
    ("console", "list", "pods", JOBS),
    ("scheduler", "get", "secrets", "hubflow"),
    ("notifier", "get", "configmaps", "hubflow"),
]
EVERYBODY = {"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"}


def may(kubectl: Kubectl, account: str, namespace: str) -> dict[str, set[str]]:
    """Kind -> verbs, of all that the API server lets the account do in a namespace, and of cluster-wide things."""
    listed = kubectl("auth", "can-i", "--list", f"--as=system:serviceaccount:hubflow:{account}", "-n", namespace)
    rules: dict[str, set[str]] = {}
    for line in listed.splitlines()[1:]:
        kind, _, verbs = line.rstrip().rpartition("[")
        # Paths such as /healthz have no kind: they stand in the second column.
        if not line.startswith(" ") and (name := kind.split()[0].split(".")[0]) not in EVERYBODY:
            rules.setdefault(name, set()).update(verbs.rstrip("]").split())
    return rules


@pytest.mark.parametrize("account", ALLOWED)
def test_an_account_may_do_this_in_the_namespace_of_jobs_and_no_more(kubectl, permissions, account):
    assert may(kubectl, account, JOBS) == ALLOWED[account]


@pytest.mark.parametrize("account", ALLOWED)
@pytest.mark.parametrize("namespace", ["hubflow", "kube-system"])
def test_an_account_may_do_nothing_elsewhere(kubectl, permissions, account, namespace):
    assert may(kubectl, account, namespace) == ELSEWHERE.get(account, {})


@pytest.mark.parametrize(("account", "verb", "kind", "namespace"), REFUSED)
def test_an_account_is_refused(kubectl, permissions, account, verb, kind, namespace):
    kind, _, part = kind.partition("/")
    who = f"--as=system:serviceaccount:hubflow:{account}"
    asked = kubectl.run("auth", "can-i", verb, kind, f"--subresource={part}", who, "-n", namespace)
    assert (asked.returncode, asked.stdout.strip()) == (1, "no"), asked.stderr


@pytest.mark.parametrize("account", ["console", "trigger", "scheduler", "notifier", "migrate"])
def test_who_does_not_speak_with_the_cluster_gets_no_token(kubectl, permissions, account):
    assert kubectl.get("serviceaccount", account, "-n", "hubflow")["automountServiceAccountToken"] is False
