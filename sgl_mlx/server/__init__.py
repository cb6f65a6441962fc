"""The HTTP server: `app(engine)` is an ASGI application that serves one engine.

It speaks the protocols of OpenAI, Anthropic and SGLang.
"""

from sgl_mlx.server.application import app
from sgl_mlx.server.limits import Limits

__all__ = ["Limits", "app"]
