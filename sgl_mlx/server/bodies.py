"""Bodies of requests: read up to a limit, and decoded into typed structures."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sgl_mlx.server.errors import HttpError, bad_value

T = TypeVar("T")

_DRAINED = 4
"""Times the limit that is still read, and dropped, so that the client hears the refusal."""


async def read(request: Request, shape: type[T], max_bytes: int) -> T:
    """Decode a request's JSON body.

    Raises:
        HttpError: 413 for a body over `max_bytes`; 400 for one that is no JSON, or whose fields
            have wrong types, naming the field.
        ClientDisconnect: the client left.
    """
    return decode(await _bytes(request, max_bytes), shape)


def decode(body: bytes, shape: type[T]) -> T:
    """Decode JSON; raises `HttpError` as `read` does."""
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
        raise bad_value(f"the body is not JSON: {error}") from error


def json_response(content: Any, status: int = 200) -> Response:
    """Encode a document as a response."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _bytes(request: Request, max_bytes: int) -> bytes:
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


def _field(message: str) -> str | None:
    """Return the path of the field that a message of msgspec's names."""
    _, found, path = message.partition(" - at `$.")
    return path.rstrip("`") if found else None


__all__ = ["ClientDisconnect", "decode", "json_response", "read"]
