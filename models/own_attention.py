"""Replacements for mlx-lm's modules whose attention `ragged_attention` cannot redirect.

Some architectures convert or repeat stored keys before attention, call `mx.fast` directly, or
compute positions from one offset for all tokens. `replace_own_attention` turns such modules into
instances of the subclasses here, their ragged forms: these take one batch of requests of different
lengths. With a `LayerCache` a ragged form attends through that cache; with mlx-lm's own caches it
runs as mlx-lm's module does. A trunk is a model without its output layer.
"""

# mypy: allow-subclassing-any
from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import afm7, gear, gpt_bigcode, llama4, minimax_m3_vl, plamo, plamo2, stablelm
from mlx_lm.models.base import create_attention_mask

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models import own_state
from sgl_mlx.models.block_choice import BlockChoice
from sgl_mlx.models.layer_cache import LayerCache


def replace_own_attention(model: nn.Module) -> None:
    """Replace in place the modules of a model for which there is a replacement here."""
    for module in model.modules():
        replacement = _REPLACEMENTS.get(type(module))
        if replacement is not None:
            module.__class__ = replacement


def _by_head(x: mx.array, heads: int) -> mx.array:
    """Split `(tokens, 1, heads * dim)` into `(tokens, heads, 1, dim)`."""
    return x.reshape(len(x), 1, heads, -1).swapaxes(1, 2)


def _joined(x: mx.array) -> mx.array:
    """Join `(tokens, heads, 1, dim)` to `(tokens, 1, heads * dim)`."""
    return x.swapaxes(1, 2).reshape(len(x), 1, -1)


class StableLMAttention(stablelm.Attention):
    """Ragged form of stablelm's attention; the original converts stored keys to float32."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if not isinstance(cache, LayerCache):
            return super().__call__(x, mask, cache)
        queries = self.q_proj(x).reshape(len(x), 1, self.num_heads, -1)
        keys = self.k_proj(x).reshape(len(x), 1, self.num_key_value_heads, -1)
        if self.qk_layernorm:
            queries, keys = self.q_layernorm(queries), self.k_layernorm(keys)
        keys = self.rope(keys.swapaxes(1, 2), offset=cache.offset)
        values = _by_head(self.v_proj(x), self.num_key_value_heads)
        cache.update_and_fetch(keys, values)
        queries = self.rope(queries.swapaxes(1, 2), offset=cache.offset).astype(mx.float32)
        out = cache.attend(queries, AttentionOptions(self.head_dim**-0.5), mask)
        return self.o_proj(_joined(out).astype(values.dtype))


class SparseBlockAttention(minimax_m3_vl.Attention):
    """Ragged form of MiniMax-M3's attention; passes its indexer's choice of blocks as the mask."""

    def _block_mask(self, x: mx.array, mask: Any, offset: Any, cache: Any) -> Any:
        if not isinstance(cache, LayerCache):
            return super()._block_mask(x, mask, offset, cache)
        if self.index_n_heads != self.num_key_value_heads:
            raise UnsupportedModelError(
                f"{self.index_n_heads} heads of its indexer choose for {self.num_key_value_heads} "
                "KV heads; as many are needed"
            )
        keys = self.index_k_norm(self.index_k_proj(x))[:, None]
        cache.store_keys(self.index_rope(keys, offset=offset))
        queries = self.index_q_proj(x).reshape(len(x), 1, self.index_n_heads, self.index_head_dim)
        queries = self.index_rope(self.index_q_norm(queries).swapaxes(1, 2), offset=offset)
        blocks = self.index_block_size, self.index_topk_blocks, self.index_local_blocks
        return BlockChoice(cache.layer, queries[:, :, 0], *blocks)


class PlamoAttention(plamo.Attention):
    """Ragged form of plamo's attention, whose query head h reads KV head `h % kv_heads`.

    In other architectures query head h reads KV head `h // repeats`, so heads are reordered.
    """

    def __call__(
        self, hidden_states: mx.array, attention_mask: Any = None, cache: Any = None
    ) -> Any:
        if not isinstance(cache, LayerCache):
            return super().__call__(hidden_states, attention_mask, cache)
        x, rope, shared = hidden_states, self.rotary_emb, self.k_num_heads
        keys = rope(_by_head(self.k_proj(x), shared), offset=cache.offset)
        cache.update_and_fetch(keys, _by_head(self.v_proj(x), shared))
        queries = rope(_by_head(self.q_proj(x), self.q_num_heads), offset=cache.offset)
        by_key = _swapped(queries, self.config.n_shared_head)
        out = cache.attend(by_key, AttentionOptions(self.scale), attention_mask)
        return self.o_proj(_joined(_swapped(out, shared)))


def _swapped(x: mx.array, rows: int) -> mx.array:
    """Transpose the order of heads in `(tokens, heads, 1, dim)`, seen as a grid of `rows` rows."""
    grid = x.reshape(len(x), rows, -1, *x.shape[2:]).swapaxes(1, 2)
    return grid.reshape(x.shape)


class Plamo2Attention(plamo2.Attention):
    """Ragged form of plamo2's attention; the original calls `mx.fast` directly."""

    def __call__(self, hidden_states: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if not isinstance(cache, LayerCache):
            return super().__call__(hidden_states, mask, cache)
        ends = [self.q_proj_dim, self.q_proj_dim + self.k_proj_dim]
        q, k, v = mx.split(self.qkv_proj(hidden_states), ends, axis=-1)
        keys = _normed(_by_head(k, self.k_num_heads), self.k_weight)
        keys = self.rope(keys, offset=cache.offset)
        cache.update_and_fetch(keys, _by_head(v, self.v_num_heads))
        queries = _normed(_by_head(q, self.q_num_heads), self.q_weight)
        queries = self.rope(queries, offset=cache.offset)
        out = cache.attend(queries, AttentionOptions(self.scale), mask)
        return self.o_proj(_joined(out))


def _normed(x: mx.array, weight: mx.array) -> mx.array:
    return mx.fast.rms_norm(x, weight=None, eps=1e-6) * weight[:, None]


class ReusingAttention(afm7.KVReuseAttention):
    """Ragged form of afm7's attention to another layer's keys.

    mlx-lm's own attention takes the positions of queries from the number of these keys.
    """

    def __call__(self, x: mx.array, keys: Any, values: Any, mask: Any = None) -> Any:
        if not isinstance(keys, LayerCache):
            return super().__call__(x, keys, values, mask)
        queries = self.rope(_by_head(self.q_proj(x), self.n_heads), offset=keys.offset)
        out = keys.attend(self.q_norm(queries), AttentionOptions(self.scale), mask)
        return self.out_proj(_joined(out))


class ReusingModel(afm7.AFMModel):
    """Ragged form of afm7's trunk; hands its last cache to the layers that reuse keys."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
        if cache is None or not isinstance(cache[0], LayerCache):
            return super().__call__(inputs, cache)
        hidden = self.embedding(inputs)
        mask = create_attention_mask(hidden, cache[0])
        for layer, own in zip(self.layers, cache, strict=True):
            hidden = layer(hidden, mask, cache=own)
        for layer in self.kv_reuse_layers:
            hidden = layer(hidden, cache[-1], None, mask)
        return self.output_norm(hidden)


class GPTBigCodeModel(gpt_bigcode.GPTBigCodeModel):
    """Ragged form of gpt_bigcode's trunk; the original counts positions from one offset."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
        if cache is None or not isinstance(cache[0], LayerCache):
            return super().__call__(inputs, cache)
        hidden = self.wte(inputs) + self.wpe(cache[0].offset)[:, None]
        mask = create_attention_mask(hidden, cache[0])
        for layer, own in zip(self.h, cache, strict=True):
            hidden = layer(hidden, mask, cache=own)
        return self.ln_f(hidden)


class GearAttention(gear.Attention):
    """Ragged form of gear's attention; the original soft-caps its scores itself."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if not isinstance(cache, LayerCache):
            return super().__call__(x, mask, cache)
        queries, keys = (
            self.rope(norm(_by_head(project(x), heads)), offset=cache.offset)
            for project, heads, norm in (
                (self.q_proj, self.n_heads, self.q_norm),
                (self.k_proj, self.n_kv_heads, self.k_norm),
            )
        )
        cache.update_and_fetch(keys, _by_head(self.v_proj(x), self.n_kv_heads))
        options = AttentionOptions(self.scale, softcap=self.attn_logit_softcapping or None)
        return self.o_proj(_joined(cache.attend(queries, options, mask)))


class Llama4Attention(llama4.Attention):
    """Ragged form of llama4's attention.

    In layers with rotary positions, a token attends to its own chunk only.
    """

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if not isinstance(cache, LayerCache):
            return super().__call__(x, mask, cache)
        queries = _by_head(self.q_proj(x), self.n_heads)
        keys = _by_head(self.k_proj(x), self.n_kv_heads)
        if self.use_rope:
            queries, keys = (self.rope(a, offset=cache.offset) for a in (queries, keys))
        if self.use_qk_norm:
            queries, keys = (mx.fast.rms_norm(a, weight=None, eps=1e-6) for a in (queries, keys))
        if self.attn_temperature_tuning and not self.use_rope:
            queries = (queries * self._temperatures(cache.offset)).astype(queries.dtype)
        if isinstance(mask, _Chunks):
            queries, keys = mask.marked(queries, keys, cache.offset, self.scale)
        cache.update_and_fetch(keys, _by_head(self.v_proj(x), self.n_kv_heads))
        return self.o_proj(_joined(cache.attend(queries, AttentionOptions(self.scale))))

    def _temperatures(self, positions: mx.array) -> mx.array:
        """Compute the factor of each query, which grows with its position; `(tokens, 1, 1, 1)`."""
        steps = mx.log(mx.floor((positions + 1) / self.floor_scale) + 1.0)
        scales: mx.array = steps * self.attn_scale + 1.0
        return scales[:, None, None, None]


class Llama4Model(llama4.LlamaModel):
    """Ragged form of llama4's trunk; the original makes masks of chunks from one offset."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
        if cache is None or not isinstance(cache[0], LayerCache):
            return super().__call__(inputs, cache)
        hidden, chunks = self.embed_tokens(inputs), _Chunks(self.attention_chunk_size)
        for layer, own in zip(self.layers, cache, strict=True):
            hidden = layer(hidden, chunks if layer.self_attn.use_rope else None, cache=own)
        return self.norm(hidden)


class _Chunks:
    """Chunked attention without a mask: a token attends within its chunk of `size` positions.

    The layer's sliding window has the same size and so reaches at most into the previous chunk.
    Two extra columns in queries and keys, which tell even chunks from odd ones, are then enough.
    They add 0 to scores within a chunk and -100 to scores of the previous chunk, whose weight
    after softmax is negligible.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def marked(
        self, queries: mx.array, keys: mx.array, positions: mx.array, scale: float
    ) -> tuple[mx.array, mx.array]:
        """Add the two columns to queries and keys `(tokens, heads, 1, dim)`."""
        odd = positions // self._size % 2
        mine = mx.stack([1 - odd, odd], axis=-1)[:, None, None]
        other = (mine - 1) * (100 / scale)
        return _widened(queries, other), _widened(keys, mine)


def _widened(x: mx.array, columns: mx.array) -> mx.array:
    """Append columns `(tokens, 1, 1, 2)` to `(tokens, heads, 1, dim)`."""
    more = mx.broadcast_to(columns, (*x.shape[:-1], 2)).astype(x.dtype)
    return mx.concatenate([x, more], axis=-1)


_REPLACEMENTS: dict[Any, Any] = {
    stablelm.Attention: StableLMAttention,
    plamo.Attention: PlamoAttention,
    plamo2.Attention: Plamo2Attention,
    afm7.KVReuseAttention: ReusingAttention,
    afm7.AFMModel: ReusingModel,
    gear.Attention: GearAttention,
    gpt_bigcode.GPTBigCodeModel: GPTBigCodeModel,
    llama4.Attention: Llama4Attention,
    llama4.LlamaModel: Llama4Model,
    minimax_m3_vl.Attention: SparseBlockAttention,
    **own_state.REPLACEMENTS,
}
