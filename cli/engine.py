"""Engine options of commands, and the creation of engines from them."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sgl_mlx.cli.sizes import byte_size
from sgl_mlx.lang.backend import Backend

if TYPE_CHECKING:
    from sgl_mlx.models.download import Download

model_option = click.option(
    "--model",
    envvar="SGL_MLX_MODEL",
    show_envvar=True,
    metavar="MODEL",
    help="A Hugging Face id, an MLX folder, a GGUF file, or an alias from `sgl-mlx models list`.",
)
mmproj_option = click.option(
    "--mmproj",
    metavar="PATH",
    help="Vision tower for a GGUF language model: a GGUF file or a LLaVA folder.",
)
kv_bits_option = click.option(
    "--kv-bits",
    type=int,
    metavar="8",
    help="Store keys and values in 8 bits: about twice the tokens fit.",
)
speculate_option = click.option(
    "--speculate",
    type=click.Choice(["auto", "off", "context", "tree", "mtp"]),
    help="How to draft tokens; one step verifies several of them, and the output is the same. "
    "The default is auto, but off in benchmarks that do not measure drafts.",
)
draft_option = click.option(
    "--draft", metavar="MODEL", help="A small model with the same vocabulary that drafts tokens."
)
disk_cache_option = click.option(
    "--disk-cache",
    metavar="DIR",
    envvar="SGL_MLX_DISK_CACHE",
    show_envvar=True,
    help="Keep prefixes evicted from memory in this folder, also for later runs.",
)
disk_cache_size_option = click.option(
    "--disk-cache-size",
    type=byte_size,
    metavar="SIZE",
    default="2GB",
    show_default=True,
    help="Largest size of that folder.",
)
pipeline_option = click.option(
    "--pipeline",
    is_flag=True,
    help="Under mlx.launch, give each rank whole layers instead of a share of every layer.",
)

_M_ARENA_MAX = -8
"""Number of the parameter M_ARENA_MAX of glibc's `mallopt`: the largest number of heaps."""


@dataclass(frozen=True)
class EngineOptions:
    """Engine options of a command line; the fields are those of `EngineConfig`."""

    model_path: str | None = None
    kv_bits: int | None = None
    disk_cache_dir: str | None = None
    disk_cache_bytes: int = 2_000_000_000
    mmproj: str | None = None
    speculate: str | None = None
    draft: str | None = None
    pipeline: bool = False

    def without_drafts(self) -> EngineOptions:
        """Return these options for a benchmark of something other than speculation.

        Speculation is off unless `--speculate` or `--draft` was given.
        """
        return replace(self, speculate=self.speculate or ("auto" if self.draft else "off"))


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the engine options to a command, which gets them as one argument, `options`."""

    @model_option
    @options_without_model
    @wraps(command)
    def with_model(*args: Any, model: str | None, options: EngineOptions, **others: Any) -> None:
        command(*args, options=replace(options, model_path=model), **others)

    return with_model


def options_without_model(command: Callable[..., None]) -> Callable[..., None]:
    """Add the engine options except `--model` to a command, which gets them as `options`."""

    @mmproj_option
    @kv_bits_option
    @speculate_option
    @draft_option
    @disk_cache_option
    @disk_cache_size_option
    @pipeline_option
    @wraps(command)
    def with_options(
        *args: Any,
        mmproj: str | None,
        kv_bits: int | None,
        disk_cache: str | None,
        disk_cache_size: int,
        speculate: str | None,
        draft: str | None,
        pipeline: bool,
        **others: Any,
    ) -> None:
        options = EngineOptions(
            None, kv_bits, disk_cache, disk_cache_size, mmproj, speculate, draft, pipeline
        )
        command(*args, options=options, **others)

    return with_options


@contextmanager
def open_engine(options: EngineOptions, **more: Any) -> Iterator[Backend]:
    """Create an engine with these options; shut it down when the `with` block ends.

    Args:
        more: further options of `EngineConfig`, which override those in `options`.

    Raises:
        ModelError: the model cannot be found or loaded.
        MemoryLimitError: the model does not fit into memory.
        InvalidParamsError: an option has a wrong value.
    """
    engine = create_engine(options, **more)
    try:
        yield engine
    finally:
        engine.shutdown()


@contextmanager
def open_backend(
    options: EngineOptions, url: str | None, api_key: str | None = None
) -> Iterator[Backend]:
    """Open a client of the server at `url`, or without one an engine; raises as `open_engine`."""
    if url is None:
        with open_engine(options) as engine:
            yield engine
        return
    from sgl_mlx.lang.backends.runtime_endpoint import RuntimeEndpoint

    endpoint = RuntimeEndpoint(url, api_key)
    try:
        yield endpoint
    finally:
        endpoint.shutdown()


def create_engine(options: EngineOptions, **more: Any) -> Backend:
    from sgl_mlx.runtime.config import EngineConfig
    from sgl_mlx.runtime.engine import Engine  # imports mlx, which takes a second

    given = {**asdict(options), **more}
    config = EngineConfig.of(given)  # raises for wrong options before a download
    fetch_model(config.model_path)
    with _progress(f"loading {config.model_path or 'the default model'}"):
        return Engine(**given)


def keep_freed_memory_together() -> None:
    """Limit glibc to two heaps, shared by all threads; call this before any engine is created.

    By default the threads of each engine get heaps of their own. Freed memory would stay scattered
    over these heaps.
    """
    with suppress(OSError, AttributeError):  # other systems' allocators need none of this
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 2)


def free_memory() -> None:
    """Give memory back to the system after engines were shut down and are no longer referenced."""
    from sgl_mlx.models.memory import return_freed_memory  # imports mlx

    gc.collect()
    return_freed_memory()


def fetch_model(model: str | None) -> Path:
    """Return the path of a model, after downloading its missing files.

    A download is announced on standard error. None stands for the default model.
    """
    from sgl_mlx.models.resolve import resolve

    def announce(download: Download) -> None:
        click.echo(f"downloading {download}", err=True)

    return resolve(model, announce=announce)[1]


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Show a progress bar while the `with` block runs, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        bar.add_task(what, total=None)
        yield
