"""The HTTP server: `app(engine)` is an ASGI application for every client people use."""

from sgl_mlx.server.application import app
from sgl_mlx.server.limits import Limits

__all__ = ["Limits", "app"]
