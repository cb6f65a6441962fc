"""`/cache`: the last prompts, their cached tokens, and where they stop matching earlier prompts."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.doctor.history import Seen
from sgl_mlx.server.doctor.tree import branches
from sgl_mlx.server.service import Service, in_thread
from sgl_mlx.server.visit import Visit

_PROMPTS = 64


def routes(service: Service) -> list[Route]:
    """Return the route `/cache`, which shows a client only its own prompts."""

    async def cache(request: Request) -> Response:
        client = Visit(service, request).client
        return json_response(await in_thread(_told, service, client))

    return [Route("/cache", cache)]


def _told(service: Service, client: str) -> dict[str, Any]:
    prompts = service.history.of_client(client)[-_PROMPTS:]
    known = [seen for seen in prompts if seen.prompt_tokens is not None]
    total = sum(seen.prompt_tokens or 0 for seen in known)
    return {
        "hit_rate": sum(seen.cached_tokens or 0 for seen in known) / total if total else 0.0,
        "cost": round(sum(seen.cost or 0.0 for seen in known), 3),
        "under_way": [
            {"id": rid, "seconds": round(time.monotonic() - began, 1)}
            for rid, began in service.flights.under_way()
            if any(seen.id == rid for seen in prompts)
        ],
        "conversations": _conversations(prompts),
        "tree": [branch.to_dict() for branch in branches(prompts)],
    }


def _conversations(prompts: list[Seen]) -> list[dict[str, Any]]:
    """Return the prompts by conversation; the conversation that was active last comes first."""
    found: dict[str, list[Seen]] = {}
    for seen in prompts:
        found.setdefault(seen.conversation, []).append(seen)
    recent = sorted(found.items(), key=lambda item: -item[1][-1].began)
    return [{"id": id, "prompts": [seen.to_dict() for seen in turns]} for id, turns in recent]
