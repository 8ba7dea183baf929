"""Image references (reference.py), credentials for registries (credentials.py) and a registry client (client.py)."""

from shared.oci.client import ImageConfig, Manifest, RegistryClient, open_registry_client
from shared.oci.credentials import Auth, credentials_for
from shared.oci.reference import Reference, parse_reference

__all__ = [
    "Auth",
    "ImageConfig",
    "Manifest",
    "Reference",
    "RegistryClient",
    "credentials_for",
    "open_registry_client",
    "parse_reference",
]
