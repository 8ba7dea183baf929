"""The OpenAPI 3.1 document of whatever routes an application has: made from the same table as the routes (`shared.api`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import pydantic
from aiohttp import web
from pydantic.json_schema import JsonSchemaMode

from shared.api import OPERATOR, PUBLIC, Endpoint, endpoint_of
from shared.http import JSON, PROBLEM

_PARAMETERS = {
    "run": "id or number of a run, or `@latest`",
    "token": "id of a token; under /d/: what the link was signed with",
    "source": "who sends: github, gitea or generic",
    "job": "name of a job",
    "stage": "name of a stage",
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `code` is stable; other members depend on it.",
    "required": ["type", "status", "code", "title", "detail"],
    "properties": {
        "type": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "title": {"type": "string"},
        "detail": {"type": "string", "description": "what happened, for people"},
        "hint": {"type": "string", "description": "what to try next"},
    },
}
_REFERENCE = "#/components/schemas/{model}"


def endpoints_of(app: web.Application) -> list[Endpoint]:
    """Every endpoint of an application, in the order of registration."""
    found = {}
    for route in app.router.routes():
        endpoint = endpoint_of(route)
        if endpoint is not None:
            found[endpoint.method, endpoint.path] = endpoint
    return list(found.values())


def document(endpoints: Iterable[Endpoint], server: str) -> dict[str, Any]:
    """The whole document; `server` is the address of the installation."""
    table = list(endpoints)
    schemas, definitions = _schemas(table)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        path = plain_path(endpoint)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hubflow", "version": version("hubflow"), "license": {"name": "MIT", "identifier": "MIT"},
            "description": "Workflows as containers. Creates take the header `Idempotency-Key`: for a day, the same request "
            "with the same key gets the first one's answer. An operator's token names the tenant in the header "
            "`Hubflow-Tenant`.",
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM, **definitions},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "It was refused",
                    "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
        },
    }  # fmt: skip


def plain_path(endpoint: Endpoint) -> str:
    """The path without the patterns of its parts."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", endpoint.path)


def _schemas(table: list[Endpoint]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Schemas of all bodies and answers by (type, mode), and the definitions that they refer to."""
    wanted: dict[tuple[Any, JsonSchemaMode], Any] = {}
    for endpoint in table:
        for kind in (endpoint.body, endpoint.query):
            if kind is not None:
                wanted[repr(kind), "validation"] = kind
        if endpoint.answer is not None:
            wanted[repr(endpoint.answer), "serialization"] = endpoint.answer
    made, top = pydantic.TypeAdapter.json_schemas(
        [(name, mode, pydantic.TypeAdapter(kind)) for (name, mode), kind in wanted.items()], ref_template=_REFERENCE
    )
    return dict(made), top.get("$defs", {})


def _operation(endpoint: Endpoint, schemas: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": "_".join(
            [endpoint.method.lower(), *re.findall(r"\w+", plain_path(endpoint).removeprefix("/api/v1/"))]
        ),
        "tags": [_tag(endpoint)],
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint)],
        "responses": {
            str(endpoint.status): _answer(endpoint, schemas),
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if endpoint.scope == PUBLIC:
        operation["security"] = []
    else:
        needed = {OPERATOR: "an operator's token", "read": "a token with any scope"}
        scope = needed.get(endpoint.scope, f"scope `{endpoint.scope}`")
        operation["security"] = [{"token": []}]
        operation["description"] = f"{(endpoint.handle.__doc__ or endpoint.summary).strip()}\n\nNeeds {scope}."
    if endpoint.body is not None:
        schema = schemas[repr(endpoint.body), "validation"]
        content = {
            media: {"schema": schema if media == JSON else {"type": "string"}} for media in endpoint.takes.split(", ")
        }
        operation["requestBody"] = {"required": endpoint.method == "PUT", "content": content}
    return operation


def _answer(endpoint: Endpoint, schemas: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.answer is not None:
        answer["content"] = {endpoint.media: {"schema": schemas[repr(endpoint.answer), "serialization"]}}
    return answer


def _tag(endpoint: Endpoint) -> str:
    """The first word of the path that says something."""
    return next(word for word in endpoint.path.split("/") if word not in {"", "api", "v1"})


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"},
         "description": _PARAMETERS.get(name, f"name of the {name}")}
        for name in re.findall(r"\{(\w+)", endpoint.path)
    ]  # fmt: skip


def _query_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    if endpoint.query is None:
        return []
    properties = endpoint.query.model_json_schema(ref_template=_REFERENCE).get("properties", {})
    return [
        {"name": name, "in": "query", "required": False, "description": schema.get("description", ""), "schema": schema}
        for name, schema in properties.items()
    ]
