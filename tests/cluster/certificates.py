"""The cluster's certificates and kubeconfigs, made anew for each cluster."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster import NODE, NODE_ADDRESS

SERVICE_ADDRESS = "10.250.0.1"
"""The API server's as pods know it."""
_USERS = {
    "admin": ("admin", "system:masters"),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
}
"""Kubeconfig -> user and group."""
_YEARS = timedelta(days=3650)


def issue(folder: Path) -> None:
    """Write pki/* and NAME.kubeconfig into `folder`."""
    pki = folder / "pki"
    pki.mkdir(parents=True, exist_ok=True)
    authority = _Authority(pki)
    names = [x509.DNSName(name) for name in ("localhost", "kubernetes.default.svc")]
    addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", NODE_ADDRESS, SERVICE_ADDRESS)]
    authority.sign("apiserver", "kube-apiserver", alternatives=[*names, *addresses])
    authority.sign("to-kubelet", "apiserver-kubelet-client", "system:masters")
    accounts = ec.generate_private_key(ec.SECP256R1())
    _write_key(pki / "sa.key", accounts)
    public = accounts.public_key()
    shape = serialization.PublicFormat.SubjectPublicKeyInfo
    (pki / "sa.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, shape))
    for name, (user, group) in _USERS.items():
        authority.sign(name, user, group)
        (folder / f"{name}.kubeconfig").write_text(_kubeconfig(pki, name))


class _Authority:
    def __init__(self, pki: Path) -> None:
        self._pki = pki
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("hubflow-test-ca")
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self._write("ca", self._key, self._built(self._name, self._key, basic))

    def sign(self, file: str, user: str, group: str = "", alternatives: Sequence[x509.GeneralName] = ()) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._built(_name(user, group), key, x509.BasicConstraints(ca=False, path_length=None))
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        self._write(file, key, builder)

    def _built(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, basic: x509.BasicConstraints
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(subject_name=subject, issuer_name=self._name, public_key=key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + _YEARS)
        # Python 3.13 and later want to see who has signed.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(issuer, critical=False).add_extension(own, critical=False)
        return builder.add_extension(basic, critical=True)

    def _write(self, file: str, key: ec.EllipticCurvePrivateKey, builder: x509.CertificateBuilder) -> None:
        signed = builder.sign(self._key, hashes.SHA256())
        (self._pki / f"{file}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        _write_key(self._pki / f"{file}.key", key)


def _name(user: str, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    path.touch(mode=0o600)
    path.write_bytes(pem)


def _kubeconfig(pki: Path, user: str) -> str:
    cluster = {"server": f"https://{NODE_ADDRESS}:6443", "certificate-authority": str(pki / "ca.crt")}
    files = {"client-certificate": str(pki / f"{user}.crt"), "client-key": str(pki / f"{user}.key")}
    name = "hubflow-test"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": "user", "user": files}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "user"}}],
        "current-context": name,
    }
    return json.dumps(document, indent=2)  # JSON is YAML
