"""Programs written for SGLang, run as `python FILE ARGS` runs them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from sgl_mlx.cli.engine import EngineOptions, open_engine
from sgl_mlx.compat.sglang import install_as_sglang
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.config import global_config


class LazyEngine:
    """A default backend that loads its model when a program first needs it."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._opened = ExitStack()

    @cached_property
    def endpoint(self) -> Backend:
        return self._opened.enter_context(open_engine(self._options))

    def close(self) -> None:
        """Shut the engine down, if there is one."""
        self._opened.close()


def run_script(path: Path, arguments: Sequence[str], options: EngineOptions) -> None:
    """Run a file as the main program, once, with `import sglang` meaning this package.

    Programs run on what the file sets as its default backend; if it sets none, on an engine with
    these options.
    """
    engine = LazyEngine(options)
    before = global_config.default_backend
    global_config.default_backend = engine
    try:
        with install_as_sglang(), _as_main(path, arguments):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        global_config.default_backend = before
        engine.close()


@contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Set `sys.argv` and `sys.path` as Python does for a script."""
    argv, folders = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, folders
