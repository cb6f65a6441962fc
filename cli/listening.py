"""The socket, the log and the process of a server, and the line that says where it listens."""

from __future__ import annotations

import asyncio
import gc
import logging
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.errors import BackendError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp, Receive, Scope, Send

QUESTION = '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 50}'
_HEALTH = ("/health", "/health_generate", "/ready")
_START = '{"prompt": "Once upon a time", "max_tokens": 50}'


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket to an address, without listening yet.

    This is done before the model is loaded, so that a wrong address is reported at once.

    Raises:
        BackendError: the host is unknown, or the address is taken or not allowed.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise BackendError(f"cannot listen on {host}:{port}: {error}; try --port") from error
    return listener


@dataclass(frozen=True)
class Drain:
    """How a server ends after the first Ctrl-C.

    Attributes:
        delay: seconds in which the server still takes requests while health checks already fail,
            so that a router notices before connections close.
        timeout: after the delay, longest wait in seconds for running requests.
    """

    delay: int
    timeout: int


def server(app: ASGIApp, ready: str, drain: Drain) -> uvicorn.Server:
    """Return a server that prints the line `ready` when it accepts connections."""
    import uvicorn  # an optional extra

    health = FailingHealth(app)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            click.echo(ready)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            health.fails = True
            end = time.monotonic() + drain.delay
            while time.monotonic() < end and not self.force_exit:
                await asyncio.sleep(0.1)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        health,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=120,  # the default of 5 s closes pooled client connections
        timeout_graceful_shutdown=drain.timeout,
    )
    return Server(config)


class FailingHealth:
    """An ASGI app around another app; it answers health checks with 503 once `fails` is set."""

    def __init__(self, app: ASGIApp) -> None:
        self.fails = False
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse  # an optional extra

        if self.fails and scope["type"] == "http" and scope["path"] in _HEALTH:
            answer = PlainTextResponse("the server is ending\n", 503)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def invitation(listener: socket.socket, engine: Any, api_keys: tuple[str, ...]) -> str:
    """Return a line with the server's address and a `curl` command to try it."""
    chats = engine.tokenizer.chat_template is not None
    path, body = ("chat/completions", QUESTION) if chats else ("completions", _START)
    return line(listener, engine.model_name, api_keys, path, body)


def line(
    listener: socket.socket, names: str, api_keys: tuple[str, ...], path: str, body: str
) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{host}:{port}"
    command = ["curl", f"{url}/v1/{path}", "-H", "content-type: application/json", "-d", body]
    if api_keys:
        command[2:2] = ["-H", f"authorization: Bearer {api_keys[0]}"]
    return f"{names} is ready at {url}  try: {shlex.join(command)}"


def log_to_stderr(access_log: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("sgl_mlx.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if access_log else logging.WARNING)


def freeze_present_objects() -> None:
    """Exempt all present objects from garbage collection.

    Without this, a full collection visits the objects of all modules and of the model, which takes
    some 50 ms; meanwhile the event loop and the engine stand still. The price: present objects in
    reference cycles are never freed.
    """
    gc.collect()
    gc.freeze()
