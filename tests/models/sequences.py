"""Sequences run through an adapter in any chunks and any batch, without pool or scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.models.layer_cache import Attention
from sgl_mlx.models.states import RowStates

KeysValues = tuple[mx.array, mx.array]


@dataclass
class Branch:
    """One sequence: each layer's keys and values so far, its states, and logits of its tokens."""

    kv: list[KeysValues | None]
    states: list[mx.array]
    length: int = 0
    logits: list[mx.array] = field(default_factory=list)

    def fork(self) -> Branch:
        """A sequence that goes on from here; arrays are values, so nothing is copied."""
        return Branch(list(self.kv), list(self.states), self.length, list(self.logits))


def fresh(adapter: Adapter) -> Branch:
    """A sequence without tokens."""
    zeros = [mx.zeros((1, *state.shape), state.dtype) for state in adapter.states]
    return Branch([None] * len(adapter.layers), zeros)


def extend(adapter: Adapter, parts: Sequence[tuple[Branch, Sequence[int]]]) -> None:
    """Run one step in which each sequence gets some new tokens, and keep their logits."""
    lengths = tuple(len(new) for _, new in parts)
    tokens = mx.array([t for _, new in parts for t in new], mx.int32)
    positions = mx.array([s.length + i for s, new in parts for i in range(len(new))], mx.int32)
    attention = _Rows([s for s, _ in parts], lengths)
    states = None
    if adapter.states:
        arrays = [mx.concatenate(list(a)) for a in zip(*(s.states for s, _ in parts), strict=True)]
        states = RowStates(lengths, arrays)
    every = mx.arange(len(tokens))
    logits = adapter.forward(tokens, positions, attention, every, states=states)
    for i, ((sequence, new), (first, end)) in enumerate(
        zip(parts, pairwise(_starts(lengths)), strict=True)
    ):
        sequence.length += len(new)
        sequence.logits.append(logits[first:end])
        if states is not None:
            sequence.states = [array[i : i + 1] for array in states.new]
        sequence.kv = [attention.kv[layer][i] for layer in range(len(adapter.layers))]


class _Rows(Attention):
    """Attention of a step, each row computed alone over all its keys."""

    def __init__(self, sequences: Sequence[Branch], lengths: Sequence[int]) -> None:
        self.kv: dict[int, list[KeysValues]] = {}
        self._sequences = sequences
        self._spans = list(pairwise(_starts(lengths)))

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        rows = []
        for sequence, (first, end) in zip(self._sequences, self._spans, strict=True):
            new, before = (keys[first:end], values[first:end]), sequence.kv[layer]
            if before is not None:
                new = mx.concatenate([before[0], new[0]]), mx.concatenate([before[1], new[1]])
            rows.append(new)
        self.kv[layer] = rows

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        outs = []
        for (keys, values), (first, end) in zip(self.kv[layer], self._spans, strict=True):
            mask = create_causal_mask(end - first, len(keys) - (end - first), options.window)
            q, k, v = (x.swapaxes(0, 1)[None] for x in (queries[first:end], keys, values))
            outs.append(_softmax(q, k, v, mask, options)[0].swapaxes(0, 1))
        return mx.concatenate(outs)


def _softmax(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array, options: AttentionOptions
) -> mx.array:
    """Attention `(1, heads, tokens, dim)`, written out for its soft-cap."""
    if options.softcap is None:
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=options.scale, mask=mask, sinks=options.sinks
        )
    repeats = q.shape[1] // k.shape[1]
    k, v = mx.repeat(k, repeats, axis=1), mx.repeat(v, repeats, axis=1)
    scores = mx.tanh(q * options.scale @ k.swapaxes(-1, -2) / options.softcap) * options.softcap
    weights: mx.array = mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1) @ v
    return weights


def _starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts
