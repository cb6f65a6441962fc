"""`sgl-mlx serve`: the HTTP server."""

from __future__ import annotations

import logging
import shlex
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.engine import EngineOptions, engine_options, open_engine
from sgl_mlx.cli.options import setting
from sgl_mlx.cli.sizes import byte_size
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import BackendError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

_QUESTION = '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 50}'
_START = '{"prompt": "Once upon a time", "max_tokens": 50}'


@click.command()
@click.argument("model_path", metavar="[MODEL]", required=False)
@engine_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=30000, show_default=True, help="0 picks one."
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    help="Require this key of every request; repeatable, each of them is accepted.",
)
@click.option(
    "--served-model-name",
    "model_names",
    multiple=True,
    metavar="NAME",
    help="Name the model is served under, its path by default; repeatable.",
)
@click.option("--any-model", is_flag=True, help="Answer requests for any model name.")
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Prompts under way at once; more are answered with status 503.",
)
@click.option(
    "--max-body-size",
    type=byte_size,
    metavar="SIZE",
    default="64MB",
    show_default=True,
    help="Largest body of a request.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Abort requests that take longer.",
)
@click.option(
    "--drain-timeout",
    type=click.IntRange(0),
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="Longest wait for running requests after Ctrl-C.",
)
@click.option(
    "--engine-option",
    "engine_settings",
    multiple=True,
    type=setting,
    metavar="NAME=VALUE",
    help="Set any other option of the engine, such as max_running_requests=32; repeatable.",
)
@click.option(
    "--cache-log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append each prompt to this file, for cache-doctor.",
)
@click.option("--access-log/--no-access-log", default=True, help="Log a line for each request.")
def serve(
    model_path: str | None,
    options: EngineOptions,
    host: str,
    port: int,
    access_log: bool,
    drain_timeout: int,
    engine_settings: tuple[tuple[str, Any], ...],
    **settings: Any,
) -> None:
    """Serve MODEL over HTTP, for clients of OpenAI's and SGLang's servers.

    MODEL is what --model takes. Ctrl-C lets running requests finish; a second one stops at once.
    """
    require_packages()
    listener = _bind(host, port)
    _log_to_stderr(access_log)
    options = replace(options, model_path=model_path or options.model_path)
    with open_engine(options, **dict(engine_settings)) as engine:
        engine.submit((Text("Hello"),), SamplingParams(max_new_tokens=2)).result()
        app = _app(engine, **settings)
        config = _uvicorn_config(app, drain_timeout)
        ready = _invitation(listener, engine, settings["api_keys"])
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after draining
            _server(config, ready).run(sockets=[listener])


def _app(
    engine: Any,
    api_keys: tuple[str, ...],
    model_names: tuple[str, ...],
    any_model: bool,
    max_requests: int,
    max_body_size: int,
    request_timeout: float | None,
    cache_log: Path | None,
) -> Starlette:
    from sgl_mlx.server import Limits, app  # an optional extra

    limits = Limits(
        max_body_bytes=max_body_size, max_requests=max_requests, request_timeout=request_timeout
    )
    return app(
        engine,
        api_keys=api_keys,
        model_names=model_names,
        limits=limits,
        any_model=any_model,
        cache_log=cache_log,
    )


def require_packages() -> None:
    """Raise `BackendError` if a package of the server is missing."""
    try:
        import msgspec  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"the server needs a package that is missing ({error.name}): "
            "pip install 'sgl-mlx[server]'"
        ) from error


def _bind(host: str, port: int) -> socket.socket:
    """Bind a socket to the address, without listening yet; raises `BackendError` if it is taken.

    This is done before the model is loaded, so that a wrong address is reported at once.
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


def _uvicorn_config(app: Starlette, drain_timeout: int) -> uvicorn.Config:
    import uvicorn  # an optional extra

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=120,  # the default of 5 s closes pooled client connections
        timeout_graceful_shutdown=drain_timeout,
    )


def _server(config: uvicorn.Config, ready: str) -> uvicorn.Server:
    """Return a server that prints the line `ready` when it accepts connections."""
    import uvicorn  # an optional extra

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            click.echo(ready)

    return Server(config)


def _invitation(listener: socket.socket, engine: Any, api_keys: tuple[str, ...]) -> str:
    """Return a line with the server's address and a `curl` command to try it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{host}:{port}"
    chats = engine.tokenizer.chat_template is not None
    path, body = ("chat/completions", _QUESTION) if chats else ("completions", _START)
    command = ["curl", f"{url}/v1/{path}", "-H", "content-type: application/json", "-d", body]
    if api_keys:
        command[2:2] = ["-H", f"authorization: Bearer {api_keys[0]}"]
    return f"{engine.model_name} is ready at {url}  try: {shlex.join(command)}"


def _log_to_stderr(access_log: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("sgl_mlx.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if access_log else logging.WARNING)
