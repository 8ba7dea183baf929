"""Where the API server is and who we are there: a pod's own account, or a kubeconfig.

A pod's account is three files that Kubernetes promises. Kubeconfigs, with their plugins and clouds, are read by
kubernetes-asyncio; it is loaded only then, as that takes three seconds and 70 MB.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_AGE = 60.0
"""Seconds after which the token is read again: kubelet replaces it before it ends."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, and how much it may be asked."""

    kubeconfig: str = ""
    """File; "" for the pod's own service account, or, outside of a cluster, KUBECONFIG and ~/.kube/config."""
    context: str = ""
    """Of the kubeconfig; "" for its current one."""
    calls_per_second: float = 200.0
    """Calls of this process, with bursts of twice as many; 0: no limit of ours."""
    server: str = ""
    """Address in place of the configured one, for who puts something in between."""


@dataclass(frozen=True, slots=True)
class Server:
    """How to speak to the API server."""

    address: str
    tls: ssl.SSLContext
    token: Callable[[], Awaitable[str]]
    """The value of the Authorization header now; "" for none."""
    proxy: str | None = None
    name: str | None = None
    """Whom the certificate must name, where that is not the address's host (`tls-server-name`)."""


async def find_server(access: Access) -> Server:
    """As configured, in a pod, or by the user's kubeconfig. Raises ConfigurationError."""
    own = _own_account() if not (access.kubeconfig or access.context) else None
    server = own or await _by_kubeconfig(access)
    if access.server:
        return Server(access.server, server.tls, server.token, name=server.name)
    return server


def _own_account() -> Server | None:
    """The pod's, None outside of a cluster. Its address is told by the cluster and not by an operator, hence no setting."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
    token = ACCOUNT / "token"
    if not (host and port and token.is_file()):
        return None
    known = ("", 0.0)

    async def read() -> str:
        nonlocal known
        if time.monotonic() > known[1]:
            known = (f"Bearer {token.read_text().strip()}", time.monotonic() + TOKEN_AGE)
        return known[0]

    address = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Server(address, _tls(str(ACCOUNT / "ca.crt")), read)


async def _by_kubeconfig(access: Access) -> Server:
    from kubernetes_asyncio import config
    from kubernetes_asyncio.client import Configuration

    found = Configuration()
    try:
        await config.load_kube_config(access.kubeconfig or None, access.context or None, client_configuration=found)
    except (config.ConfigException, OSError, ValueError) as error:
        where = access.kubeconfig or "KUBECONFIG, ~/.kube/config"
        raise ConfigurationError(
            f"no Kubernetes configuration ({where}: {error}); set HUBFLOW_KUBERNETES_KUBECONFIG, "
            "or run in a pod with a service account"
        ) from error
    tls = _tls(found.ssl_ca_cert)
    if found.cert_file:
        tls.load_cert_chain(found.cert_file, found.key_file)
    if not found.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE

    async def token() -> str:
        return await found.get_api_key_with_prefix("BearerToken") or ""

    return Server(str(found.host), tls, token, found.proxy or None, found.tls_server_name)


def _tls(authority: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    # Many clusters' certificates are older than this rule.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
