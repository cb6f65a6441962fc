"""Opening of the engines of a check on one model, whose weights they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sgl_mlx.models.loader import load
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.selfcheck.engines import Engines

SLOTS = 4096
"""Slots of each engine's pool: few enough for several pools, and for evictions."""


@contextmanager
def open_engines(model: str | None, options: Mapping[str, Any]) -> Iterator[Engines]:
    """Load a model, and shut down all engines on it when the `with` block ends.

    Args:
        options: options of all engines.

    Raises:
        ModelError: the model cannot be found or loaded.
        MemoryLimitError: the model does not fit into memory.
    """
    own = {name: options[name] for name in ("dtype", "mmproj", "offline") if name in options}
    loaded = load(model, **own)
    with TemporaryDirectory(prefix="sgl-mlx-selfcheck-") as folder:
        given = {"max_total_tokens": SLOTS, **options}
        inside = partial(_open, loaded)
        engines = Engines(inside, str(loaded.path), given, Path(folder))
        try:
            yield engines
        finally:
            engines.close()


def _open(loaded: Any, **options: Any) -> Engine:
    without = {k: v for k, v in options.items() if k not in ("dtype", "mmproj", "offline")}
    return Engine(model=loaded, **without)
