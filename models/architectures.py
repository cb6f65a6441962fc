"""The table of mlx-lm's architectures: which run here, and how.

`architectures.json` is not written by hand: the tests build every architecture at toy size and
compare it, batched, chunked, forked and decoded, with mlx-lm's own forward pass.
`python -m tests.models.generate_architectures`, run in the repository's root, writes the file.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import mlx.nn as nn
from mlx_lm.utils import MODEL_REMAPPING

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models.adapter import Adapter

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
