"""The ASGI application that serves an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from sgl_mlx.server import decisions, operation
from sgl_mlx.server.anthropic import messages
from sgl_mlx.server.contexts import route as contexts
from sgl_mlx.server.doctor import route as cache
from sgl_mlx.server.engine import ServedEngine
from sgl_mlx.server.limits import Limits
from sgl_mlx.server.middleware import Gate
from sgl_mlx.server.native import generate, tokens, upkeep
from sgl_mlx.server.openai import chat, completions, responses
from sgl_mlx.server.openapi import with_document
from sgl_mlx.server.pages import route as page
from sgl_mlx.server.service import Service


def app(
    engine: ServedEngine,
    *,
    api_keys: Sequence[str] = (),
    model_names: Sequence[str] = (),
    limits: Limits | None = None,
    any_model: bool = False,
    cache_log: Path | None = None,
) -> Starlette:
    """Return an ASGI application that serves an engine; it can be mounted in another application.

    Args:
        engine: an `Engine`; the application does not shut it down.
        api_keys: valid API keys, one of which a request must send; if empty, none is required.
        model_names: names that requests may use for the model; by default the engine's
            `model_name`.
        limits: bounds on requests; by default those of `Limits()`.
        any_model: accept every model name.
        cache_log: file to which prompts are appended for `sgl-mlx cache-doctor`.
    """
    service = Service(engine, model_names, limits, any_model, cache_log)
    made = Starlette(
        routes=with_document(
            [
                *operation.routes(service),
                *chat.routes(service),
                *completions.routes(service),
                *responses.routes(service),
                *messages.routes(service),
                *decisions.routes(service),
                *contexts.routes(service),
                *cache.routes(service),
                *page.routes(service),
                *generate.routes(service),
                *upkeep.routes(service),
                *tokens.routes(service),
            ]
        ),
        middleware=[Middleware(Gate, keys=api_keys)],
        exception_handlers={HTTPException: _reraise},
    )
    made.state.service = service
    return made


async def _reraise(_: Request, error: Exception) -> Response:
    """Raise the error again, so that `Gate` answers it in the shape of the path's protocol."""
    raise error
