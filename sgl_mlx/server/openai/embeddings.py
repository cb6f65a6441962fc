"""`/v1/embeddings`: a clear refusal, since the engine runs models that generate text."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.service import Service


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/embeddings`."""

    input: Any
    model: str | None = None


def routes(service: Service) -> list[Route]:
    """Return the route `/v1/embeddings`."""

    async def embeddings(request: Request) -> Response:
        fields = await service.read(request, EmbeddingRequest)
        raise HttpError(
            404,
            f"the model {service.model(fields.model)!r} generates text and makes no embeddings",
            "model_not_found",
            "model",
        )

    return [Route("/v1/embeddings", embeddings, methods=["POST"])]
