"""The OpenAPI document of all routes, made from the shapes of the request bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sgl_mlx.server.bodies import json_response

PATH = "/openapi.json"
_COMPONENT = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_ERROR = {
    "description": "An error, in the shape of the path's protocol.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
}


def with_document(routes: Sequence[Route]) -> list[Route]:
    """Return `routes` and the route `/openapi.json`, which answers with their OpenAPI document."""
    document = openapi(routes)

    async def answer(_: Request) -> Response:
        return json_response(document)

    return [*routes, Route(PATH, answer)]


def openapi(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of routes; the method `HEAD` is left out."""
    found = [route for route in routes if isinstance(route, Route)]
    shapes = {route.path: body_of(route) for route in found}
    known = list(dict.fromkeys(shape for shape in shapes.values() if shape is not None))
    schemas, components = msgspec.json.schema_components(known, ref_template=_COMPONENT)
    references = dict(zip(known, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in found:
        shape = shapes[route.path]
        schema = None if shape is None else references[shape]
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {}).update(_operations(route, schema))
    return {
        "openapi": "3.1.0",
        "info": {"title": "sgl-mlx", "version": _version()},
        "paths": paths,
        "components": {"schemas": components},
    }


def body_of(route: Route) -> type[msgspec.Struct] | None:
    """Return the shape that a route's body is read into; None for a route without a body.

    The function of such a route calls `service.read(request, Shape)`. So the shape is the first
    `msgspec.Struct` among the global names in the function's code.
    """
    code = getattr(route.endpoint, "__code__", None)
    names = code.co_names if code is not None else ()
    named = (route.endpoint.__globals__.get(name) for name in names)
    return next(
        (v for v in named if isinstance(v, type) and issubclass(v, msgspec.Struct)),
        None,
    )


def _operations(route: Route, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the operations of one route by method; `schema` is the JSON schema of the body."""
    methods = sorted(method.lower() for method in route.methods or () if method != "HEAD")
    return {method: _operation(method, route, schema) for method in methods}


def _operation(method: str, route: Route, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{method}{route.path}").strip("_")
    made: dict[str, Any] = {
        "operationId": name,
        "responses": {"200": {"description": "The answer."}, "default": _ERROR},
    }
    if parameters := _PARAMETER.findall(route.path):
        made["parameters"] = [
            {"name": p, "in": "path", "required": True, "schema": {"type": "string"}}
            for p in parameters
        ]
    if schema is not None and method in ("post", "put"):
        content = {"application/json": {"schema": schema}}
        made["requestBody"] = {"required": True, "content": content}
    return made


def _version() -> str:
    try:
        return version("sgl-mlx")
    except PackageNotFoundError:
        return "0"
