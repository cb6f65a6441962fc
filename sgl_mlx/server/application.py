"""The ASGI application that serves an engine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router

from sgl_mlx.limits import Limits
from sgl_mlx.server import decisions, operation
from sgl_mlx.server.anthropic import messages
from sgl_mlx.server.carried import Carrier
from sgl_mlx.server.contexts import route as contexts
from sgl_mlx.server.doctor import route as cache
from sgl_mlx.server.engine import ServedEngine
from sgl_mlx.server.middleware import Gate
from sgl_mlx.server.native import generate, tokens, upkeep
from sgl_mlx.server.openai import chat, completions, embeddings, responses
from sgl_mlx.server.openapi import with_document
from sgl_mlx.server.pages import route as page
from sgl_mlx.server.paths import not_here
from sgl_mlx.server.residents import Residents, ServedModel
from sgl_mlx.server.service import Service
from sgl_mlx.server.switch import Served, Switch, front_routes


def app(
    engine: ServedEngine,
    *,
    api_keys: Sequence[str] = (),
    model_names: Sequence[str] = (),
    limits: Limits | None = None,
    any_model: bool = False,
    cache_log: Path | None = None,
    origins: Sequence[str] = (),
) -> Starlette:
    """Return an ASGI application that serves an engine; it can be mounted in another application.

    Args:
        engine: an `Engine`; the application does not shut it down.
        api_keys: valid API keys, one of which a request must send; if empty, no key is required.
        model_names: names that requests may use for the model; by default the engine's
            `model_name`.
        limits: bounds on requests; None for the defaults of `Limits`.
        any_model: accept every model name.
        cache_log: file to which prompts are appended for `sgl-mlx cache-doctor`.
        origins: web pages that may call the server from a browser, such as
            `http://localhost:8080`; "*" stands for all pages.
    """
    service = Service(engine, model_names, limits, any_model, cache_log)
    made = _gated(routes_of(service), api_keys, service.limits, origins)
    made.state.service = service
    return made


def app_of_models(
    models: Sequence[ServedModel],
    budget: int,
    *,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    origins: Sequence[str] = (),
    free: Callable[[], object] = gc.collect,
) -> tuple[Starlette, Residents[Served]]:
    """Return an ASGI application that serves several models, and its `Residents`.

    Each model has the routes of `app` and is opened when a request needs it. The caller must close
    the `Residents` at the end.

    Args:
        models, budget, free: see `Residents`.
        api_keys, limits, origins: see `app`.

    Raises:
        BackendError: a model does not fit into `budget` bytes; an adapter counts together with the
            base model that it needs.
    """

    def build(model: ServedModel, engine: ServedEngine) -> Served:
        service = Service(engine, [model.name], limits)
        return Served(service, Router(routes_of(service)))

    residents = Residents(models, budget, build, free)
    switch = Switch(residents, limits or Limits())
    front = front_routes(residents, int(time.time()))

    def known() -> list[BaseRoute]:
        return [*front, *(route for served in residents.values for route in served.router.routes)]

    routes = [*front, Mount("", app=switch)]
    return _gated(routes, api_keys, limits, origins, known), residents


def routes_of(service: Service) -> list[Route]:
    """Return all routes of one model."""
    of_contexts, of_tokens = contexts.routes(service), tokens.routes(service)
    carrier = Carrier([*of_contexts, *of_tokens])
    return with_document(
        [
            *operation.routes(service),
            *chat.routes(service),
            *completions.routes(service, carrier),
            *responses.routes(service),
            *embeddings.routes(service),
            *messages.routes(service),
            *decisions.routes(service),
            *of_contexts,
            *cache.routes(service),
            *page.routes(service),
            *generate.routes(service),
            *upkeep.routes(service),
            *of_tokens,
        ]
    )


def _gated(
    routes: Sequence[BaseRoute],
    api_keys: Sequence[str],
    limits: Limits | None,
    origins: Sequence[str],
    known: Callable[[], Sequence[BaseRoute]] | None = None,
) -> Starlette:
    """Return an application behind a `Gate`; `known` gives all routes, for errors."""

    async def explain(request: Request, error: Exception) -> Response:
        """Raise the error again, so that `Gate` answers it in the shape of the path's protocol."""
        assert isinstance(error, HTTPException)
        raise not_here(request, error, known() if known else routes)

    return Starlette(
        routes=routes,
        middleware=[*_for_browsers(origins), Middleware(Gate, keys=api_keys, limits=limits)],
        exception_handlers={HTTPException: explain},
    )


def _for_browsers(origins: Sequence[str]) -> list[Middleware]:
    """Return the middleware that lets a browser hand answers to pages of other origins (CORS)."""
    if not origins:
        return []
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "x-sgl-cache", "retry-after"],
    )
    return [allowed]
