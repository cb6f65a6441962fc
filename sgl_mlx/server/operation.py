"""Routes for operating the server: health, models and metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.service import Service


def routes(service: Service) -> list[Route]:
    """Return the routes `/health`, `/ready`, `/v1/models`, `/v1/models/NAME` and `/metrics`."""

    async def health(_: Request) -> Response:
        await service.info()
        return PlainTextResponse("ok\n")

    async def models(_: Request) -> Response:
        listed = [_card(service, name) for name in service.names]
        return json_response({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.names:
            raise HttpError(404, f"the model {name!r} is not served", "model_not_found", "model")
        return json_response(_card(service, name))

    async def metrics(_: Request) -> Response:
        text = service.metrics.text(await service.info())
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/health", health),
        Route("/ready", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/metrics", metrics),
    ]


def model_card(name: str, root: str, created: int) -> dict[str, Any]:
    """Return an entry of `/v1/models`.

    Args:
        name: name that requests use for the model.
        root: name of the model whose weights are used.
        created: Unix time at which the server started.
    """
    return {"id": name, "object": "model", "created": created, "owned_by": "sgl-mlx", "root": root}


def _card(service: Service, name: str) -> dict[str, Any]:
    made = model_card(name, service.names[0], service.started)
    return {**made, "max_model_len": service.context_length}
