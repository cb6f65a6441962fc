"""Module of a multi-token-prediction (MTP) head: a model of one layer, built from mlx-lm's classes.

A head guesses the token after the next one (DeepSeek-V3, arXiv 2412.19437, section 2.2). Its input
for position i joins the hidden state of the large model after token i with the embedding of token
i + 1:

    x = projection([embedding_norm(embedding); hidden_norm(hidden state)])

One decoder layer, a norm and the large model's output layer follow. So a head is a model of the
same architecture with one layer, and with `Joint` in place of the embedding. To guess one token
more, the norm's output serves as the hidden state, as in SGLang.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from sgl_mlx import machine
from sgl_mlx.models import memory
from sgl_mlx.models.build import check_weights, model_classes, quantize_like
from sgl_mlx.models.mtp_checkpoint import HeadWeights
from sgl_mlx.models.trunk import trunk_of
from sgl_mlx.models.vision.qwen.rope import axes_of, turn

_ONE_LAYER = {
    "num_hidden_layers": 1,
    "full_attention_interval": 1,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
"""Configuration values that leave one layer, with full attention and with experts if any."""

_hidden: ContextVar[mx.array | None] = ContextVar("hidden states for the head", default=None)


@contextmanager
def joining(hidden: mx.array | None) -> Iterator[None]:
    """Give heads that run on this thread the hidden states `(tokens, width)` of their tokens."""
    token = _hidden.set(hidden)
    try:
        yield
    finally:
        _hidden.reset(token)


class Joint(nn.Module):
    """Input of a head: token embeddings joined to hidden states (`joining`).

    Called with tokens of any shape; without `joining`, all hidden states are 0.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.embedding_norm = nn.RMSNorm(width, eps)
        self.hidden_norm = nn.RMSNorm(width, eps)
        self.projection = nn.Linear(2 * width, width, bias=False)

    def share(self, embedding: nn.Module) -> None:
        """Use the large model's embedding, which does not become a part of this module."""
        object.__setattr__(self, "_embedding", embedding)

    def __call__(self, tokens: mx.array) -> mx.array:
        embedded = self._embedding(tokens)
        hidden = _hidden.get()
        hidden = mx.zeros_like(embedded) if hidden is None else hidden.reshape(embedded.shape)
        both = [self.embedding_norm(embedded), self.hidden_norm(hidden.astype(embedded.dtype))]
        joined: mx.array = self.projection(mx.concatenate(both, axis=-1))
        return joined

    def as_linear(self, hidden: mx.array) -> mx.array:
        """Compute logits with the embedding, for models whose output layer is the embedding."""
        logits: mx.array = self._embedding.as_linear(hidden)
        return logits


def build_head(
    config: Mapping[str, Any], weights: HeadWeights, model: nn.Module, dtype: mx.Dtype, source: str
) -> nn.Module:
    """Build a head that shares the embedding and the output layer of a large model.

    Args:
        config: configuration of the large model.
        model: the large model of mlx-lm.
        dtype: type of the large model's hidden states, to which the head's weights are converted.
            Quantized layers stay quantized on a GPU; on a CPU they are dequantized.
        source: the folder that errors name.

    Raises:
        CorruptModelError: for weights that are missing or do not fit the configuration.
        MemoryLimitError: if the head does not fit; raised before any weight is read.
        UnsupportedModelError: see `model_classes`.
    """
    head = _one_layer(config)
    trunk = trunk_of(head)
    path = next(name for name, module in head.named_modules() if module is trunk)
    holder, large = _holder(head), trunk_of(model)
    eps = trunk.norm.eps
    trunk.embed_tokens = Joint(trunk.norm.weight.shape[0], eps)
    if "lm_head" in holder:
        del holder.lm_head
    named = {f"model.layers.0.{name}": weight for name, weight in weights.block.items()}
    named = head.sanitize(named)
    named |= {f"{path}.{name}": weight for name, weight in weights.norm.items()}
    named |= {f"{path}.embed_tokens.{name}": weight for name, weight in weights.joint.items()}
    quantize_like(head, named)
    check_weights(head, named, f"{source}, its MTP head as a model of one layer")
    head.load_weights(list(named.items()))
    head.eval()
    if not machine.on_gpu():
        dequantize_model(head)
    head.set_dtype(dtype)
    needed = sum(p.nbytes for _, p in tree_flatten(head.parameters()))
    memory.check_fits(f"the MTP head of {source}", needed, memory.available_bytes(), "its weights")
    mx.eval(head.parameters())
    _turn_alike(head, large)
    trunk.embed_tokens.share(large.embed_tokens)
    if "lm_head" in _holder(model):
        object.__setattr__(holder, "lm_head", _holder(model).lm_head)
    return head


def _one_layer(config: Mapping[str, Any]) -> nn.Module:
    """Build the large model's architecture with one layer, without computing any weight."""
    changed = deepcopy(dict(config))
    text = changed.get("text_config", changed)
    text.update({name: value for name, value in _ONE_LAYER.items() if name in text})
    text["num_hidden_layers"] = 1
    text.setdefault("full_attention_interval", 1)
    model_class, args_class = model_classes(changed)
    head: nn.Module = model_class(args_class.from_dict(changed))
    trunk_of(head).ssm_idx = None  # Qwen's models look up a recurrent layer, which heads lack
    return head


def _turn_alike(head: nn.Module, model: nn.Module) -> None:
    """Make the head's rotary module take positions of pictures if the model's takes them."""
    axes = axes_of(model)
    for module in head.modules():
        if axes is not None and hasattr(module, "rope"):
            turn(module.rope, axes)


def _holder(model: nn.Module) -> nn.Module:
    """Return the module that calls the trunk, and has the output layer if the model has one."""
    trunk = trunk_of(model)
    return next(m for m in model.modules() if any(c is trunk for c in m.children().values()))
