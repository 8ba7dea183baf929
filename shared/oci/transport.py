"""HTTP to registries: authentication, redirects, bounds. What the requests mean is client.py's business.

Everything a registry sends is hostile: sizes are bounded before reading, credentials go to the registry itself and to the
token server it names, never to where it redirects.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from shared.errors import HubflowError, PermanentError, RefusedError, TemporaryError
from shared.oci.credentials import Auth
from shared.oci.reference import Reference
from shared.states import Reason

_TOKEN_BYTES = 256 * 1024
_ERROR_BYTES = 16 * 1024
_REDIRECTS = 5
_TOKENS_KEPT = 512
_TOKEN_MARGIN = 10.0
"""Seconds before its end when a token is no longer used."""
_CHALLENGE = re.compile(r'([A-Za-z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `path` is below /v2/<repository>/, or a whole URL that the registry gave for an upload."""

    method: str
    path: str | URL
    actions: str = "pull"
    """What a token is asked for, such as "pull"."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class Transport:
    """Speaks to any number of registries; tokens are kept until they expire."""

    def __init__(self, session: aiohttp.ClientSession, insecure: frozenset[str]) -> None:
        self._session = session
        self._insecure = insecure
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    @asynccontextmanager
    async def call(
        self, reference: Reference, request: Request, auth: Auth | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The successful response (2xx). Raises KeyError for 404, RefusedError for other refusals, else PermanentError
        (ImagePull) or TemporaryError."""
        try:
            response = await self._answered(reference, request, auth)
            try:
                if response.status >= 300:
                    raise await _refusal(reference, response)
                yield response
            finally:
                response.close()
        except aiohttp.ClientConnectorCertificateError as error:
            raise PermanentError(
                f"the certificate of {reference.api_host} is not trusted: {error}; add its authority to the machine's, or "
                "name the registry among the insecure ones",
                reason=Reason.IMAGE_PULL,
            ) from error
        except (
            aiohttp.InvalidURL,
            ValueError,
        ) as error:  # yarl's are plain; before ClientError, which InvalidURL is, too
            raise PermanentError(f"{reference.api_host} gave an unusable address", reason=Reason.IMAGE_PULL) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TemporaryError(
                f"the registry {reference.api_host} does not answer: {error or type(error).__name__}"
            ) from error

    def base(self, reference: Reference) -> URL:
        """https, or http for this machine itself and for the registries named insecure."""
        host = reference.api_host
        plain = host in self._insecure or _is_loopback(host)
        return URL(f"{'http' if plain else 'https'}://{host}/v2/{reference.repository}/")

    async def _answered(self, reference: Reference, request: Request, auth: Auth | None) -> aiohttp.ClientResponse:
        key = (reference.api_host, reference.repository, request.actions, *_names(auth))
        response = await self._send(reference, request, self._kept(key))
        if response.status != 401:
            return response
        challenge = response.headers.get("WWW-Authenticate", "")
        response.close()
        header = await self._answer_to(challenge, reference, request.actions, auth, key)
        return await self._send(reference, request, header)

    async def _send(self, reference: Reference, request: Request, authorization: str) -> aiohttp.ClientResponse:
        base = self.base(reference)
        url = base.join(request.path if isinstance(request.path, URL) else URL(request.path, encoded=True))
        home = base.origin()
        for _ in range(_REDIRECTS + 1):
            headers = {"Accept-Encoding": "identity", **request.headers}
            if authorization and url.origin() == home:
                headers["Authorization"] = authorization
            response = await self._session.request(
                request.method, url, headers=headers, data=request.body, allow_redirects=False
            )
            location = response.headers.get("Location", "")
            if response.status not in {301, 302, 303, 307, 308} or not location:
                return response
            response.close()
            target = url.join(URL(location))
            if target.scheme not in {"http", "https"} or (url.scheme == "https" and target.scheme == "http"):
                raise PermanentError(
                    f"{reference.api_host} redirects to an address that is not safe", reason=Reason.IMAGE_PULL
                )
            url = target
        raise PermanentError(f"{reference.api_host} redirects in circles", reason=Reason.IMAGE_PULL)

    async def _answer_to(
        self, challenge: str, reference: Reference, actions: str, auth: Auth | None, key: tuple[str, ...]
    ) -> str:
        kind = challenge.partition(" ")[0].lower()
        if kind == "basic" and auth is not None:
            header = aiohttp.encode_basic_auth(auth["username"], auth["password"])
            self._keep(key, header, float("inf"))
            return header
        if kind == "bearer":
            token, expires = await self._fetch_token(dict(_CHALLENGE.findall(challenge)), reference, actions, auth)
            header = f"Bearer {token}"
            self._keep(key, header, expires)
            return header
        raise _denied(
            reference, 401, "it asks for a name and a password" if auth is None else "it refuses the credentials"
        )

    async def _fetch_token(
        self, challenge: Mapping[str, str], reference: Reference, actions: str, auth: Auth | None
    ) -> tuple[str, float]:
        realm = URL(challenge.get("realm", ""))
        if not realm.host or realm.scheme not in {"http", "https"}:
            raise _denied(reference, 401, "it names no token server")
        if realm.scheme == "http" and self.base(reference).scheme == "https":
            raise _denied(reference, 401, "it wants the password sent to a server without encryption")
        query = {"scope": f"repository:{reference.repository}:{actions}"}
        if challenge.get("service"):
            query["service"] = challenge["service"]
        headers = {"Accept-Encoding": "identity"}
        if auth is not None:
            query["account"] = auth["username"]
            headers["Authorization"] = aiohttp.encode_basic_auth(auth["username"], auth["password"])
        # No redirect is followed: the password would go with it.
        async with self._session.get(realm.update_query(query), headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise await _refusal(reference, response)
            document = read_json(await read_bounded(response, _TOKEN_BYTES, "token"), "token")
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise _denied(reference, 401, "its token server gave no token")
        seconds = document.get("expires_in")
        lifetime = float(seconds) if isinstance(seconds, int | float) and 0 < seconds < 1e6 else 60.0
        return token, time.monotonic() + lifetime - _TOKEN_MARGIN

    def _kept(self, key: tuple[str, ...]) -> str:
        header, expires = self._tokens.get(key, ("", 0.0))
        return header if expires > time.monotonic() else ""

    def _keep(self, key: tuple[str, ...], header: str, expires: float) -> None:
        while len(self._tokens) >= _TOKENS_KEPT:
            self._tokens.pop(next(iter(self._tokens)))
        self._tokens[key] = (header, expires)


async def read_bounded(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The whole body, at most `limit` bytes. Raises PermanentError (ImagePull) if it is larger."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > limit:
            raise PermanentError(f"the registry's {what} is larger than {limit} bytes", reason=Reason.IMAGE_PULL)
    return bytes(body)


def read_json(body: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises PermanentError (ImagePull) for anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise PermanentError(f"the registry's {what} is not a JSON object", reason=Reason.IMAGE_PULL)
    return document


async def _refusal(reference: Reference, response: aiohttp.ClientResponse) -> HubflowError | KeyError:
    """The error for a response that is no success."""
    status = response.status
    if status == 404:
        return KeyError(str(reference))
    if status == 429 or status >= 500:
        after = response.headers.get("Retry-After", "")
        delay = float(after) if after.isdecimal() and len(after) <= 4 and int(after) <= 3600 else None
        return TemporaryError(
            f"the registry {reference.api_host} cannot serve {reference} now: HTTP {status}", delay=delay
        )
    return _denied(reference, status, await _reason_given(response))


async def _reason_given(response: aiohttp.ClientResponse) -> str:
    """The registry's own words, shortened: what follows an error's code in its JSON document."""
    try:
        async with asyncio.timeout(5):
            first = read_json(await read_bounded(response, _ERROR_BYTES, "error"), "error")["errors"][0]
        return f"{first.get('code', '')} {first.get('message', '')}".strip()[:200]
    except (PermanentError, TimeoutError, aiohttp.ClientError, TypeError, LookupError, AttributeError):
        return ""


def _denied(reference: Reference, status: int, why: str) -> RefusedError:
    advice = (
        "check the image's name and the tenant's registry credentials" if status in {401, 403} else "check the name"
    )
    return RefusedError(
        f"the registry refused {reference} (HTTP {status}{f', {why}' if why else ''}): {advice}",
        reason=Reason.IMAGE_PULL,
    )


def _names(auth: Auth | None) -> tuple[str, ...]:
    return (auth["username"], auth["password"]) if auth is not None else ()


def _is_loopback(host: str) -> bool:
    name = URL(f"http://{host}").host or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
