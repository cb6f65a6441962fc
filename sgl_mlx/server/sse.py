"""Server-sent events: encoding, streamed responses, and cancelling when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sgl_mlx.server.errors import HttpError, as_http_error

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"

_encode = msgspec.json.Encoder().encode
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def frame(content: Any, event: str | None = None) -> bytes:
    """Encode `content` as JSON in one server-sent event; `event` is the event's name, if any."""
    data = b"data: " + _encode(content) + b"\n\n"
    return data if event is None else b"event: " + event.encode() + b"\n" + data


class EventStream(Response):
    """A response that streams frames, and stops when the client disconnects.

    Args:
        first: future of the first frame.
        frames: iterator of the frames after the first; it is always closed at the end.
        pause: seconds without a frame after which a comment is sent.
        failure: encodes an error that occurs after the headers were sent.
    """

    def __init__(
        self,
        first: asyncio.Future[bytes],
        frames: AsyncIterator[bytes],
        pause: float,
        failure: Callable[[HttpError], bytes],
    ) -> None:
        super().__init__(None, 200, _HEADERS, "text/event-stream; charset=utf-8")
        del self.headers["content-length"]
        self._frames = with_comments(first, frames, pause)
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        with suppress(ClientDisconnect):
            await while_connected(receive, self._send(start, send))

    async def _send(self, start: dict[str, Any], send: Send) -> None:
        await send(start)
        async with aclosing(self._frames) as frames:
            try:
                async for piece in frames:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except Exception as error:
                piece = self._failure(as_http_error(error))
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def open_stream(
    request: Request,
    frames: AsyncIterator[bytes],
    pause: float,
    failure: Callable[[HttpError], bytes],
) -> EventStream:
    """Return a streamed response, after at most `pause` seconds of waiting for the first frame.

    An error within that time is raised by this call, so that the HTTP answer has the status of the
    error instead of 200.

    Args:
        pause: seconds without a frame after which a comment is sent.
        failure: encodes an error that occurs after the headers were sent.

    Raises:
        ClientDisconnect: the client disconnected.
        Exception: the error that `frames` raised within `pause` seconds, before the first frame.
    """
    first = asyncio.ensure_future(anext(frames))
    try:
        await while_connected(request.receive, _settled(first, pause))
        if first.done():
            first.result()
    except BaseException:
        await _close(frames, first)
        raise
    return EventStream(first, frames, pause, failure)


async def _settled(future: asyncio.Future[bytes], seconds: float) -> None:
    await asyncio.wait([future], timeout=seconds)


async def with_comments(
    first: asyncio.Future[bytes], frames: AsyncIterator[bytes], pause: float
) -> AsyncGenerator[bytes]:
    """Yield all frames, and a comment each time that no frame comes for `pause` seconds."""
    following = first
    try:
        while True:
            while not (await asyncio.wait([following], timeout=pause))[0]:
                yield COMMENT
            try:
                yield following.result()
            except StopAsyncIteration:
                return
            following = asyncio.ensure_future(anext(frames))
    finally:
        await _close(frames, following)


async def _close(frames: AsyncIterator[bytes], following: asyncio.Future[bytes]) -> None:
    if not following.done():
        following.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await following
    if hasattr(frames, "aclose"):
        await frames.aclose()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work` and return its result; cancel it if the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected before the work was done.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
