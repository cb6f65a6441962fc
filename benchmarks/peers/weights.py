"""The model that all systems run, converted to the format that each of them reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from sgl_mlx.benchmarks.micro.random_mmproj import write_mmproj
from sgl_mlx.benchmarks.micro.random_tower import TOWERS
from sgl_mlx.errors import BenchmarkError
from sgl_mlx.models import safetensors_file
from sgl_mlx.models.gguf import config as gguf_config
from sgl_mlx.models.gguf.file import GGUFFile
from sgl_mlx.models.loader import load
from sgl_mlx.models.resolve import resolve
from sgl_mlx.tokenizer import Tokenizer


@dataclass(frozen=True)
class Weights:
    """A model, and a folder for the files that are made from the model for the systems.

    Args:
        model: name or path, as for `models.loader.load`.
        folder: where files are written.
    """

    model: str | None
    folder: Path

    @cached_property
    def path(self) -> Path:
        """Path of the model's GGUF file or folder."""
        return resolve(self.model)[1]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.path.is_dir():
            return Tokenizer.from_file(self.path)
        return Tokenizer.from_gguf(GGUFFile(self.path).metadata)

    def mlx_folder(self) -> Path:
        """Return a folder with the model in MLX's format.

        A GGUF file is converted to float32, with which mlx-lm is fastest on a CPU.
        """
        if self.path.is_dir():
            return self.path
        made = self.folder / "mlx"
        made.mkdir(exist_ok=True)
        loaded = load(self.model, dtype="float32")
        weights = dict(tree_flatten(loaded.model.parameters()))
        mx.save_safetensors(str(made / "model.safetensors"), weights, {"format": "mlx"})
        (made / "config.json").write_text(json.dumps(loaded.config))
        self.tokenizer.backend.save(str(made / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.tokenizer.token_text(min(self.tokenizer.eos_token_ids)),
            "clean_up_tokenization_spaces": False,
            "chat_template": self.tokenizer.chat_template,
        }
        (made / "tokenizer_config.json").write_text(json.dumps(settings))
        return made

    def random_tower(self, tower: str) -> Path:
        """Write a GGUF file with a random vision tower for this model, and return its path.

        Args:
            tower: a name in `TOWERS`.

        Raises:
            BenchmarkError: when no tower has this name.
        """
        if tower not in TOWERS:
            raise BenchmarkError(f"no tower is called {tower}; there are {', '.join(TOWERS)}")
        made = self.folder / "mmproj.gguf"
        write_mmproj(made, tower, self._width)
        return made

    @property
    def _width(self) -> int:
        if self.path.is_dir():
            return int(safetensors_file.read_config(self.path)["hidden_size"])
        return int(gguf_config.read_config(GGUFFile(self.path))["hidden_size"])
