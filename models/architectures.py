"""Table of mlx-lm's architectures: which ones run here, and how.

`architectures.json` is not written by hand: the tests build every architecture at toy size and
compare it, batched, chunked, forked and decoded, with mlx-lm's own forward pass.
`python -m tests.models.generate_architectures`, run in the repository's root, writes the file.
"""

from __future__ import annotations

import difflib
import json
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import mlx.nn as nn
from mlx_lm.utils import MODEL_REMAPPING

from sgl_mlx import machine
from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.build import model_classes
from sgl_mlx.models.cache_layout import CacheLayout
from sgl_mlx.models.vision.checkpoint import has_vision

RunPath = Literal["ragged", "dense"]
"""How requests run: in one batch, whatever their lengths ("ragged"), or one by one ("dense")."""


class Architecture(NamedTuple):
    """Entry of one architecture: the name, and how requests run on it.

    Attributes:
        path: "ragged" if one batch takes requests of any lengths, "dense" if requests run one by
            one. It holds for every configuration that was checked, except those that `note` names.
        note: why the path is not ragged, which configurations take another path, or what the check
            left out; "" if there is nothing to say.
        needs_gpu: True if mlx-lm computes it by Metal kernels alone.
    """

    name: str
    path: Literal["ragged", "dense", "unsupported"]
    note: str = ""
    needs_gpu: bool = False


def supported() -> list[Architecture]:
    """List the architectures that run here."""
    return [entry for entry in table().values() if entry.path != "unsupported"]


def counts() -> dict[str, int]:
    """Count the architectures of each path: ragged, then dense, then unsupported."""
    paths = [entry.path for entry in table().values()]
    return {path: paths.count(path) for path in ("ragged", "dense", "unsupported")}


@cache
def table() -> dict[str, Architecture]:
    """Read the table: an entry for every architecture that was checked, by its name."""
    text = files("sgl_mlx.models").joinpath("architectures.json").read_text(encoding="utf-8")
    return {
        name: Architecture(name, entry["path"], entry.get("reason", ""), "needs" in entry)
        for name, entry in json.loads(text).items()
    }


def path_of(model_type: str) -> RunPath:
    """Look up how an architecture runs.

    Raises:
        UnsupportedModelError: for an architecture that does not run, here or on this machine (the
            message says why), or that was never checked (the message names similar ones).
    """
    entry = table().get(MODEL_REMAPPING.get(model_type, model_type))
    if entry is None:
        near = difflib.get_close_matches(model_type, [entry.name for entry in supported()], n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise UnsupportedModelError(
            f"architecture {model_type!r} was not checked against mlx-lm in this version{hint}"
        )
    if entry.path == "unsupported":
        raise UnsupportedModelError(f"architecture {model_type!r} does not run here: {entry.note}")
    if entry.needs_gpu and not machine.on_gpu():
        raise UnsupportedModelError(
            f"architecture {model_type!r} needs a GPU: mlx-lm computes it by Metal kernels alone"
        )
    return entry.path


def check_runs(config: dict[str, Any]) -> None:
    """Check that a configuration can run here, before any weight is downloaded or read.

    Builds the model lazily, without computing weights, and checks the kind of cache of each layer,
    since some architectures need an unsupported cache in some configurations only. A model whose
    vision part runs here (`has_vision`) is checked only when it is loaded.

    Raises:
        UnsupportedModelError: mlx-lm cannot build the architecture (see `model_classes`); or the
            architecture does not run here (see `path_of`), or not in this configuration. In the
            last two cases the message adds how to list what runs here, and that mlx-lm may run the
            model.
    """
    if has_vision(config):
        return
    model_class, args_class = model_classes(config)
    name = model_class.__module__.rpartition(".")[2]
    try:
        path_of(name)
        _check_layers(name, model_class, args_class, config)
    except UnsupportedModelError as e:
        raise UnsupportedModelError(
            f"{e}. `sgl-mlx models --architectures` lists what runs here; mlx-lm itself may "
            "run this model, one prompt at a time: `mlx_lm.generate --model ...`"
        ) from e


def _check_layers(name: str, model_class: Any, args_class: Any, config: dict[str, Any]) -> None:
    # `build` reports whatever else is wrong with a configuration.
    with suppress(TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError):
        model = model_class(args_class.from_dict(config))
        try:
            if CacheLayout(model).state_sizes:
                Adapter(model)  # recurrent layers cannot fall back to the dense path
        except UnsupportedModelError as e:
            raise UnsupportedModelError(
                f"architecture {name!r} does not run here in this configuration: {e}"
            ) from e


def adapter_for(model: nn.Module) -> Adapter:
    """Make the adapter for a model, ragged or dense as its architecture's entry says.

    Raises:
        UnsupportedModelError: as `path_of` and `open_adapter`.
    """
    architecture = type(model).__module__.rpartition(".")[2]
    return open_adapter(model, path_of(architecture))


def open_adapter(model: nn.Module, path: RunPath) -> Adapter:
    """Make a ragged or a dense adapter; also dense if the configuration cannot run ragged.

    Raises:
        UnsupportedModelError: for a configuration that does not run at all.
    """
    if path == "ragged":
        try:
            return Adapter(model)
        except UnsupportedModelError:
            pass  # for instance, its rotary embeddings have a base that depends on the length
    return Adapter(model, ragged=False)
