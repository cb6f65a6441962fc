"""Attention of prefill chunks over latents (MLA): absorbed or expanded, whichever computes less.

A query-key pair costs `2 * rank + rope` products a head absorbed, and `nope + rope + value_dim`
expanded, 3.4 times less in DeepSeek's models. Expanding costs `rank * (nope + value_dim)` products
a head for every key of the prefix; absorbing costs as much for every new token. So prompts without
a cached prefix are expanded, and few new tokens over a long prefix are absorbed. In DeepSeek's
models some 170 new tokens over a prefix are worth its expansion, of one sequence or of all that
share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.latents import Expansion
from sgl_mlx.runtime.attention.kernels import KernelChunks
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.spans import MIN_SHARED, shared_spans
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row

_MOST_EXPANDED = 2**26
"""Most numbers that the expanded keys and values of one stretch of prefix may have."""

AnyChunks = Chunks | SdpaChunks | KernelChunks


class LatentInputs(NamedTuple):
    """Arguments of one layer's attention over latents.

    Attributes:
        queries: `(tokens, heads, nope + rope)`.
        entries: `(tokens, 1, rank + rope)`, of the new tokens.
    """

    layer: int
    queries: mx.array
    entries: mx.array
    options: AttentionOptions
    expansion: Expansion


class LatentChunks:
    """Attention of prefill chunks of layers that store entries of latents.

    Args:
        rows: sorted by their prefix slots.
        absorbed: makes the attention of some of the rows over entries, as over one KV head.
        min_shared: fewest keys of a shared prefix that is attended once for all its rows.
    """

    def __init__(
        self,
        pool: KVPool,
        rows: Sequence[Row],
        absorbed: Callable[[Sequence[Row]], AnyChunks],
        min_shared: int = MIN_SHARED,
    ) -> None:
        self._pool, self._absorbed, self._min_shared = pool, absorbed, min_shared
        self._groups = _groups(rows, min_shared)
        self._runs: dict[tuple[int, ...], list[_Run]] = {}

    def attend(self, inputs: LatentInputs) -> mx.array:
        """Attend a layer's queries; returns `(tokens, heads, value_dim)`."""
        outs, first = [], 0
        for run in self._runs_for(inputs.expansion):
            mine = slice(first, first + run.tokens)
            first = mine.stop
            part = inputs._replace(queries=inputs.queries[mine], entries=inputs.entries[mine])
            outs.append(run.attend(part))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)

    def _runs_for(self, expansion: Expansion) -> list[_Run]:
        if expansion.widths not in self._runs:
            self._runs[expansion.widths] = [
                self._run([row for group in groups for row in group.rows], expand, expansion)
                for expand, groups in groupby(self._groups, lambda group: group.expands(expansion))
            ]
        return self._runs[expansion.widths]

    def _run(self, rows: Sequence[Row], expand: bool, like: Expansion) -> _Run:
        tokens = sum(len(row.tokens) for row in rows)
        if not expand:
            return _Absorbed(tokens, self._absorbed(rows))
        each = like.heads * (like.nope + like.rope + like.value_dim)
        most_keys = max(_MOST_EXPANDED // each, 1)
        return _Expanded(tokens, self._pool, rows, self._min_shared, most_keys)


class _Absorbed:
    """Rows whose queries are multiplied into the space of latents."""

    def __init__(self, tokens: int, chunks: AnyChunks) -> None:
        self.tokens = tokens
        self._chunks = chunks

    def attend(self, inputs: LatentInputs) -> mx.array:
        layer, queries, entries, options, expansion = inputs
        self._chunks.store(layer, entries, entries[..., : expansion.rank])
        return expansion.project(self._chunks.attend(layer, expansion.absorb(queries), options))


class _Expanded:
    """Rows whose prefixes and new entries become keys and values of every head."""

    def __init__(
        self, tokens: int, pool: KVPool, rows: Sequence[Row], min_shared: int, most_keys: int
    ) -> None:
        self.tokens = tokens
        self._pool = _ExpandedPool(pool)
        self._chunks = Chunks(self._pool, rows, min_shared, most_keys)

    def attend(self, inputs: LatentInputs) -> mx.array:
        layer, queries, entries, options, expansion = inputs
        self._pool.expansion = expansion
        self._chunks.store(layer, *expansion.expand(entries))
        return self._chunks.attend(layer, queries, options)


_Run = _Absorbed | _Expanded


class _ExpandedPool:
    """The pool as if it held the keys and values of every head; `expansion` makes them."""

    def __init__(self, pool: KVPool) -> None:
        self.layers = pool.layers
        self.expansion: Expansion | None = None
        self._pool = pool

    def gather(self, layer: int, index: SlotIndex) -> tuple[mx.array, mx.array]:
        assert self.expansion is not None, "set by `_Expanded.attend`"
        return self.expansion.expand(self._pool.gather(layer, index)[0])


@dataclass(frozen=True)
class _Group:
    """Neighbouring rows that share stretches of prefix.

    Attributes:
        pairs: number of query-key pairs.
        keys: number of prefix keys, shared ones counted once.
    """

    rows: Sequence[Row]
    pairs: float
    keys: int

    def expands(self, expansion: Expansion) -> bool:
        """True if expanding the prefix computes less than absorbing the queries."""
        return expansion.saved_by_pair * self.pairs > expansion.cost_of_key * self.keys


def _groups(rows: Sequence[Row], min_shared: int = MIN_SHARED) -> list[_Group]:
    spans, private = shared_spans(rows, min_shared)
    keys = [len(row.prefix) - start for row, start in zip(rows, private, strict=True)]
    for span in spans:
        keys[span.first] += len(span.slots)
    ends = {row: row + 1 for row in range(len(rows))}
    for span in spans:
        ends[span.first] = max(ends[span.first], span.last)
    groups, first = [], 0
    while first < len(rows):
        last = ends[first]
        mine = range(first, last)
        pairs = sum(_pairs(rows[i]) for i in mine)
        groups.append(_Group(rows[first:last], pairs, sum(keys[i] for i in mine)))
        first = last
    return groups


def _pairs(row: Row) -> float:
    tokens = len(row.tokens)
    return tokens * len(row.prefix) + tokens * tokens / 2
