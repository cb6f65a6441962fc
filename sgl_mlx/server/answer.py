"""Answer a request whole or as a stream, as the client asked, for as long as it stays connected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.sse import open_stream, while_connected


class Call(Protocol):
    """One request to an endpoint that answers in both ways."""

    async def whole(self) -> Any:
        """Return the answer, to be encoded as one JSON document."""
        ...

    def stream(self) -> AsyncIterator[bytes]:
        """Yield the answer as encoded server-sent events."""
        ...


async def answer(
    request: Request,
    call: Call,
    stream: bool | None,
    pause: float,
    failure: Callable[[HttpError], bytes],
) -> Response:
    """Return the response to `call`; `pause`, `failure` and errors are those of `open_stream`."""
    if stream:
        return await open_stream(request, call.stream(), pause, failure)
    return json_response(await while_connected(request.receive, call.whole()))
