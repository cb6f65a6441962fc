"""Runs a file written for SGLang as a script, as `python FILE ARGS` would."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from sgl_mlx.cli.engine import EngineOptions
from sgl_mlx.compat.sglang import install_as_sglang
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.config import global_config


class LazyEngine:
    """A default backend that is opened when a program first uses it.

    Args:
        opening: the context that opens and closes the backend.
    """

    def __init__(self, opening: AbstractContextManager[Backend]) -> None:
        self._context = opening
        self._opened = ExitStack()
        self._engine: Backend | None = None
        self._opening = Lock()

    @property
    def endpoint(self) -> Backend:
        with self._opening:  # several threads of the script may need it
            if self._engine is None:
                self._engine = self._opened.enter_context(self._context)
            return self._engine

    def close(self) -> None:
        """Shut down the engine, if it was created."""
        self._opened.close()


def run_script(
    path: Path,
    arguments: Sequence[str],
    options: EngineOptions,
    opened: AbstractContextManager[Backend],
) -> None:
    """Run a file as the main script, with `import sglang` importing this package.

    The file's programs run on the default backend that the file sets. If it sets none, they run on
    the backend of the context `opened`, which is entered when a program first needs it. If the
    options name a model, `sglang.Runtime` and `sglang.Engine` in the file load that model instead
    of their own.
    """
    engine = LazyEngine(opened)
    before = global_config.default_backend
    global_config.default_backend = engine
    try:
        with install_as_sglang(), _as_main(path, arguments):
            if options.model_path is not None:
                _replace_models(options)
            runpy.run_path(str(path), run_name="__main__")
    finally:
        global_config.default_backend = before
        engine.close()


def _replace_models(options: EngineOptions) -> None:
    """Make `sglang.Runtime` and `sglang.Engine` use the options of the command line."""
    alias = import_module("sglang")
    chosen = {k: v for k, v in asdict(options).items() if v is not None}

    def with_model(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *_, **given: make(**{**given, **chosen})

    for name in ("Runtime", "Engine"):
        setattr(alias, name, with_model(getattr(alias, name)))


@contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Set `sys.argv` and `sys.path` as Python does for a script; restore them at the end."""
    argv, folders = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, folders
