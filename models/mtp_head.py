"""Multi-token-prediction (MTP) head of a model: found in its folder, loaded, and run in batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import CorruptModelError, MemoryLimitError, ModelError, UnsupportedModelError
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models import safetensors_file
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.layer_cache import Attention, KeysValues
from sgl_mlx.models.mtp_checkpoint import ARCHITECTURES, QWEN, HeadWeights, read_head
from sgl_mlx.models.mtp_module import build_head, joining

_COUNTS = "mtp_num_hidden_layers", "num_nextn_predict_layers"
"""Configuration fields that say how many heads a model was trained with."""


class Head:
    """An MTP head; `forward` computes its guesses, `keys_values` only its keys and values.

    At position i its input is token i + 1 and the large model's hidden state after token i, both
    in arrays of one entry for each token of the batch.

    Args:
        module: a head made by `build_head`.

    Attributes:
        adapter: the adapter that runs the module; its only layer is number 0.
    """

    def __init__(self, module: nn.Module) -> None:
        self.adapter = Adapter(module)
        if len(self.adapter.layers) != 1 or self.adapter.states:
            raise UnsupportedModelError("an MTP head must be one layer of attention")

    def forward(
        self, tokens: mx.array, hidden: mx.array | None, positions: mx.array, attention: Attention
    ) -> tuple[mx.array, mx.array]:
        """Compute the logits of the token after each token, and the head's own hidden states.

        Args:
            tokens, positions: `(tokens,)`; the position of a token's hidden state, one less than
                the token's own.
            hidden: `(tokens, width)`; None stands for zeros.
            attention: keeps and attends to keys and values of layer 0.

        Returns:
            Logits `(tokens, vocabulary)` and hidden states `(tokens, width)`.
        """
        kept: list[mx.array] = []
        every = mx.arange(len(tokens))
        with joining(hidden):
            logits = self.adapter.forward(tokens, positions, attention, every, hidden=kept)
        return logits, kept[0]

    def keys_values(self, tokens: mx.array, hidden: mx.array, positions: mx.array) -> KeysValues:
        """Compute the head's keys and values `(tokens, heads, dim)` for the tokens.

        The arguments are those of `forward`. MLX computes only what the result depends on, so
        neither attention nor anything after it is computed.
        """
        store = _Store(self.adapter.layers[0].value_dim)
        self.forward(tokens, hidden, positions, store)
        return store.found


class _Store(Attention):
    """Attention that keeps the keys and values it is given, and returns zeros."""

    def __init__(self, value_dim: int) -> None:
        self._value_dim = value_dim

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        self.found = keys, values

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        return mx.zeros((*queries.shape[:2], self._value_dim), queries.dtype)


def load_head(model: nn.Module, config: Mapping[str, Any], folder: Path, dtype: mx.Dtype) -> Head:
    """Load the MTP head of a model; call it on the thread that will run the model.

    Args:
        model: the model as it was loaded from `folder`; the head shares its embedding and output.
        config: the model's configuration.
        dtype: type of the model's hidden states.

    Raises:
        UnsupportedModelError: for a model without such a head; the message says what was found.
        CorruptModelError: for a head with missing weights, or with other shapes than the
            configuration says.
        MemoryLimitError: if the head does not fit.
    """
    architecture = type(model).__module__.rpartition(".")[2]
    text = config.get("text_config") or config
    try:
        weights = _read(folder, architecture, text)
        return Head(build_head(config, weights, model, dtype, str(folder)))
    except (ModelError, MemoryLimitError):
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as e:  # from mlx-lm's own conversions
        raise CorruptModelError(
            f"{folder}: weights of its MTP head do not fit the configuration: {e}"
        ) from e


def _read(folder: Path, architecture: str, text: Mapping[str, Any]) -> HeadWeights:
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(
            f"MTP heads are read for {known}; the model is of architecture {architecture}"
        )
    if not folder.is_dir():
        raise UnsupportedModelError(
            f"{folder} is no model folder; MTP heads are read from safetensors files alone"
        )
    weights = read_head(folder, architecture, text["num_hidden_layers"])
    if weights is None:
        raise UnsupportedModelError(_nothing_found(folder, architecture, text))
    return weights


def _nothing_found(folder: Path, architecture: str, text: Mapping[str, Any]) -> str:
    layers = text["num_hidden_layers"]
    names = "mtp.*" if architecture in QWEN else f"model.layers.{layers}.*"
    files = len(safetensors_file.weight_files(folder))
    said = [f"{name} = {text[name]}" for name in _COUNTS if text.get(name)]
    message = f"{folder} has no MTP head: none of its {files} weight files has weights {names}"
    if said:
        message += f", though config.json says {said[0]}; conversions for MLX usually drop them"
    return message
