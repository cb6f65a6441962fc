"""Errors over HTTP: status, message and code, in the JSON shape of each protocol."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException

from sgl_mlx.errors import (
    BackendError,
    ContextLengthError,
    EngineStoppedError,
    LimitError,
    NotYetError,
    RequestAborted,
    RequestError,
    TokenizerError,
)

log = logging.getLogger("sgl_mlx.server")

_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_ANTHROPIC_OVERLOADED = 529
LIMIT_ANSWERS = {
    "max_body_bytes": (413, "body_too_large"),
    "max_header_bytes": (431, "headers_too_large"),
    "max_requests": (503, "queue_full"),
    "max_connections": (503, "queue_full"),
}
"""Status and code of the answer to a request over a limit, if not 400 and "limit_exceeded"."""


class HttpError(Exception):
    """An error that ends a request and becomes its HTTP answer.

    Args:
        status: HTTP status of the answer.
        message: text for the client.
        code: error code in OpenAI's style, for example "invalid_value".
        param: name of the request field that is wrong.
        retry_after: seconds after which the client may try again.
        details: for a prompt that is too long, its token count and the limit in tokens.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        details: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.details = details

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


def bad_value(message: str, param: str | None = None) -> HttpError:
    """Return a 400 error for a wrong value in the field `param`; the caller raises it."""
    return HttpError(400, message, "invalid_value", param)


def as_http_error(error: BaseException) -> HttpError:
    """Return the HTTP error for an exception; an unexpected exception is logged and becomes 500."""
    match error:
        case HttpError():
            return error
        case HTTPException():
            return HttpError(error.status_code, error.detail)
        case ContextLengthError():
            return HttpError(
                400, str(error), "context_length_exceeded", details=(error.tokens, error.limit)
            )
        case LimitError():
            status, code = LIMIT_ANSWERS.get(error.limit, (400, "limit_exceeded"))
            retry = 1 if status == 503 else None
            return HttpError(status, str(error), code, error.limit, retry_after=retry)
        case EngineStoppedError():
            return HttpError(503, str(error), "engine_stopped", retry_after=5)
        case RequestAborted():
            return HttpError(500, str(error), "request_aborted")
        case RequestError() | NotYetError() | TokenizerError():
            return bad_value(str(error))
        case BackendError():
            return HttpError(503, str(error), retry_after=5)
    log.error("a request failed", exc_info=error)
    return HttpError(500, f"internal error: {type(error).__name__}: {error}", "internal_error")


def openai_body(error: HttpError) -> dict[str, Any]:
    """Return an error's JSON body in OpenAI's shape; SGLang's own routes use it too."""
    kind = _OPENAI_TYPES.get(error.status)
    kind = kind or ("invalid_request_error" if error.status < 500 else "server_error")
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_body(error: HttpError) -> dict[str, Any]:
    """Return an error's JSON body in Anthropic's shape.

    For a prompt that is too long, the message is worded as Anthropic's API words it, because
    Claude Code parses the two token counts from it.
    """
    kind = _ANTHROPIC_TYPES.get(error.status)
    kind = kind or ("invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if error.details is not None:
        message = "prompt is too long: {} tokens > {} maximum".format(*error.details)
    return {"type": "error", "error": {"type": kind, "message": message}}


def answer_for(path: str, error: HttpError) -> tuple[int, dict[str, Any]]:
    """Return an error's status and body in the protocol of a URL path: Anthropic's or OpenAI's.

    In Anthropic's protocol a 503 becomes 529, its status for an overloaded server.
    """
    if not path.startswith("/v1/messages"):
        return error.status, openai_body(error)
    overloaded = error.status == 503
    return _ANTHROPIC_OVERLOADED if overloaded else error.status, anthropic_body(error)
