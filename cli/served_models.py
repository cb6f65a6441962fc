"""Models of an `sgl-mlx serve` with several models: their names, memory needs and openers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sgl_mlx.cli.engine import fetch_model
from sgl_mlx.errors import BackendError

if TYPE_CHECKING:
    from sgl_mlx.models.loader import LoadedModel
    from sgl_mlx.runtime.engine import Engine
    from sgl_mlx.server import ServedModel

T = TypeVar("T")
SLOTS = 32768
"""Slots (tokens) of each model's KV pool, if `max_total_tokens` is not given."""

Named = tuple[str, str]
"""A name and the path or hub id of the model or adapter that it names."""


def named(given: str) -> Named:
    """Parse `NAME=MODEL` into (name, model).

    Any other text is a model without a name and becomes (text, text). So does a text with a `/`
    before the `=`, and a text that as a whole is the path of a file or folder.
    """
    name, equals, model = given.partition("=")
    if equals and name and model and "/" not in name and not Path(given).exists():
        return name, model
    return given, given


def check(models: Sequence[Named], adapters: Sequence[Named]) -> None:
    """Check the names of models and adapters.

    Raises:
        click.BadParameter: a name is given twice, or an adapter's name is not BASE:NAME, where BASE
            is the name of a model.
    """
    names = [name for name, _ in (*models, *adapters)]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"two models or adapters are called {name!r}")
    bases = [name for name, _ in models]
    for name, path in adapters:
        base, colon, _ = name.partition(":")
        if name == path or not colon or base not in bases:
            raise click.BadParameter(
                f"--adapter {name} must be BASE:NAME=FOLDER with BASE one of {', '.join(bases)}"
            )


def served_models(
    models: Sequence[Named],
    adapters: Sequence[Named],
    options: Mapping[str, Any],
    ranks: int = 1,
) -> list[ServedModel]:
    """Return an unopened `ServedModel` for each model, followed by those for its adapters.

    Missing files of the models are downloaded.

    Args:
        options: engine options for every model and adapter; see `EngineConfig`.
        ranks: number of processes that run the model together; then there is one model.

    Raises:
        ModelError: a model or an adapter cannot be found or read.
        BackendError: a model's configuration lacks a field that gives the size of its KV pool.
    """
    given = {**options, "max_total_tokens": options.get("max_total_tokens") or SLOTS}
    served: list[ServedModel] = []
    for name, model in models:
        base = _Base(name, model, fetch_model(model), given, ranks)
        served.append(base.served())
        served += [base.adapted(n, p) for n, p in adapters if n.partition(":")[0] == name]
    return served


@dataclass
class _Base:
    """One model, which is loaded once for itself and all its adapters.

    Several ranks load their shares themselves, and share them among engines (`ranks.share`).

    Attributes:
        model: the model as it was named.
        path: where it was found on this machine.
        loaded: a list with the loaded model while the model is open, else an empty list.
    """

    name: str
    model: str
    path: Path
    options: Mapping[str, Any]
    ranks: int = 1
    loaded: list[LoadedModel] = field(default_factory=list)

    def served(self) -> ServedModel:
        from sgl_mlx.server import ServedModel

        try:
            weights, pool = self._sizes
        except (KeyError, TypeError) as error:
            raise BackendError(
                f"{self.name}: its configuration has no {error}, so the size of its KV pool is not "
                "known; serve this model alone"
            ) from error
        return ServedModel(self.name, weights + pool, self.open, self.close)

    def adapted(self, name: str, path: str) -> ServedModel:
        """Return the model with the LoRA adapter in the folder `path`.

        The adapter gets an engine and a KV pool of its own, and shares the weights of the model,
        which must be open before the adapter is opened.
        """
        from sgl_mlx.models.lora import read_adapter, with_adapter
        from sgl_mlx.server import ServedModel

        size = self._sizes[1] + read_adapter(path).nbytes

        def opened() -> Engine:
            if self.ranks > 1:
                return self._engine(adapter=path)
            [loaded] = self.loaded
            adapter = _on_new_thread(lambda: with_adapter(loaded, read_adapter(path), name))
            return self._engine(model=adapter)

        return ServedModel(name, size, opened, _shut_down, base=self.name)

    def open(self) -> Engine:
        from sgl_mlx.models.loader import load

        if self.ranks > 1:
            return self._engine()
        dtype, mmproj = self.options.get("dtype"), self.options.get("mmproj")
        self.loaded.append(_on_new_thread(lambda: load(self.path, dtype=dtype, mmproj=mmproj)))
        return self._engine(model=self.loaded[0])

    def close(self, engine: Any) -> None:
        self.loaded.clear()
        _shut_down(engine)

    @property
    def _sizes(self) -> tuple[int, int]:
        """Bytes of the weights and of a KV pool, on each rank."""
        from sgl_mlx.cli.footprint import pool_bytes, weight_bytes

        tokens, kv_bits = self.options["max_total_tokens"], self.options.get("kv_bits")
        whole_layers = bool(self.options.get("pipeline"))
        return (
            weight_bytes(self.path, self.ranks, whole_layers),
            pool_bytes(self.path, tokens, kv_bits, self.ranks, whole_layers),
        )

    def _engine(self, **model: Any) -> Engine:
        """Open an engine with a loaded model, or over several ranks, with `model_path`."""
        from sgl_mlx.runtime.engine import Engine

        given = {k: v for k, v in self.options.items() if k not in ("model_path", "mmproj")}
        if self.ranks > 1:
            return Engine(self.model, **given, **model)
        return Engine(**given, **model)


def _on_new_thread(function: Callable[[], T]) -> T:
    """Call a function that uses MLX on a thread of its own, and return its result."""
    from sgl_mlx.models.streams import borrowed_stream

    def call() -> T:
        with borrowed_stream():
            return function()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result()


def _shut_down(engine: Any) -> None:
    engine.shutdown()
