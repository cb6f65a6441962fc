"""Attention of an `Extend` step, which mixes prefill chunks and single decode tokens.

Single tokens are attended as a decode epoch of one step, chunks by extend attention.
`select.AttentionPaths` chooses the implementation for the single tokens and for the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.models.block_choice import BlockChoice
from sgl_mlx.models.latents import LatentQueries
from sgl_mlx.models.layer_cache import Attention
from sgl_mlx.runtime.attention.chosen_blocks import BlockChunks
from sgl_mlx.runtime.attention.kernels import KernelChunks
from sgl_mlx.runtime.attention.latent import LatentChunks, LatentInputs
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.select import AttentionPaths, DecodeEpoch
from sgl_mlx.runtime.pool.kv import NewKV
from sgl_mlx.runtime.scheduler.plan import Row


class ExtendStep(Attention):
    """Attention of the new tokens of all sequences (rows) in one step.

    Args:
        rows: rows with a single new token first, as `runner.arrange` sorts them.

    Attributes:
        tokens, positions: ids and positions of the new tokens, one row after another.
    """

    def __init__(self, paths: AttentionPaths, rows: Sequence[Row]) -> None:
        self._layers = paths.pool.layers
        self._stored: dict[int, tuple[mx.array, mx.array]] = {}
        self.tokens = mx.array([t for row in rows for t in row.tokens], mx.int32)
        self.positions = mx.array(
            [p for row in rows for p in range(row.position, row.position + len(row.tokens))],
            mx.int32,
        )
        self._paths, self._rows = paths, rows
        self._singles = sum(len(row.tokens) == 1 for row in rows)

    @cached_property
    def _decoding(self) -> DecodeEpoch | None:
        """Attention of single tokens, made at the first use; None if there are no single tokens."""
        if not self._singles:
            return None
        decoding = self._paths.epoch(self._rows[: self._singles], 1)
        decoding.begin_step()
        return decoding

    @cached_property
    def _chunks(self) -> Chunks | SdpaChunks | KernelChunks | None:
        """Attention of chunks, made at the first use; None if there are no chunks."""
        chunks = self._rows[self._singles :]
        return self._paths.chunks(chunks) if chunks else None

    @cached_property
    def _latent_chunks(self) -> LatentChunks | None:
        """Attention of chunks over latents, made at the first use; None if there are no chunks."""
        chunks = self._rows[self._singles :]
        return self._paths.latent_chunks(chunks) if chunks else None

    def made(self) -> NewKV:
        """Return the keys and values that the forward pass stored, in the order of the layers."""
        rows, every = self._rows, sorted(self._stored)
        slots = [slot for row in rows for slot in row.slots[: len(row.tokens)]]
        window: list[int] = []
        if self._paths.pool.windowed:
            window = [slot for row in rows for slot in row.window_slots()[: len(row.tokens)]]
        keys, values = ([self._stored[layer][i] for layer in every] for i in (0, 1))
        return NewKV(slots, keys, values, window)

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store a layer's new keys and values `(tokens, kv_heads, dim)`, before `attend`."""
        self._stored[layer] = keys, values
        n = self._singles
        if self._decoding is not None:
            self._decoding.store(layer, keys[:n], values[:n])
        if not self._layers[layer].values_in_keys and self._chunks is not None:
            self._chunks.store(layer, keys[n:], values[n:])

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend a layer's queries `(tokens, heads, dim)`; returns `(tokens, heads, value_dim)`."""
        n = self._singles
        outs = []
        if self._decoding is not None:
            outs.append(self._decoding.attend(layer, queries[:n], options))
        if self._chunks is not None:
            outs.append(self._chunks.attend(layer, queries[n:], options))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)

    def attend_latents(
        self, layer: int, queries: LatentQueries, options: AttentionOptions
    ) -> mx.array:
        """Attend an MLA layer's queries to its latents; returns `(tokens, heads, value_dim)`."""
        n, choice = self._singles, queries.choice
        outs = []
        if self._decoding is not None:
            outs.append(self._decoding.attend_latents(layer, queries.of(slice(n)), options))
        if self._latent_chunks is not None:
            entries, _ = self._stored[layer]
            keys = None if choice is None else self._stored[choice.layer][0]
            inputs = LatentInputs(layer, queries, entries, options, keys)
            outs.append(self._latent_chunks.attend(inputs.of(slice(n, None))))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)

    def attend_blocks(
        self, layer: int, queries: mx.array, options: AttentionOptions, choice: BlockChoice
    ) -> mx.array:
        """Attend to the blocks that `choice` chooses; short sequences attend to all blocks."""
        n = self._singles
        chunks = self._rows[n:]
        outs = []
        if self._decoding is not None:
            mine = choice.of(slice(n))
            outs.append(self._decoding.attend_blocks(layer, queries[:n], options, mine))
        if any(len(row.prefix) + len(row.tokens) > choice.most_tokens for row in chunks):
            new = (*self._stored[layer], self._stored[choice.layer][0])
            keys, values, index_keys = (x[n:] for x in new)
            mine = choice.of(slice(n, None))
            blocks = BlockChunks(self._paths.pool, chunks)
            news = keys, values, index_keys
            outs.append(blocks.attend(layer, queries[n:], news, options, mine))
        elif self._chunks is not None:
            outs.append(self._chunks.attend(layer, queries[n:], options))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)
