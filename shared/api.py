"""HTTP endpoints as data: what a request needs and answers stands beside its handler, and the OpenAPI document follows from it.

A service's `handlers.py` ends with a table of `Endpoint`s; `routes` makes aiohttp routes of them that check the token, the
scope and the tenant before the handler is called. `shared.openapi` describes whatever routes an application has.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

import pydantic
from aiohttp import web

from shared import http
from shared.auth import Identity, authenticate, tenant_of
from shared.db.database import Database
from shared.errors import UserError
from shared.text import is_fit

PUBLIC = ""
"""Scope of endpoints that need no token: they have a signature of their own."""
OPERATOR = "operator"
"""Scope of endpoints that only an operator's token may use; they belong to no tenant."""

LARGEST = 2**63 - 1
"""Of numbers in requests: what a bigint holds."""
LARGEST_SMALL = 2**31 - 1
"""Of versions and attempts: what an integer holds."""

Model = TypeVar("Model", bound=pydantic.BaseModel)
Item = TypeVar("Item")


class HasDatabase(Protocol):
    """What every context of HTTP handlers has."""

    @property
    def database(self) -> Database: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request, by whom, about which tenant ("" where the endpoint belongs to none)."""

    request: web.Request
    identity: Identity
    tenant: str

    def path(self, name: str) -> str:
        """A part of the path, decoded."""
        return self.request.match_info[name]

    def query(self, model: type[Model]) -> Model:
        """The query string as `model`. Raises UserError that lists every fault."""
        try:
            return model.model_validate(dict(self.request.query))
        except pydantic.ValidationError as error:
            faults = [{"at": ".".join(map(str, each["loc"])), "message": each["msg"]} for each in error.errors()]
            told = "; ".join(f"{fault['at']}: {fault['message']}" for fault in faults)
            raise UserError(
                f"the query string is not as expected: {told}", code="invalid-query", details={"faults": faults}
            ) from None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of a table of routes. `body`, `answer`: pydantic types of the JSON; `query`: a model of the query string."""

    method: str
    path: str
    handle: Callable[[Call, Any], Awaitable[web.StreamResponse]]
    summary: str
    scope: str = "read"
    body: Any = None
    query: type[pydantic.BaseModel] | None = None
    answer: Any = None
    status: int = 200
    media: str = http.JSON
    """Of the answer."""
    takes: str = http.JSON
    """Of the body, where it is not JSON only."""


def routes(endpoints: Iterable[Endpoint], context: HasDatabase) -> list[web.RouteDef]:
    """aiohttp routes for a table of endpoints."""
    table = list(endpoints)
    own_head = {each.path for each in table if each.method == "HEAD"}
    return [
        # aiohttp answers HEAD with each GET's handler by itself, and refuses a second one.
        web.route(each.method, _any_names(each.path), _handler(each, context), **_own_head(each, own_head))
        for each in table
    ]


def _any_names(path: str) -> str:
    """aiohttp takes no braces in a part of a path unless told to, and names may hold them."""
    return re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", path)


def _own_head(endpoint: Endpoint, paths: set[str]) -> dict[str, bool]:
    return {"allow_head": False} if endpoint.method == "GET" and endpoint.path in paths else {}


def endpoint_of(route: web.AbstractRoute) -> Endpoint | None:
    """The endpoint behind a route, if it was made by `routes`."""
    found: Endpoint | None = getattr(route.handler, "endpoint", None)
    return found


NOBODY = Identity("", None, frozenset())


def _handler(endpoint: Endpoint, context: HasDatabase) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        if endpoint.scope == PUBLIC:
            return await endpoint.handle(Call(request, NOBODY, ""), context)
        identity = await authenticate(request, context.database)
        if endpoint.scope == OPERATOR:
            identity.require_operator()
            return await endpoint.handle(Call(request, identity, ""), context)
        identity.require(endpoint.scope)
        tenant = tenant_of(request, identity)
        return await endpoint.handle(Call(request, identity, tenant), context)

    handler.__dict__["endpoint"] = endpoint
    return handler


# ---------------------------------------------------------------- pages of long lists


class Page(pydantic.BaseModel):
    """Which part of a list. `cursor` is `next_cursor` of the page before."""

    model_config = pydantic.ConfigDict(extra="forbid")

    limit: int = pydantic.Field(50, ge=1, le=500)
    cursor: str = ""

    def after(self, *kinds: Callable[[Any], Any]) -> tuple[Any, ...] | None:
        """The sort key where the page before ended, each part converted by its kind; None on the first page."""
        if not self.cursor:
            return None
        try:
            values = json.loads(base64.urlsafe_b64decode(self.cursor + "=" * (-len(self.cursor) % 4)))
            return tuple(_sort_key(kind, value) for kind, value in zip(kinds, values, strict=True))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, binascii.Error):
            raise UserError(
                "the cursor is not one that this list has given", code="invalid-cursor",
                hint="pass next_cursor of the page before, unchanged",
            ) from None  # fmt: skip


def _sort_key(kind: Callable[[Any], Any], value: Any) -> Any:
    key = kind(value)
    if isinstance(key, int) and not 0 <= key <= LARGEST:
        raise ValueError("no row has this number")
    if isinstance(key, str) and not is_fit(key):
        raise ValueError("no row has this name")
    # In UTC a time near the first or the last year may be none any more, and no database takes it.
    return key.astimezone(UTC) if isinstance(key, datetime) else key


class Listing(pydantic.BaseModel, Generic[Item]):
    """One page of a list. `next_cursor` is null on the last page."""

    items: list[Item]
    next_cursor: str | None


def listing(rows: list[Any], limit: int, view: Callable[[Any], Any], key: Callable[[Any], tuple[Any, ...]]) -> Any:
    """A `Listing` of up to `limit` rows; `rows` holds one more if there is a next page. `key`: sort key of a row."""
    shown = rows[:limit]
    cursor = None
    if len(rows) > limit:
        values = json.dumps([str(part) if not isinstance(part, int) else part for part in key(shown[-1])])
        cursor = base64.urlsafe_b64encode(values.encode()).decode().rstrip("=")
    return {"items": [view(row) for row in shown], "next_cursor": cursor}
