"""Vision part stored apart from its language model, in a GGUF file or a LLaVA folder."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.models import build, safetensors_file
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.vision import checkpoint
from sgl_mlx.models.vision.mmproj import load_mmproj
from sgl_mlx.models.vision.model import VisionModel


class SeparateVision(Protocol):
    """A vision part whose headers have been read; `load` reads the weights."""

    @property
    def files(self) -> list[Path]:
        """Files that hold the weights."""

    @property
    def size(self) -> tuple[int, int]:
        """Number of parameters, and bytes on disk."""

    def load(self, text_width: int, image_token: int | None, dtype: mx.Dtype | None) -> VisionModel:
        """Load the vision part, without evaluating weights.

        Args:
            text_width: width of the language model.
            image_token: the id of `<image>` in the language model's vocabulary; None if it has
                none.
            dtype: type of all weights. None keeps a folder's types; a GGUF file's weights get the
                type of `native_float`.

        Raises:
            UnsupportedModelError: for a tower or projector that cannot run here.
            CorruptModelError: if something is missing, or the vision part is for a language model
                of another width.
        """


def open_separate_vision(path: Path, model: Path) -> SeparateVision:
    """Open the vision part at `path` for the language model at `model`.

    Raises:
        ModelNotFoundError: if there is nothing at `path`, or a folder without `config.json`.
        UnsupportedModelError: if the language model is a folder, if `path` is a folder that is no
            LLaVA, or as `GGUFFile`. A GGUF file that is no LLaVA fails in `load` only.
        CorruptModelError: if the file or the folder's `config.json` is broken.
    """
    if model.is_dir():
        raise UnsupportedModelError(f"mmproj goes with a GGUF language model, {model} is a folder")
    return _LlavaFolder(path) if path.is_dir() else _GgufVision(GGUFFile(path))


class _GgufVision:
    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    @property
    def files(self) -> list[Path]:
        return self._file.paths

    @property
    def size(self) -> tuple[int, int]:
        tensors = self._file.tensors.values()
        return sum(prod(entry.shape) for entry in tensors), sum(entry.size for entry in tensors)

    def load(self, text_width: int, image_token: int | None, dtype: mx.Dtype | None) -> VisionModel:
        return load_mmproj(self._file, text_width, image_token, dtype)


class _LlavaFolder:
    """Vision part in a folder of transformers' layout; a language model there is not read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._config = safetensors_file.read_config(path)
        if not checkpoint.has_vision(self._config):
            kind = self._config["model_type"]
            raise UnsupportedModelError(f"mmproj: {path} is {kind!r}, which is no LLaVA")

    @property
    def files(self) -> list[Path]:
        return safetensors_file.weight_files(self._path)

    @property
    def size(self) -> tuple[int, int]:
        declared = safetensors_file.read_entries(self._path)
        entries = [entry for name, entry in declared.items() if checkpoint.is_vision(name)]
        return sum(entry.count for entry in entries), sum(entry.size for entry in entries)

    def load(self, text_width: int, image_token: int | None, dtype: mx.Dtype | None) -> VisionModel:
        found = checkpoint.load_vision(self._path, self._config, text_width, image_token)
        if dtype is not None:
            build.cast(found.network, dtype)
        return found
