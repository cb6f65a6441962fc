"""`sgl-mlx serve`: the HTTP server."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from sgl_mlx.cli.engine import (
    EngineOptions,
    free_memory,
    keep_freed_memory_together,
    open_engine,
    options_without_model,
)
from sgl_mlx.cli.failing import exit_when_failed
from sgl_mlx.cli.listening import (
    QUESTION,
    Drain,
    bind,
    freeze_present_objects,
    invitation,
    line,
    log_to_stderr,
    server,
)
from sgl_mlx.cli.options import origin, setting
from sgl_mlx.cli.served_models import Named, check, named, served_models
from sgl_mlx.cli.sizes import byte_size
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import BackendError
from sgl_mlx.limits import DEFAULT_LIMITS, Limits
from sgl_mlx.runtime.ranks.launch import launched
from sgl_mlx.waits import result_of

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from sgl_mlx.server import ServedModel
    from sgl_mlx.server.engine import ServedEngine
    from sgl_mlx.server.residents import Residents

_SINGLE = {
    "mmproj": "--mmproj",
    "draft": "--draft",
    "model_names": "--served-model-name",
    "any_model": "--any-model",
    "cache_log": "--cache-log",
}
"""Options that are allowed only if a single model is served, by the name of the parameter."""
_SHARE = 0.6
"""Share of the free memory that several models may take together, if --memory is not given."""


@click.command()
@click.argument("model_path", metavar="[MODEL]", required=False)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]MODEL",
    envvar="SGL_MLX_MODEL",
    show_envvar=True,
    help="A model, as in other commands, and the name that it is served under; repeatable.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=named,
    metavar="BASE:NAME=FOLDER",
    help="Serve a model with a LoRA adapter of mlx-lm or PEFT as the model BASE:NAME; repeatable.",
)
@click.option(
    "--memory",
    type=byte_size,
    metavar="SIZE",
    help="Memory for all open models together; by default 60 % of the free memory.",
)
@options_without_model
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=30000, show_default=True, help="0 picks one."
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    help="Require this key of every request; repeatable, any of the keys is accepted.",
)
@click.option(
    "--served-model-name",
    "model_names",
    multiple=True,
    metavar="NAME",
    help="Name that the model is served under, by default its path; repeatable.",
)
@click.option("--any-model", is_flag=True, help="Answer requests for any model name.")
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=DEFAULT_LIMITS.max_requests,
    show_default=True,
    help="Most prompts running and waiting at once; more are answered with status 503.",
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
    "--drain-delay",
    type=click.IntRange(0),
    metavar="SECONDS",
    default=0,
    show_default=True,
    help="After Ctrl-C, go on taking requests for this long while /health already answers 503. "
    "Behind a router, this must be longer than the interval of its health checks.",
)
@click.option(
    "--exit-on-failure",
    is_flag=True,
    help="Exit with code 70 if the engine hangs or dies, so that a supervisor can start it again.",
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
    "--limit",
    "limits",
    multiple=True,
    type=setting,
    metavar="NAME=VALUE",
    help="Set any other bound on requests, such as max_n=16; repeatable. See docs/limits.md.",
)
@click.option(
    "--cache-log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append each prompt to this file, for cache-doctor.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    type=origin,
    metavar="ORIGIN",
    help="Let web pages of this origin, such as http://localhost:8080, call the server from a "
    "browser; '*' lets all pages; repeatable.",
)
@click.option("--access-log/--no-access-log", default=True, help="Log a line for each request.")
def serve(
    model_path: str | None,
    models: tuple[str, ...],
    adapters: tuple[Named, ...],
    memory: int | None,
    options: EngineOptions,
    host: str,
    port: int,
    access_log: bool,
    drain_timeout: int,
    drain_delay: int,
    exit_on_failure: bool,
    engine_settings: tuple[tuple[str, Any], ...],
    limits: tuple[tuple[str, Any], ...],
    **settings: Any,
) -> None:
    """Serve MODEL over HTTP, for clients of OpenAI's and SGLang's servers.

    MODEL has the form of --model. If there are several models, or adapters, each request names the
    model that it wants. The first model is opened at the start, the others when requests name them.
    If there is no memory for a model, the models that were idle longest are closed.

    Ctrl-C or SIGTERM lets running requests finish; a second Ctrl-C stops the server at once. Behind
    a router, give --drain-delay: a router that does not know yet that the server ends would
    otherwise send it requests, and they would fail.
    """
    require_packages()
    given = [named(model) for model in (*([model_path] if model_path else ()), *models)]
    check(given, adapters)
    several = len(given) > 1 or bool(adapters)
    launch = launched()
    if len(given) > 1 and launch is not None:
        raise click.UsageError("several ranks serve a single model, with or without adapters")
    if several:
        _refuse_options_of_one(mmproj=options.mmproj, draft=options.draft, **settings)
    listener = bind(host, port)
    log_to_stderr(access_log)
    keep_freed_memory_together()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, or nothing is closed
    settings["limits"] = _limits(dict(limits), **settings)
    more = {"limits": settings["limits"], **dict(engine_settings)}
    drain = Drain(drain_delay, drain_timeout)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after draining
        if several:
            ranks = 1 if launch is None else launch.size
            served = served_models(given, adapters, {**asdict(options), **more}, ranks)
            _serve_several(served, memory, listener, drain, exit_on_failure, settings)
            return
        name, model = given[0] if given else (None, None)
        if name and name != model and not settings["model_names"]:
            settings["model_names"] = (name,)
        with open_engine(replace(options, model_path=model), **more) as engine:
            result_of(engine.submit((Text("Hello"),), SamplingParams(max_new_tokens=2)))
            if exit_on_failure:
                exit_when_failed(lambda: [cast("ServedEngine", engine)])
            freeze_present_objects()
            ready = invitation(listener, engine, settings["api_keys"])
            server(_app(engine, **settings), ready, drain).run(sockets=[listener])


def _refuse_options_of_one(**given: Any) -> None:
    """Raise `UsageError` for an option that is allowed only if a single model is served."""
    for name, option in _SINGLE.items():
        if given[name]:
            raise click.UsageError(
                f"{option} is for a single model; leave it out (--model NAME=MODEL names a model)"
            )


def _serve_several(
    models: list[ServedModel],
    memory: int | None,
    listener: socket.socket,
    drain: Drain,
    exit_on_failure: bool,
    settings: dict[str, Any],
) -> None:
    """Serve several models; the first one is opened before the server takes requests."""
    from sgl_mlx.models.memory import available_bytes
    from sgl_mlx.server import app_of_models  # an optional extra

    budget = memory or int(_SHARE * available_bytes())
    keys = settings["api_keys"]
    app, residents = app_of_models(
        models,
        budget,
        api_keys=keys,
        limits=settings["limits"],
        origins=settings["origins"],
        free=free_memory,
    )
    if exit_on_failure:
        exit_when_failed(lambda: [served.service.engine for served in residents.values])
    freeze_present_objects()  # models are opened later: they must be freed
    asyncio.run(_open(residents, models[0].name))
    names = ", ".join(model.name for model in models)
    ready = line(listener, names, keys, "chat/completions", QUESTION)
    try:
        server(app, ready, drain).run(sockets=[listener])
    finally:
        asyncio.run(residents.close())


async def _open(residents: Residents[Any], name: str) -> None:
    async with residents.borrowed(name):
        pass


def _app(
    engine: Any,
    api_keys: tuple[str, ...],
    model_names: tuple[str, ...],
    any_model: bool,
    cache_log: Path | None,
    origins: tuple[str, ...],
    limits: Limits,
    **_: Any,
) -> Starlette:
    from sgl_mlx.server import app  # an optional extra

    return app(
        engine,
        api_keys=api_keys,
        model_names=model_names,
        limits=limits,
        any_model=any_model,
        cache_log=cache_log,
        origins=origins,
    )


def _limits(
    given: Mapping[str, Any],
    max_requests: int,
    max_body_size: int,
    request_timeout: float | None,
    **_: Any,
) -> Limits:
    """Return the limits of `--limit` and of the options that have names of their own."""
    own = {"max_requests": max_requests, "max_body_bytes": max_body_size}
    return Limits.of({**own, "request_timeout": request_timeout, **given})


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
