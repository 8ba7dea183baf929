"""The description of the API, made from the routes of this very server."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.console.context import Context
from shared import http, openapi
from shared.api import PUBLIC, Call, Endpoint


async def get_openapi(call: Call, context: Context) -> web.Response:
    """OpenAPI 3.1."""
    return http.reply(openapi.document(openapi.endpoints_of(call.request.app), context.host.public_url))


ENDPOINTS = (Endpoint("GET", "/api/v1/openapi.json", get_openapi, "This document", PUBLIC, answer=dict[str, Any]),)
