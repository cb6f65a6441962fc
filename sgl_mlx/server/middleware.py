"""ASGI middleware for all requests: ids, API keys, error answers, and one log line each."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl_mlx.limits import Limits
from sgl_mlx.server.bodies import json_response
from sgl_mlx.server.errors import HttpError, answer_for, as_http_error

access = logging.getLogger("sgl_mlx.server.access")

CLIENT = "sgl_mlx.client"
"""Key in an ASGI scope under which `Gate` puts a digest of the API key; "" if none is required."""

_OPEN = frozenset(["/", "/health", "/ready"])
"""Paths that need no API key: the live page, and the paths that monitoring calls."""

_USABLE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_CLIENT_GONE = 499


class Gate:
    """The outermost ASGI middleware: checks API keys, answers errors, and logs each request.

    Args:
        keys: valid API keys. A request must send one of them, as bearer token or in `x-api-key`,
            unless its path is in `_OPEN`; without keys every request is accepted.
        limits: bounds on the size of headers and on the number of open requests.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str] = (), limits: Limits | None = None
    ) -> None:
        self._app = app
        self._limits = limits or Limits()
        self._open = 0
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(scope, send)
        self._open += 1
        try:
            self._check(scope)
            scope[CLIENT] = self._client(passage.path, passage.headers)
            await self._app(scope, receive, passage.send)
        except ClientDisconnect:
            passage.status = _CLIENT_GONE
        except Exception as error:
            await passage.fail(as_http_error(error), receive)
        finally:
            self._open -= 1
            passage.log()

    def _check(self, scope: Scope) -> None:
        """Raise `LimitError` if headers are too large, or too many requests are open."""
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        self._limits.check("max_header_bytes", size, f"the headers have {size:,} bytes")
        if scope["path"] not in _OPEN:
            is_open = f"{self._open:,} requests are open"
            self._limits.check("max_connections", self._open, is_open)

    def _client(self, path: str, headers: Headers) -> str:
        """Return a digest of the request's API key; "" if no key is required.

        Raises:
            HttpError: 401 if the key is missing or wrong.
        """
        if not self._keys or path in _OPEN:
            return ""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        fits = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        if not any(fits):
            message = "the API key is missing" if not given else "the API key is wrong"
            raise HttpError(401, message, "invalid_api_key")
        return hashlib.blake2b(given.strip().encode(), digest_size=8).hexdigest()


class _Passage:
    """One HTTP request inside `Gate`: its id, its answer's status, and its duration."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        self.path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        self.headers = Headers(scope=scope)
        asked = self.headers.get("x-request-id", "")
        self._id = asked if _USABLE_ID.fullmatch(asked) else uuid.uuid4().hex
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._id
        await self._send(message)

    async def fail(self, error: HttpError, receive: Receive) -> None:
        """Send an error as the answer; if an answer has already begun, raise the error instead."""
        if self.status is not None:
            raise error
        status, body = answer_for(self.path, error)
        response = json_response(body, status)
        response.headers.update(error.headers)
        await response(self._scope, receive, self.send)

    def log(self) -> None:
        seconds = time.perf_counter() - self._began
        access.info(
            "%s %s %s %.1f ms %s",
            self._scope["method"],
            self._scope["path"],
            self.status or 500,
            1000 * seconds,
            self._id,
        )
