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
from sgl_mlx.limits import Limits
from sgl_mlx.server.errors import HttpError, bad_value
from sgl_mlx.server.refused import check_refused

T = TypeVar("T")

_DRAINED = 4
"""A body of up to this many times the limit is read to its end.

So a client that sends the whole body before it reads the answer gets the 413.
"""


_COUNTED = {
    "messages": "max_messages",
    "input": "max_messages",
    "tools": "max_tools",
    "choices": "max_choices",
    "questions": "max_questions",
    "contexts": "max_prompts",
    "prompt": "max_prompt_chars",
}
"""Limits on the number of items in a body's fields, by the name of the field."""


async def read(request: Request, shape: type[T], limits: Limits) -> T:
    """Decode a request's JSON body into `shape`.

    Raises:
        HttpError: the body is empty, compressed or not JSON, or a field is missing, has the wrong
            type or is not supported.
        LimitError: the body is over `max_body_bytes`, or a field has too many items.
        ClientDisconnect: the client disconnected.
    """
    coding = request.headers.get("content-encoding", "identity")
    body = await raw(request, limits)
    if coding.lower() != "identity":
        raise HttpError(415, f"the body must not be compressed, got content-encoding {coding}")
    made = decode(body, shape)
    check_refused(made)
    for field, limit in _COUNTED.items():
        found = getattr(made, field, None)
        count = len(found) if isinstance(found, list) else 0
        limits.check(limit, count, f"{field} has {count:,} items")
    return made


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


async def raw(request: Request, limits: Limits) -> bytes:
    """Return a request's body.

    Raises:
        LimitError: the body is over `max_body_bytes`.
        ClientDisconnect: the client disconnected.
    """
    max_bytes = limits.max_body_bytes
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
    limits.check("max_body_bytes", size, "the body is too large")
    return b"".join(pieces)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body`, read already, and then what `receive` gives."""
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
