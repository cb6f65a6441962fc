"""Answers to requests, whole or streamed; a request is cancelled when its client disconnects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from starlette.responses import Response

from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import HttpError
from sgl_mlx.server.sse import open_stream, while_connected
from sgl_mlx.server.visit import Visit


class Call(Protocol):
    """One request to an endpoint, which can be answered whole or as a stream."""

    async def whole(self) -> Any:
        """Return the answer, to be encoded as one JSON document."""
        ...

    def stream(self) -> AsyncIterator[bytes]:
        """Yield the answer as encoded server-sent events."""
        ...


async def answer(
    visit: Visit, call: Call, stream: bool | None, failure: Callable[[HttpError], bytes]
) -> Response:
    """Return the response to `call`, with the header `x-sgl-cache` if a prompt was run.

    Args:
        visit: the HTTP request and the service that answers it.
        call: computes the answer.
        stream: True answers as a stream; False and None answer whole.
        failure: encodes an error that occurs after the headers of a stream were sent.

    Raises:
        ClientDisconnect: the client disconnected before the answer began.
        Exception: an error of `call` before the answer began; see `open_stream`.
    """
    request = visit.request
    if stream:
        pause = visit.service.limits.comment_seconds
        response: Response = await open_stream(request, call.stream(), pause, failure)
    else:
        response = json_response(await while_connected(request.receive, call.whole()))
    if (told := visit.cache_header) is not None:
        response.headers["x-sgl-cache"] = told
    return response
