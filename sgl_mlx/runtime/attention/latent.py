"""Attention of prefill chunks over latents (MLA): absorbed or expanded, whichever computes less.

Absorbed: queries are multiplied into the space of latents. Expanded: latents become keys and values
of every head. Absorbed, a query-key pair costs `2 * rank + rope` multiplications per head.
Expanded, it costs `nope + rope + value_dim`, 3.4 times less in DeepSeek's models. Expanding costs
`rank * (nope + value_dim)` multiplications per head for every key of the prefix; absorbing costs as
much for every new token. So prompts without a cached prefix are expanded, and few new tokens over a
long prefix are absorbed. In DeepSeek's models, expanding a prefix pays from about 170 new tokens
that attend to it, counted over all sequences that share the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.latents import Expansion, LatentQueries
from sgl_mlx.runtime.attention.chosen import ChosenChunks
from sgl_mlx.runtime.attention.kernels import KernelChunks
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.spans import MIN_SHARED, shared_spans
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.scheduler.plan import Row

_MOST_EXPANDED = 2**26
"""Most elements in the expanded keys and values of the prefix keys that are gathered at once."""

Way = Literal["absorbed", "expanded", "chosen"]
"""How rows attend; "chosen" is absorbed attention to the tokens that an indexer chooses."""

AnyChunks = Chunks | SdpaChunks | KernelChunks


class LatentInputs(NamedTuple):
    """Arguments of one layer's attention over latents.

    Attributes:
        entries: latent entries of the new tokens, `(tokens, 1, rank + rope)`.
        index_keys: indexer keys of the new tokens, `(tokens, 1, dim)`; None if queries attend to
            every token.
    """

    layer: int
    queries: LatentQueries
    entries: mx.array
    options: AttentionOptions
    index_keys: mx.array | None = None

    def of(self, tokens: slice) -> LatentInputs:
        """Return the inputs of a slice of the new tokens."""
        return self._replace(
            queries=self.queries.of(tokens),
            entries=self.entries[tokens],
            index_keys=None if self.index_keys is None else self.index_keys[tokens],
        )


class LatentChunks:
    """Attention of prefill chunks in MLA layers, which store latent entries for keys and values.

    Args:
        rows: sorted by their prefix slots.
        absorbed: makes the attention of given rows over entries, which act as one KV head.
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
        self._runs: dict[tuple[int | None, ...], list[_Run]] = {}

    def attend(self, inputs: LatentInputs) -> mx.array:
        """Attend a layer's queries; returns `(tokens, heads, value_dim)`."""
        outs, first = [], 0
        for run in self._runs_for(inputs):
            mine = slice(first, first + run.tokens)
            first = mine.stop
            outs.append(run.attend(inputs.of(mine)))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)

    def _runs_for(self, inputs: LatentInputs) -> list[_Run]:
        _, like, choice = inputs.queries
        top = None if choice is None else choice.top
        key = *like.widths, top
        if key not in self._runs:
            self._runs[key] = [
                self._run(way, [row for group in groups for row in group.rows], like)
                for way, groups in groupby(self._groups, lambda group: group.way(like, top))
            ]
        return self._runs[key]

    def _run(self, way: Way, rows: Sequence[Row], like: Expansion) -> _Run:
        tokens = sum(len(row.tokens) for row in rows)
        if way == "absorbed":
            return _Absorbed(tokens, self._absorbed(rows))
        if way == "chosen":
            return _Chosen(tokens, self._pool, rows)
        each = like.heads * (like.nope + like.rope + like.value_dim)
        most_keys = max(_MOST_EXPANDED // each, 1)
        return _Expanded(tokens, self._pool, rows, self._min_shared, most_keys)


class _Absorbed:
    """Attention of rows in the absorbed form: queries are multiplied into the space of latents."""

    def __init__(self, tokens: int, chunks: AnyChunks) -> None:
        self.tokens = tokens
        self._chunks = chunks

    def attend(self, inputs: LatentInputs) -> mx.array:
        layer, queries, entries, options, _ = inputs
        expansion = queries.expansion
        self._chunks.store(layer, entries, entries[..., : expansion.rank])
        return expansion.project(self._chunks.attend(layer, queries.absorbed, options))


class _Expanded:
    """Attention of rows in the expanded form: entries become keys and values of every head."""

    def __init__(
        self, tokens: int, pool: KVPool, rows: Sequence[Row], min_shared: int, most_keys: int
    ) -> None:
        self.tokens = tokens
        self._pool = _ExpandedPool(pool)
        self._chunks = Chunks(self._pool, rows, min_shared, most_keys)

    def attend(self, inputs: LatentInputs) -> mx.array:
        layer, queries, entries, options, _ = inputs
        self._pool.expansion = queries.expansion
        self._chunks.store(layer, *queries.expansion.expand(entries))
        return self._chunks.attend(layer, queries.by_head, options)


class _Chosen:
    """Sparse attention of rows, some of which have more tokens than the indexer chooses."""

    def __init__(self, tokens: int, pool: KVPool, rows: Sequence[Row]) -> None:
        self.tokens = tokens
        self._chunks = ChosenChunks(pool, rows)

    def attend(self, inputs: LatentInputs) -> mx.array:
        layer, queries, entries, options, index_keys = inputs
        assert index_keys is not None, "queries with a choice come with keys for it"
        return self._chunks.attend(layer, queries, (entries, index_keys), options)


_Run = _Absorbed | _Expanded | _Chosen


class _ExpandedPool:
    """A stand-in for the KV pool: it gathers keys and values of every head.

    They are computed by `expansion` from the latent entries in the pool.
    """

    def __init__(self, pool: KVPool) -> None:
        self.layers, self.windowed = pool.layers, pool.windowed
        self.expansion: Expansion | None = None
        self._pool = pool

    def gather(self, layer: int, index: SlotIndex) -> tuple[mx.array, mx.array]:
        assert self.expansion is not None, "set by `_Expanded.attend`"
        return self.expansion.expand(self._pool.gather(layer, index)[0])


@dataclass(frozen=True)
class _Group:
    """Neighbouring rows that share stretches of prefix and therefore attend in the same way.

    Attributes:
        pairs: number of query-key pairs of all the rows.
        keys: number of prefix keys; a shared key counts once.
    """

    rows: Sequence[Row]
    pairs: float
    keys: int

    def way(self, expansion: Expansion, top: int | None) -> Way:
        """Choose how to attend; `top` is the most tokens that a query attends to, None for all."""
        if top is not None and any(len(r.prefix) + len(r.tokens) > top for r in self.rows):
            return "chosen"
        return "expanded" if self.expands(expansion) else "absorbed"

    def expands(self, expansion: Expansion) -> bool:
        """Return True if expanding the prefix computes less than absorbing the queries."""
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
