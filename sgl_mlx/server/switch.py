"""Requests to several models: each is passed to the model that its header, query or body names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from sgl_mlx.limits import Limits
from sgl_mlx.server import bodies
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.metrics import merged
from sgl_mlx.server.operation import model_card
from sgl_mlx.server.residents import Residents
from sgl_mlx.server.service import Service

HEADER = "x-sgl-model"


class _Named(msgspec.Struct):
    """A body of which only the field that names a model is read."""

    model: str | None = None


class Served(msgspec.Struct, frozen=True):
    """One open model: the state that its routes share, and the routes."""

    service: Service
    router: Router


class Switch:
    """An ASGI application that passes each request to the model it names.

    The name is the header `x-sgl-model`, else the query's `model`, else the body's `model`; a
    request without a name, or with "default", goes to the first model. `name:adapter` names an
    adapter.

    Args:
        residents: the models.
        limits: bounds on requests.
    """

    def __init__(self, residents: Residents[Served], limits: Limits) -> None:
        self._residents = residents
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await bodies.raw(request, self._limits)
        name = self._name(request, body)
        async with self._residents.borrowed(name) as served:
            await served.router(scope, bodies.replayed(body, receive), send)

    def _name(self, request: Request, body: bytes) -> str:
        names = self._residents.names
        asked = request.headers.get(HEADER) or request.query_params.get("model") or _named(body)
        if asked in (None, "", "default"):
            return names[0]
        if asked not in names:
            raise HttpError(
                404,
                f"the model {asked!r} is not served; served are {', '.join(names)}",
                "model_not_found",
                "model",
            )
        return asked


def front_routes(residents: Residents[Served], started: int) -> Sequence[Route]:
    """Return the routes that are about all models: health, the list of models, and metrics."""

    async def health(_: Request) -> Response:
        for served in residents.values:
            await served.service.info()
        return PlainTextResponse("ok\n")

    def card(name: str) -> dict[str, Any]:
        base = name.partition(":")[0]
        return {**model_card(name, base, started), "loaded": residents.is_open(name)}

    async def models(_: Request) -> Response:
        return json_response({"object": "list", "data": [card(name) for name in residents.names]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in residents.names:
            raise HttpError(404, f"the model {name!r} is not served", "model_not_found", "model")
        return json_response(card(name))

    async def metrics(_: Request) -> Response:
        for served in residents.values:
            served.service.metrics.read(await served.service.info())
        registry = CollectorRegistry()
        registry.register(merged([s.service.metrics.registry for s in residents.values]))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/health", health),
        Route("/ready", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/metrics", metrics),
    ]


def _named(body: bytes) -> str | None:
    """Return the model that a JSON body names; None if it names none or is malformed."""
    try:
        return msgspec.json.decode(body, type=_Named).model
    except (msgspec.DecodeError, RecursionError):
        return None  # the model's own route says what is wrong
