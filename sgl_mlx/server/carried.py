"""Requests of this project's client inside a completion, for routers that forward few paths.

sglang-router forwards `/v1/completions` with all of its fields, and knows no `/v1/contexts`. So a
completion may hold another request in its field `carried`. The router chooses a worker by the
completion's `prompt`; the worker answers the carried request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from sgl_mlx.server.bodies import replayed


class CarriedRequest(msgspec.Struct):
    """A POST request inside a completion request, limited to paths that need no stored context."""

    path: Literal["/v1/contexts/new/generate", "/v1/contexts/new/score", "/apply-template"]
    body: dict[str, Any]


class Carrier:
    """The routes that carried requests may name.

    Args:
        routes: the routes of this server that answer them.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._router = Router(routes)

    def answer(self, request: Request, carried: CarriedRequest) -> Response:
        """Return the answer to `carried`, which came inside `request`."""
        return _Carried(self._router, request, carried)


class _Carried(Response):
    def __init__(self, router: Router, request: Request, carried: CarriedRequest) -> None:
        super().__init__()
        self._router = router
        self._body = msgspec.json.encode(carried.body)
        self._path = request.scope.get("root_path", "") + carried.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inner = {**scope, "path": self._path, "raw_path": self._path.encode()}
        await self._router(inner, replayed(self._body, receive), send)
