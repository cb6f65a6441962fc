"""Where commands get their engine from: one function, so that tests can hand out a double."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from sgl_mlx.lang.backend import Backend

model_option = click.option(
    "--model",
    envvar="SGL_MLX_MODEL",
    show_envvar=True,
    metavar="MODEL",
    help="A Hugging Face id, an MLX folder, a GGUF file, or an alias from `sgl-mlx models list`.",
)


@contextmanager
def open_engine(model: str | None) -> Iterator[Backend]:
    """An engine on this model (None: the default one), shut down at the end.

    Raises:
        ModelError: when the model cannot be found or loaded.
        MemoryLimitError: when it does not fit.
    """
    with _progress(f"loading {model or 'the default model'}"):
        engine = create_engine(model)
    try:
        yield engine
    finally:
        engine.shutdown()


def create_engine(model: str | None) -> Backend:
    from sgl_mlx.runtime.engine import Engine  # imports mlx: a second that --help must not take

    return Engine(model_path=model)


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """A moving bar on standard error while something loads; nothing when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        bar.add_task(what, total=None)
        yield
