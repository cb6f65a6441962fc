"""Request bodies, read up to a size limit and decoded from JSON; and JSON responses."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive

from sgl_mlx import bounds
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.server.errors import HttpError, bad_value

T = TypeVar("T")

_DRAINED = 4
"""A body of up to this many times the limit is read to its end.

So a client that sends the whole body before it reads the answer gets the 413.
"""


async def read(request: Request, shape: type[T], max_bytes: int) -> T:
    """Decode a request's JSON body into `shape`.

    Raises:
        HttpError: 413 if the body is over `max_bytes`; 400 if it is empty or not JSON, or if a
            field is missing or has the wrong type.
        ClientDisconnect: the client disconnected.
    """
    return decode(await raw(request, max_bytes), shape)


def decode(body: bytes, shape: type[T]) -> T:
    """Decode a JSON body into `shape`; raises a 400 `HttpError` as `read` does."""
    if not body:
        raise bad_value("the body is empty; send a JSON object")
    try:
        body.decode()
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise bad_value(f"the body does not fit: {error}", _field(str(error))) from error
    except UnicodeDecodeError as error:
        raise bad_value(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise bad_value("the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise bad_value(_why(body, error)) from error


def json_response(content: Any, status: int = 200) -> Response:
    """Return a response with `content` as JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def raw(request: Request, max_bytes: int) -> bytes:
    """Return a request's body.

    Raises:
        HttpError: 413 if the body is over `max_bytes`.
        ClientDisconnect: the client disconnected.
    """
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= max_bytes:
            pieces.append(piece)
        else:
            pieces.clear()
        if size > _DRAINED * max_bytes:
            break
    if size > max_bytes:
        raise HttpError(413, f"the body is too large: at most {max_bytes:,} bytes are read")
    return b"".join(pieces)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body, read before, and then what `receive` gives."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _why(body: bytes, error: msgspec.DecodeError) -> str:
    """Return the error message for a body that msgspec cannot decode.

    For half of a surrogate pair, the message is not msgspec's, which says that the body is
    truncated.
    """
    try:
        bounds.readable("the body", json.loads(body))
    except InvalidParamsError as found:
        return str(found)
    except (ValueError, RecursionError):
        pass
    return f"the body is not JSON: {error}"


def _field(message: str) -> str | None:
    """Return the field path named in a msgspec error message; None if it names no field."""
    _, found, path = message.partition(" - at `$.")
    return path.rstrip("`") if found else None


__all__ = ["ClientDisconnect", "decode", "json_response", "raw", "read", "replayed"]
