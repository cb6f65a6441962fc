"""SGLang's administrative routes: model and server information, cache flush, aborts and load."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.flight import Ask
from sgl_mlx.server.service import Service, in_thread, new_id
from sgl_mlx.server.sse import while_connected


class AbortRequest(msgspec.Struct):
    """The body of `/abort_request`.

    Attributes:
        rid: all prompts whose id begins with this text are aborted.
        abort_all: True aborts all prompts.
    """

    rid: str | None = None
    abort_all: bool = False


def routes(service: Service) -> list[Route]:
    """Return SGLang's administrative routes, such as `/server_info` and `/flush_cache`."""

    async def model_info(_: Request) -> Response:
        return json_response(
            {
                "model_path": service.engine.model_name,
                "tokenizer_path": service.engine.model_name,
                "served_model_name": service.names[0],
                "is_generation": True,
                "max_context_length": service.context_length,
                "supports_parallel": service.engine.supports_parallel,
                "carries_requests": True,
            }
        )

    async def server_info(_: Request) -> Response:
        info = {**await service.info(), "served_model_name": service.names[0]}
        return Response(msgspec.json.encode(info, enc_hook=str), media_type="application/json")

    async def flush_cache(_: Request) -> Response:
        if service.flights.count or not await in_thread(service.engine.flush_cache):
            raise HttpError(400, "the cache was not flushed: requests are running", "busy")
        return PlainTextResponse("Cache flushed.\n")

    async def abort(request: Request) -> Response:
        fields = await service.read(request, AbortRequest)
        if fields.abort_all:
            service.flights.abort("")
        elif fields.rid:
            service.flights.abort(fields.rid)
        return Response(status_code=200)

    async def health_generate(request: Request) -> Response:
        params = SamplingParams(max_new_tokens=1, temperature=0)
        ask = Ask((Text("a"),), params, new_id("health-"))
        await while_connected(request.receive, service.flights.whole([ask]))
        return PlainTextResponse("ok\n")

    async def loads(_: Request) -> Response:
        return json_response({"loads": [_load(await service.info())]})

    async def load_for_routers(_: Request) -> Response:
        return json_response([_old_load(_load(await service.info()))])

    return [
        Route("/model_info", model_info),
        Route("/get_model_info", model_info),
        Route("/server_info", server_info),
        Route("/get_server_info", server_info),
        Route("/flush_cache", flush_cache, methods=["GET", "POST"]),
        Route("/abort_request", abort, methods=["POST"]),
        Route("/health_generate", health_generate),
        Route("/v1/loads", loads),
        Route("/get_load", load_for_routers),
    ]


def _load(info: dict[str, Any]) -> dict[str, Any]:
    stats = info.get("stats", {})
    running, waiting = stats.get("running", 0), stats.get("waiting", 0)
    slots = info.get("max_total_num_tokens", 0)
    used = max(slots - stats.get("free_slots", 0) - stats.get("cached_slots", 0), 0)
    most = info.get("max_running_requests", 0)
    prompt = stats.get("prompt_tokens", 0)
    return {
        "dp_rank": 0,
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "num_total_reqs": running + waiting,
        "num_used_tokens": used,
        "max_total_num_tokens": slots,
        "token_usage": used / slots if slots else 0.0,
        "cache_hit_rate": stats.get("cached_tokens", 0) / prompt if prompt else 0.0,
        "utilization": running / most if most else 0.0,
        "max_running_requests": most,
    }


def _old_load(load: dict[str, Any]) -> dict[str, Any]:
    """Return a load in the form of SGLang's older `/get_load`, whose `num_tokens` routers read."""
    return {
        "dp_rank": load["dp_rank"],
        "num_reqs": load["num_total_reqs"],
        "num_waiting_reqs": load["num_waiting_reqs"],
        "num_tokens": load["num_used_tokens"],
    }
