"""The KV pool: one array of keys and one of values a layer, indexed by slot.

MLX arrays are values: `pool[slots] = kv` happens in place only while nothing else refers to the
buffer. So the pool is written at synchronisation points alone, after everything that reads it has
been evaluated; in between, new KV lives in small arrays of its own (`runner`). Slot 0 is padding:
always zero, never handed out.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sgl_mlx.models.adapter import LayerShape


class KVPool:
    """Keys `(slots + 1, heads, key_dim)` and values `(slots + 1, heads, value_dim)` by layer."""

    def __init__(self, layers: Sequence[LayerShape], slots: int, dtype: mx.Dtype) -> None:
        self.layers = tuple(layers)
        self.slots = slots
        self.keys = [mx.zeros((slots + 1, x.heads, x.key_dim), dtype) for x in layers]
        self.values = [mx.zeros((slots + 1, x.heads, x.value_dim), dtype) for x in layers]
        mx.eval(self.keys, self.values)

    @staticmethod
    def bytes_per_slot(layers: Sequence[LayerShape], dtype: mx.Dtype) -> int:
        return sum(x.heads * (x.key_dim + x.value_dim) for x in layers) * int(dtype.size)

    def gather(self, layer: int, index: SlotIndex) -> tuple[mx.array, mx.array]:
        """Keys and values `(*index.shape, heads, dim)` of one layer."""
        if index.run is not None:
            start, end = index.run
            return self.keys[layer][start:end], self.values[layer][start:end]
        return self.keys[layer][index.array], self.values[layer][index.array]

    def write(self, slots: Sequence[int], keys: list[mx.array], values: list[mx.array]) -> None:
        """Store evaluated KV `(len(slots), heads, dim)` of every layer.

        Call it when no unevaluated array refers to the pool, or the pool is copied.
        """
        if not slots:
            return
        index = SlotIndex(slots)
        where = slice(*index.run) if index.run is not None else index.array
        for layer, shape in enumerate(self.layers):
            self.keys[layer][where] = keys[layer]
            if shape.value_dim:  # an indexer's cache has keys alone
                self.values[layer][where] = values[layer]
        mx.eval(self.keys, self.values)


class SlotIndex:
    """Slots to read or write; one ascending run needs no gather."""

    def __init__(self, slots: Sequence[int]) -> None:
        first, count = slots[0], len(slots)
        consecutive = slots[-1] - first == count - 1 and list(slots) == list(
            range(first, first + count)
        )
        self.run = (first, first + count) if consecutive else None
        self.array = mx.array(list(slots), mx.int32)
