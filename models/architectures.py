"""The table of mlx-lm's architectures: which run here, and how.

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

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.build import model_classes
from sgl_mlx.models.cache_layout import CacheLayout

RunPath = Literal["ragged", "dense"]
"""How requests run: of any length in one batch ("ragged"), or one after another ("dense")."""


class Architecture(NamedTuple):
    """One architecture's entry; `note` says why it is not ragged."""

    name: str
    path: Literal["ragged", "dense", "unsupported"]
    note: str = ""


def supported() -> list[Architecture]:
    """List the architectures that run, by name."""
    return [entry for entry in table().values() if entry.path != "unsupported"]


@cache
def table() -> dict[str, Architecture]:
    """Read the entries of every architecture that was checked."""
    text = files("sgl_mlx.models").joinpath("architectures.json").read_text(encoding="utf-8")
    return {
        name: Architecture(name, entry["path"], entry.get("reason", ""))
        for name, entry in json.loads(text).items()
    }


def path_of(model_type: str) -> RunPath:
    """Look up how an architecture runs.

    Raises:
        UnsupportedModelError: if it does not run, saying why; if it was never checked, naming
            those spelled alike.
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
    return entry.path


def check_runs(config: dict[str, Any]) -> None:
    """Refuse a configuration that cannot run here, before any weight is read.

    The module is built without computing its weights, and asked what its layers keep: some
    architectures have layers with recurrent state in some configurations only.

    Raises:
        UnsupportedModelError: see `path_of`; it says what would run the model instead.
    """
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
    # What else is wrong with a configuration is for `build` to say.
    with suppress(TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError):
        model = model_class(args_class.from_dict(config))
        try:
            CacheLayout(model)
        except UnsupportedModelError as e:
            raise UnsupportedModelError(
                f"architecture {name!r} does not run here in this configuration: {e}"
            ) from e


def adapter_for(model: nn.Module) -> Adapter:
    """Make the adapter on the path of the model's architecture.

    Raises:
        UnsupportedModelError: see `path_of`; also for a configuration that does not run.
    """
    architecture = type(model).__module__.rpartition(".")[2]
    return open_adapter(model, path_of(architecture))


def open_adapter(model: nn.Module, path: RunPath) -> Adapter:
    """Make an adapter on this path, or a dense one if this configuration cannot be ragged."""
    if path == "ragged":
        try:
            return Adapter(model)
        except UnsupportedModelError:
            pass  # such as rotary embeddings whose base depends on the length
    return Adapter(model, ragged=False)
