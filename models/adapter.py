"""Adapter that runs mlx-lm's architectures unchanged on the runtime's KV cache.

In mlx-lm a layer's attention asks its cache for `offset`, hands new keys and values to
`cache.update_and_fetch`, and calls the module's global `scaled_dot_product_attention`. `LayerCache`
stands in for the cache and `ragged_attention` for the function. The tokens of all requests are fed
as one batch `(tokens, 1)`, in which each token has a position of its own. Requests of different
lengths therefore share a step without padding (a "ragged" step). `StateCache` stands in for the
caches of recurrent layers.

Architectures whose attention works otherwise run one request at a time ("dense") on a copy of its
keys and values (`DenseCache`): correct, only slower. `architectures` lists which architecture runs
how.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from sgl_mlx.errors import UnsupportedModelError
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.block_choice import BlockChoice
from sgl_mlx.models.cache_layout import CacheLayout
from sgl_mlx.models.cpu_functions import CpuFunctions
from sgl_mlx.models.deepstack import adding, prepared_layers
from sgl_mlx.models.latents import LatentQueries
from sgl_mlx.models.layer_cache import Attention, DenseCache, KeysValues, LayerCache
from sgl_mlx.models.own_attention import replace_own_attention
from sgl_mlx.models.ragged_attention import ragged_step, redirect_attention
from sgl_mlx.models.state_cache import StateCache, probe_states
from sgl_mlx.models.states import RowGroups, RowStates, StateShape
from sgl_mlx.models.trunk import choosing, is_pipelined, select_in_trunk


class LayerShape(NamedTuple):
    """Shape of one layer's KV cache.

    Attributes:
        heads: number of key/value heads.
        key_dim, value_dim: width of one head's keys and values.
        window: size of the layer's sliding window; None for full attention.
        softcap: soft-cap of the attention scores; None for none.
        values_in_keys: True if a value is the first `value_dim` columns of its key (MLA), or there
            are no values (an indexer's keys).
        top_keys: most keys that a query attends to, chosen by an indexer; None for all.
    """

    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    softcap: float | None = None
    values_in_keys: bool = False
    top_keys: int | None = None


class LayerAttention(NamedTuple):
    """One call of attention in a forward pass.

    Attributes:
        layer: index of the layer whose keys and values are read.
        heads: number of query heads.
    """

    layer: int
    heads: int
    options: AttentionOptions


class Adapter:
    """A loaded model with two ways to run it: `forward` (ragged) and `forward_dense`.

    Args:
        model: a model of `mlx_lm.models`.
        ragged: True batches requests of any length (`forward`); False runs one at a time
            (`forward_dense`).

    Attributes:
        layers: shape of each layer's KV cache; empty for a model without attention.
        states: shape of each array of recurrent state; empty for a model of attention alone.
        attentions: the calls of attention in a forward pass, in order; empty if not ragged.
        dtype: type of keys and values; of the logits for a model without attention.
        vocabulary: width of the logits.

    Raises:
        UnsupportedModelError: when a layer keeps something other than keys and values or recurrent
            state, or the model cannot run in the way that `ragged` chooses.
    """

    def __init__(self, model: nn.Module, ragged: bool = True) -> None:
        self.model = model
        self.ragged = ragged
        if ragged:
            replace_own_attention(model)
        self._trunk_selects = select_in_trunk(model)
        self._layout = CacheLayout(model)
        self._functions = CpuFunctions(model)
        if ragged:
            redirect_attention(model)
        elif self._layout.state_sizes:
            raise UnsupportedModelError("recurrent layers do not run one request at a time")
        try:
            self.states = self._probe_states()
            self.layers, self.attentions, self.dtype, self.vocabulary = self._probe()
        except (TypeError, ValueError, AttributeError) as e:
            raise UnsupportedModelError(_reason(e)) from e

    def forward(
        self,
        tokens: mx.array,
        positions: mx.array,
        attention: Attention,
        rows: mx.array,
        embeddings: mx.array | None = None,
        states: RowStates | None = None,
        hidden: list[mx.array] | None = None,
    ) -> mx.array:
        """Compute the logits that follow chosen tokens of a ragged batch.

        Args:
            tokens: token ids `(tokens,)`.
            positions: their positions `(tokens,)`, or `(3, tokens)` for a model that turns by time,
                row and column (M-RoPE).
            attention: keeps the keys and values of this step and attends to them.
            rows: indices into `tokens`; logits are computed after these tokens only.
            embeddings: as `embed` returns them, with features of pictures in some rows; given to
                the first layers in place of the embeddings of `tokens`.
            states: recurrent states of the step's rows, whose `new` is filled; needed if and only
                if the model has `states`.
            hidden: receives the hidden states `(tokens, width)` from which logits are computed;
                only for models with a trunk (see `trunk`). None if they are not needed.

        Returns:
            Logits `(len(rows), vocabulary)`.

        Raises:
            ValueError: for more or fewer arrays of state than the model has.
        """
        recurrent = self._state_caches(states)
        logits = self._ragged(tokens, positions, attention, rows, embeddings, recurrent, hidden)
        if states is not None:
            made = [array for cache in recurrent for array in cache.after]
            states.new = [a.astype(s.dtype) for a, s in zip(made, self.states, strict=True)]
        return logits

    def _ragged(
        self,
        tokens: mx.array,
        positions: mx.array,
        attention: Attention,
        rows: mx.array,
        embeddings: mx.array | None,
        recurrent: Sequence[StateCache],
        hidden: list[mx.array] | None = None,
    ) -> mx.array:
        windows = self._layout.windows
        caches = [LayerCache(i, positions, attention, w) for i, w in enumerate(windows)]
        arranged = self._layout.arrange(caches, recurrent)
        fed, added = self._fed(embeddings)
        with ragged_step(caches), adding(added):
            fed = None if fed is None else fed[:, None]
            kept: list[mx.array] | None = None if hidden is None else []
            logits = self._logits(tokens[:, None], arranged, rows, embeddings=fed, kept=kept)
            if hidden is not None and kept is not None:
                hidden += [x[:, 0] for x in kept]
            return logits[:, 0]

    def _state_caches(self, states: RowStates | None) -> list[StateCache]:
        given = 0 if states is None else len(states.arrays)
        if given != len(self.states):
            raise ValueError(f"a step needs {len(self.states)} arrays of state, got {given}")
        if states is None:
            return []
        groups, arrays = RowGroups(states.lengths), iter(states.arrays)
        return [
            StateCache(groups, [next(arrays) for _ in range(size)])
            for size in self._layout.state_sizes
        ]

    def forward_dense(
        self,
        tokens: mx.array,
        prefix: Sequence[KeysValues] | None,
        rows: mx.array,
        embeddings: mx.array | None = None,
        offset: int = 0,
    ) -> tuple[mx.array, list[KeysValues]]:
        """Compute the logits and the new keys and values of one request, alone.

        Args:
            tokens: new token ids `(tokens,)`.
            prefix: each layer's keys and values `(length, heads, dim)` of the request's tokens
                before `tokens`; None if there are none. A layer with a window needs those of the
                last `window - 1` tokens alone.
            rows: indices into `tokens`; logits are computed after these tokens only.
            embeddings: as for `forward`.
            offset: number of the request's tokens before `tokens`.

        Returns:
            Logits `(len(rows), vocabulary)`, and each layer's keys and values
            `(tokens, heads, dim)` of the new tokens.
        """
        caches = [
            DenseCache(None if prefix is None else _as_batch(*prefix[i]), window, offset)
            for i, window in enumerate(self._layout.windows)
        ]
        fed = None if embeddings is None else embeddings[None]
        arranged = self._layout.arrange(caches)
        logits = self._logits(tokens[None], arranged, rows, axis=1, embeddings=fed)[0]
        return logits, [_as_rows(cache) for cache in caches]

    @property
    def pipelined(self) -> bool:
        """True if the layers are divided among ranks, which wait for each other's results."""
        return is_pipelined(self.model)

    @property
    def takes_embeddings(self) -> bool:
        """True if the model accepts embeddings as input and has an embedding layer to make them."""
        fed = "input_embeddings" in inspect.signature(type(self.model).__call__).parameters
        return fed and self._embedding is not None

    def embed(self, tokens: mx.array) -> mx.array:
        """Embed token ids `(tokens,)` as the first layer's input `(tokens, width)`.

        Zeros follow for each layer that adds features of pictures to its output (`deepstack`):
        `(tokens, width * (1 + layers))`.
        """
        assert self._embedding is not None
        embedded: mx.array = self._embedding(tokens)
        more = embedded.shape[-1] * prepared_layers(self.model)
        return mx.pad(embedded, [(0, 0), (0, more)]) if more else embedded

    def _fed(self, embeddings: mx.array | None) -> tuple[mx.array | None, mx.array | None]:
        """Split embeddings into the first layer's input and what layers add to their outputs.

        Each of the two is None if it is absent.
        """
        if embeddings is None or not (layers := prepared_layers(self.model)):
            return embeddings, None
        width = embeddings.shape[-1] // (1 + layers)
        return embeddings[:, :width], embeddings[:, width:]

    @cached_property
    def _embedding(self) -> nn.Module | None:
        kinds = (nn.Embedding, nn.QuantizedEmbedding)
        found = (m for _, m in self.model.named_modules() if isinstance(m, kinds))
        return max(found, key=lambda m: m.weight.shape[0], default=None)

    def _logits(
        self,
        tokens: mx.array,
        caches: Sequence[Any],
        rows: mx.array,
        axis: int = 0,
        embeddings: mx.array | None = None,
        kept: list[mx.array] | None = None,
    ) -> mx.array:
        # Some architectures have no such parameter.
        fed = {} if embeddings is None else {"input_embeddings": embeddings}
        with choosing(rows, axis, kept), self._functions:
            logits = self.model(tokens, cache=caches, **fed)
        return logits if self._trunk_selects else mx.take(logits, rows, axis=axis)

    def _probe(self) -> tuple[list[LayerShape], list[LayerAttention], mx.Dtype, int]:
        """Find layers, attentions, dtype and vocabulary by a forward pass without evaluating it."""
        tokens, last = mx.zeros((2,), mx.int32), mx.array([1])
        seen = _ShapesSeen()
        if self.ragged:
            zeros = [mx.zeros((1, *state.shape), state.dtype) for state in self.states]
            logits = self.forward(
                tokens, mx.arange(2), seen, last, states=RowStates((2,), zeros) if zeros else None
            )
            kv = [seen.kv[i] for i in range(len(self._layout.windows))]
        else:
            logits, kv = self.forward_dense(tokens, None, last)
        if logits.shape[0] != 1:
            raise UnsupportedModelError(
                f"the model gave {len(logits)} rows of logits where one was asked for"
            )
        softcaps = {x.layer: x.options.softcap for x in seen.attentions}
        shapes = [
            LayerShape(
                *(k.shape[1], k.shape[2], v.shape[2], window, softcaps.get(i)),
                *(i in seen.latent or not v.shape[2], seen.top_keys.get(i)),
            )
            for i, ((k, v), window) in enumerate(zip(kv, self._layout.windows, strict=True))
        ]
        dtype = kv[0][0].dtype if kv else logits.dtype
        return shapes, seen.attentions, dtype, int(logits.shape[-1])

    def _probe_states(self) -> list[StateShape]:
        tokens, last = mx.zeros((2,), mx.int32), mx.array([1])

        def run(caches: Sequence[StateCache]) -> None:
            self._ragged(tokens, mx.arange(2), _ShapesSeen(), last, None, caches)

        return probe_states(self.model, self._layout.state_sizes, run)


def _reason(error: Exception) -> str:
    """Explain why a model that raised `error` cannot run here: how it uses its caches."""
    if isinstance(error, AttributeError) and isinstance(error.obj, LayerCache):
        return f"it reads {error.name!r} of its cache, where a ragged step has new tokens only"
    if "length-1 arrays" in str(error):
        return "it computes from one position, where a ragged step has one for each token"
    return f"it uses its cache in a way of its own: {error}"


class _ShapesSeen(Attention):
    """Attention that records the shapes and options it is called with, and returns zeros."""

    def __init__(self) -> None:
        self.kv: dict[int, KeysValues] = {}
        self.latent: set[int] = set()
        self.top_keys: dict[int, int] = {}
        self.attentions: list[LayerAttention] = []

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        self.kv[layer] = keys, values

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        self.attentions.append(LayerAttention(layer, queries.shape[1], options))
        return mx.zeros((*queries.shape[:2], self.kv[layer][1].shape[-1]), queries.dtype)

    def attend_latents(
        self, layer: int, queries: LatentQueries, options: AttentionOptions
    ) -> mx.array:
        self.latent.add(layer)
        if queries.choice is not None:
            self.top_keys[layer] = queries.choice.top
        return super().attend_latents(layer, queries, options)

    def attend_blocks(
        self, layer: int, queries: mx.array, options: AttentionOptions, choice: BlockChoice
    ) -> mx.array:
        self.top_keys[layer] = choice.most_tokens
        return super().attend_blocks(layer, queries, options, choice)


def _as_batch(keys: mx.array, values: mx.array) -> KeysValues:
    return keys.swapaxes(0, 1)[None], values.swapaxes(0, 1)[None]


def _as_rows(cache: DenseCache) -> KeysValues:
    if cache.new is None:
        raise UnsupportedModelError("a layer of this architecture never stored keys and values")
    keys, values = cache.new
    return keys[0].swapaxes(0, 1), values[0].swapaxes(0, 1)
