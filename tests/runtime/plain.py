"""Right results by the shortest way: attention in numpy, and mlx-lm's own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


def attention(
    queries: Floats,
    keys: Floats,
    values: Floats,
    seen: NDArray[Any],
    sinks: Floats | None = None,
    softcap: float | None = None,
) -> Floats:
    """`(tokens, heads, dim)` from queries `(tokens, heads, dim)`, already scaled, over keys and
    values `(length, kv_heads, dim)`, of which `seen (tokens, length)` tells those that count."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (keys, values))
    scores = np.einsum("thd,lhd->htl", queries.astype(np.float64), keys)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(seen[None], scores, -np.inf)
    if sinks is not None:  # one more key, with a score of its own and no value
        extra = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, extra], axis=-1)
        values = np.concatenate([values, np.zeros_like(values[:1])])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("htl,lhd->thd", weights, values)


def causal(query_positions: Sequence[int], key_positions: Sequence[int], window: int | None) -> Any:
    """Which keys are seen: those before, and with a window only the last `window` of them."""
    distance = np.array(query_positions)[:, None] - np.array(key_positions)[None, :]
    return (distance >= 0) & (distance < (window or np.inf))


def copy_of(module: nn.Module) -> nn.Module:
    """mlx-lm's model as mlx-lm makes it, with the same weights; call it on their thread."""
    import importlib

    library = importlib.import_module(f"mlx_lm.models.{module.args.model_type}")
    copy: nn.Module = library.Model(module.args)
    copy.update(module.parameters())
    copy.eval()
    return copy


def logprobs(module: nn.Module, tokens: Sequence[int]) -> Floats:
    """Log-probabilities `(tokens, vocabulary)` after each token, in one forward pass of a copy."""
    return log_softmax(copy_of(module), tokens)


def log_softmax(module: nn.Module, tokens: Sequence[int]) -> Floats:
    """The same of a module that is mlx-lm's own."""
    logits = module(mx.array([list(tokens)]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def llama(
    module: nn.Module, tokens: Sequence[int], positions: Sequence[int], seen: NDArray[Any]
) -> Floats:
    """Log-probabilities `(tokens, vocabulary)` of a llama whose tokens stand at any positions and
    see any others: `seen (tokens, tokens)`."""
    trunk, hidden = module.model, module.model.embed_tokens(mx.array(list(tokens)))
    where = mx.array(list(positions))
    for layer in trunk.layers:
        attn, x = layer.self_attn, layer.input_layernorm(hidden)
        q, k, v = (proj(x) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
        heads = attn.n_heads, attn.n_kv_heads, attn.n_kv_heads
        q, k, v = (a.reshape(len(tokens), n, 1, -1) for a, n in zip((q, k, v), heads, strict=True))
        # every token is a batch of its own, so that each has its own position
        q, k = attn.rope(q, offset=where), attn.rope(k, offset=where)
        rows = [np.array(a[:, :, 0]) for a in (q * attn.scale, k, v)]
        out = attention(rows[0], rows[1], rows[2], seen).reshape(len(tokens), -1)
        hidden = hidden + attn.o_proj(mx.array(out.astype(np.float32)))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits = module.lm_head(trunk.norm(hidden))
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
