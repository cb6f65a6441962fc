"""Errors for paths and methods that the server does not have, with what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from sgl_mlx.server.errors import HttpError


def not_here(request: Request, error: HTTPException, routes: Iterable[BaseRoute]) -> HttpError:
    """Return the error for a request that fits none of the routes.

    Args:
        error: Starlette's error, with the status 404 or 405; others keep their message.
        routes: the routes that the server has.
    """
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    message = error.detail
    if error.status_code == 404:
        paths = [route.path for route in routes if isinstance(route, Route)]
        close = get_close_matches(path, paths, n=1, cutoff=0.7)
        meant = f"did you mean {close[0]}? " if close else ""
        message = f"there is no path {path}; {meant}/openapi.json lists all paths"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        message = f"{path} takes {allowed}, got {request.method}"
    return HttpError(error.status_code, message)
