"""Requests to addresses that users give: never into our own network, unless the operator allows it.

An address is checked when it is given (`check_url`) and each time it is used: `CheckedResolver` gives aiohttp only the
addresses that it has itself resolved and checked, so that a name which changes its mind in between (DNS rebinding) leads
nowhere else. Redirects are not followed by whoever uses this.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from shared.errors import UserError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str, *, allow_private: bool = False) -> None:
    """Raises UserError 422 for an address that nothing may be sent to, as far as that can be told without asking DNS."""
    try:
        # As aiohttp reads it: IDNA makes ASCII of full-width digits and dots, and an address of what was none.
        parts = URL(url)
        host = parts.raw_host
    except ValueError as error:
        raise _bad(url, str(error)) from None
    if parts.scheme not in {"http", "https"} or not host:
        raise _bad(url, "it does not begin with https:// (or http://) and a host")
    if parts.raw_user is not None or parts.raw_password is not None:
        raise _bad(url, "a name and password do not belong into it; deliveries are signed")
    if not url.isprintable() or " " in url:
        raise _bad(url, "it has blanks or control characters")
    address = _literal(host)
    if address is None and ":" in host:  # aiohttp takes it for an address and would not ask the resolver
        raise _bad(url, f"{host} is no IPv6 address")
    if address is not None and not allow_private and is_internal(address):
        raise _bad(url, f"{host} is a private, loopback or link-local address")


def is_internal(address: Address) -> bool:
    """Is it anything but a public unicast address? Also those in which an IPv4 address is wrapped."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_internal(inner)
    return not address.is_global or address.is_multicast


class ForbiddenTargetError(OSError):
    """A name that leads only to addresses which nothing may be sent to."""


class CheckedResolver(AbstractResolver):
    """A resolver for aiohttp that keeps internal addresses back. Use it without a DNS cache."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [each for each in found if not is_internal(ipaddress.ip_address(each["host"].partition("%")[0]))]
        if not public:
            why = f"{host} leads to a private, loopback or link-local address, which is not allowed"
            raise ForbiddenTargetError(errno.EACCES, why)
        return public

    async def close(self) -> None:
        await self._resolver.close()


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _bad(url: str, why: str) -> UserError:
    return UserError(f"the address {url[:200]!r} cannot be used: {why}", code="invalid-url", status=422)
