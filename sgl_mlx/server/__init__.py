"""The HTTP server: `app(engine)` is an ASGI application that serves one engine.

`app_of_models` serves several models within a memory budget.

It speaks the protocols of OpenAI, Anthropic and SGLang.
"""

from sgl_mlx.limits import Limits
from sgl_mlx.server.application import app, app_of_models
from sgl_mlx.server.residents import ServedModel

__all__ = ["Limits", "ServedModel", "app", "app_of_models"]
