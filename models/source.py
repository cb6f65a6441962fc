"""The files of a model: a folder, or a GGUF file and perhaps separate files of a vision part."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model as load_mlx_folder

from sgl_mlx.errors import CorruptModelError
from sgl_mlx.models import build, mtp_checkpoint, safetensors_file
from sgl_mlx.models.architectures import check_runs
from sgl_mlx.models.gguf import config as gguf_config
from sgl_mlx.models.gguf import weights as gguf_weights
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.info import ModelInfo, describe_folder, describe_gguf, with_vision
from sgl_mlx.models.pooling import Pooling, folder_pooling, gguf_pooling
from sgl_mlx.models.safetensors_file import WeightEntry
from sgl_mlx.models.vision import checkpoint
from sgl_mlx.models.vision.model import VisionModel
from sgl_mlx.models.vision.qwen import checkpoint as qwen
from sgl_mlx.models.vision.qwen.config import has_vision as is_qwen
from sgl_mlx.models.vision.separate import open_separate_vision
from sgl_mlx.tokenizer import Tokenizer

_EMBEDDING = "embed_tokens.weight"
"""Name of the embedding in folders that hold only a model's trunk; elsewhere it has a prefix."""


class Parts(NamedTuple):
    """A loaded model in parts; its weights are not evaluated yet.

    Attributes:
        model: the language model.
        config: the model's configuration, as in a `config.json`.
        vision: turns pictures into features; None if the model takes no pictures.
    """

    model: nn.Module
    config: dict[str, Any]
    tokenizer: Tokenizer
    vision: VisionModel | None


class Source(Protocol):
    """The files of a model; its configuration was read, and the model can run here."""

    @property
    def path(self) -> Path:
        """The GGUF file or the folder."""

    @property
    def config(self) -> dict[str, Any]:
        """The folder's `config.json`, or its equivalent made from the metadata of a GGUF file."""

    @property
    def files(self) -> list[Path]:
        """All files that hold weights."""

    @property
    def info(self) -> ModelInfo:
        """Sizes of the weights, from the headers of the files."""

    def load(self, dtype: mx.Dtype | None, packed: bool) -> Parts:
        """Load all parts, without evaluating weights.

        Args:
            dtype: type that the caller will convert the weights to; None keeps the stored types.
                The vision part is returned in this type already.
            packed: True keeps the quantized weights of a GGUF file packed.

        Raises:
            CorruptModelError, TokenizerError, UnsupportedModelError: see `loader.load`.
        """

    def pooling(self, parts: Parts) -> Pooling | None:
        """Return how embeddings are made; None for a model that only generates text."""


def open_source(path: Path, mmproj: Path | None = None) -> Source:
    """Open the files of the model at `path`, and read its configuration.

    Args:
        mmproj: file or folder with the vision part of a GGUF file.

    Raises:
        UnsupportedModelError: the configuration alone shows that the model cannot run.
        ModelNotFoundError, CorruptModelError: a file is missing or broken.
    """
    if path.is_dir():
        config = safetensors_file.read_config(path)
        check_runs(config)
        if mmproj is not None:
            open_separate_vision(mmproj, path)  # raises: a folder has its vision part in itself
        return _Folder(path, config)
    file = GGUFFile(path)
    config = gguf_config.read_config(file)
    check_runs(config)
    return _Gguf(file, config, mmproj)


class _Gguf:
    def __init__(self, file: GGUFFile, config: dict[str, Any], mmproj: Path | None) -> None:
        self._file = file
        self.path = file.path
        self.config = config
        self._vision = None if mmproj is None else open_separate_vision(mmproj, file.path)

    @property
    def files(self) -> list[Path]:
        return [*self._file.paths, *(self._vision.files if self._vision is not None else ())]

    @property
    def info(self) -> ModelInfo:
        info = describe_gguf(self._file)
        return info if self._vision is None else with_vision(info, *self._vision.size)

    def load(self, dtype: mx.Dtype | None, packed: bool) -> Parts:
        tokenizer = Tokenizer.from_gguf(self._file.metadata)
        weights = gguf_weights.read_weights(self._file, self.config, dtype, packed)
        model = build.build(self.config, weights, str(self.path))
        vision = None
        if self._vision is not None:
            picture = tokenizer.backend.token_to_id("<image>")
            vision = self._vision.load(self.config["hidden_size"], picture, dtype)
        return Parts(model, self.config, tokenizer, vision)

    def pooling(self, parts: Parts) -> Pooling | None:
        return gguf_pooling(self._file.metadata, parts.tokenizer)


class _Folder:
    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    @cached_property
    def _entries(self) -> Mapping[str, WeightEntry]:
        return safetensors_file.read_entries(self.path)

    @property
    def files(self) -> list[Path]:
        return safetensors_file.weight_files(self.path)

    @property
    def info(self) -> ModelInfo:
        return describe_folder(self.path, self.config, self._entries)

    def load(self, dtype: mx.Dtype | None, packed: bool) -> Parts:
        tokenizer = Tokenizer.from_file(self.path)
        vision: VisionModel | None = None
        if checkpoint.has_vision(self.config):
            model, config, vision = checkpoint.load_folder(self.path, self.config)
        elif _EMBEDDING in self._entries:
            model, config = self._trunk(), self.config
        else:
            model, config = self._module()
            if is_qwen(config):
                vision = qwen.load_vision(self.path, config)
        if vision is not None and dtype is not None:
            build.cast(vision.network, dtype)
        return Parts(model, config, tokenizer, vision)

    def _module(self) -> tuple[nn.Module, dict[str, Any]]:
        """Load the folder as mlx-lm does, with classes that keep prediction heads."""
        try:
            model, config = load_mlx_folder(
                self.path, lazy=True, get_model_classes=mtp_checkpoint.model_classes
            )
        except (ValueError, TypeError, KeyError, RuntimeError) as e:
            raise CorruptModelError(
                f"{self.path}: weights and configuration do not match: {e}"
            ) from e
        return model, config

    def _trunk(self) -> nn.Module:
        """Load a model that was saved without its output layer, as embedding models are.

        The embedding takes the place of the output layer, which is not used.
        """
        weights: dict[str, mx.array] = {}
        for file in self.files:
            read: Any = mx.load(str(file))
            weights |= {f"model.{name}": array for name, array in read.items()}
        return build.build({**self.config, "tie_word_embeddings": True}, weights, str(self.path))

    def pooling(self, parts: Parts) -> Pooling | None:
        return folder_pooling(self.path, parts.config, parts.tokenizer)
