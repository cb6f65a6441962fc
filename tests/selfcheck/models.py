"""Toy models with each kind of cache, as folders, and checks on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from sgl_mlx.selfcheck.engines import Engines
from sgl_mlx.selfcheck.open import open_engines
from tests.models.conftest import TOKENS, write_folder
from tests.models.toy import toy_configs, toy_model
from tests.runtime.conftest import write_toy
from tests.runtime.hybrids import toy_of
from tests.runtime.llava import write_llava

KINDS = {
    "plain": "",
    "window": "gemma3_text",
    "recurrent": "lfm2",
    "latent": "deepseek_v2",
}
"""An architecture for each kind of cache; the plain one is a llama."""


def write_model(kind: str, folder: Path) -> Path:
    """Write a toy with this kind of cache; `pictures` is a LLaVA."""
    if kind == "plain":
        return write_toy(folder)
    if kind == "pictures":
        return write_llava(folder)
    architecture = KINDS[kind]
    if kind == "recurrent":
        model = toy_of(architecture)
        config = next(c for c in toy_configs(architecture) if c.get("vocab_size") is not None) | {
            "vocab_size": len(TOKENS)
        }
    else:
        config = toy_configs(architecture)[-1] | {"vocab_size": len(TOKENS)}
        model = toy_model(architecture, config)
    weights = {name: np.array(x) for name, x in tree_flatten(model.parameters())}
    return write_folder(folder, config, weights)


@contextmanager
def engines_on(kind: str, folder: Path, **options: Any) -> Iterator[Engines]:
    """Open the engines of a check on a toy."""
    path = folder / kind
    if not path.exists():
        write_model(kind, path)
    with open_engines(str(path), options) as engines:
        yield engines
