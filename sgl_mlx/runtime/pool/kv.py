"""The KV pool: for each layer one array of keys and one of values, indexed by slot.

MLX writes `pool[slots] = kv` in place only while nothing else refers to the buffer. So the pool is
written only after every computation that reads it has been evaluated. Until then new KV is kept in
small separate arrays (`runner`). Slot 0 is for padding: it stays zero and is never given out.

Layers with a sliding window may have fewer slots than the other layers, with numbers of their own
(`windowed`).

With `kv_bits=8` an element x is stored as an int8 q with a float16 scale for each token and head:
x ~ q * scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from sgl_mlx.metal_kernels.pool import PoolLayer, dequantize, quantize
from sgl_mlx.models.adapter import LayerShape


class NewKV(NamedTuple):
    """Keys and values to be written to a pool.

    Attributes:
        slots: the slot of each token.
        keys, values: one array `(len(slots), heads, dim)` for each layer.
        window_slots: the slot of each token in layers that are `windowed`, 0 for none; empty if
            there are no such layers.
    """

    slots: Sequence[int]
    keys: list[mx.array]
    values: list[mx.array]
    window_slots: Sequence[int] = ()


def windowed(layers: Sequence[LayerShape]) -> frozenset[int]:
    """Return which layers can have slots of their own, because they read only a sliding window.

    There are none unless other layers attend to all tokens. A model with latents or indexers has
    none either: their attention is not divided by kinds of layers.
    """
    found = frozenset(i for i, x in enumerate(layers) if (x.window or 0) > 1)
    sparse = any(x.values_in_keys or x.top_keys for x in layers)
    mixed = any(x.window is None for x in layers)
    return found if mixed and not sparse else frozenset()


class KVPool:
    """The keys `(slots + 1, heads, key_dim)` and values `(slots + 1, heads, value_dim)` by layer.

    A layer whose values are columns of its keys (`LayerShape.values_in_keys`) stores keys alone.

    Args:
        slots: number of slots, without the padding slot 0.
        dtype: type of keys and values as they are written and read.
        kv_bits: None stores them in `dtype`; 8 stores int8 with scales.
        window_slots: number of slots of layers with a sliding window; None if all layers have the
            same slots.

    Attributes:
        windowed: the layers that have `window_slots`; empty if all layers have the same slots.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        slots: int,
        dtype: mx.Dtype,
        kv_bits: int | None = None,
        window_slots: int | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.slots = slots
        self.window_slots = window_slots or 0
        self.dtype = dtype
        self.windowed = frozenset[int]() if window_slots is None else windowed(layers)
        own = [self.window_slots if i in self.windowed else slots for i in range(len(layers))]
        sized = list(zip(own, layers, strict=True))
        self.keys = [Slots((n + 1, x.heads, x.key_dim), dtype, kv_bits) for n, x in sized]
        self.values = [Slots((n + 1, x.heads, _own_width(x)), dtype, kv_bits) for n, x in sized]
        self._evaluate()

    @staticmethod
    def bytes_per_slot(
        layers: Sequence[LayerShape], dtype: mx.Dtype, kv_bits: int | None = None
    ) -> int:
        """Return the bytes of one slot in all layers together."""
        one = Slots.bytes_per_head
        return sum(
            x.heads * (one(x.key_dim, dtype, kv_bits) + one(_own_width(x), dtype, kv_bits))
            for x in layers
        )

    def grow(self, slots: int) -> None:
        """Enlarge the pool to `slots`, unless it is larger; the conditions of `write` apply."""
        if slots > self.slots:
            self.slots = slots
            self._grow(slots, [i for i in range(len(self.layers)) if i not in self.windowed])

    def grow_windows(self, slots: int) -> None:
        """Enlarge the number of window slots to `slots`, unless it is larger; see `grow`."""
        if slots > self.window_slots:
            self.window_slots = slots
            self._grow(slots, sorted(self.windowed))

    def _grow(self, slots: int, layers: Sequence[int]) -> None:
        for x in (kind[i] for kind in (self.keys, self.values) for i in layers):
            x.grow(slots)
            mx.eval(x.arrays())

    def only(self, layer: int) -> KVPool:
        """Return one layer as a pool of its own, with the same slots and the same arrays."""
        found = KVPool((), self.slots, self.dtype)
        found.layers = (self.layers[layer],)
        found.keys, found.values = [self.keys[layer]], [self.values[layer]]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for x in (*self.keys, *self.values) for array in x.arrays())

    def layer(self, index: int) -> PoolLayer:
        """Return one layer's arrays for kernels; do not keep them, or `write` copies the pool."""
        keys = self.keys[index]
        values = keys if self.layers[index].values_in_keys else self.values[index]
        return PoolLayer(keys.data, values.data, keys.scales, values.scales)

    def gather(self, layer: int, index: SlotIndex) -> tuple[mx.array, mx.array]:
        """Return copies of one layer's keys and values at these slots, `(slots, heads, dim)`."""
        keys, shape = self.keys[layer].read(index), self.layers[layer]
        if shape.values_in_keys:
            return keys, keys[..., : shape.value_dim]
        return keys, self.values[layer].read(index)

    def gather_seen(self, prefix: Sequence[int]) -> list[tuple[mx.array, mx.array]]:
        """Gather every layer's keys and values that a token after the prefix sees, oldest first.

        Args:
            prefix: slots of the prefix, which serve all layers; at least one.
        """
        windows = [layer.window for layer in self.layers]
        last = {w: len(prefix) if w is None else max(w - 1, 1) for w in windows}
        index = {w: SlotIndex(prefix[-n:]) for w, n in last.items()}
        return [self.gather(i, index[w]) for i, w in enumerate(windows)]

    def write(
        self,
        slots: Sequence[int],
        keys: list[mx.array],
        values: list[mx.array],
        window_slots: Sequence[int] = (),
    ) -> None:
        """Write evaluated keys and values; the arguments are those of `NewKV`.

        Call it only when no unevaluated array refers to the pool; otherwise MLX copies the pool.
        """
        if not slots:
            return
        index = SlotIndex(slots)
        for layer in range(len(self.layers)):
            if layer not in self.windowed:
                self._write(layer, index, keys[layer], values[layer])
        kept = [i for i, slot in enumerate(window_slots) if slot]
        if kept:
            index = SlotIndex([window_slots[i] for i in kept])
            picked = None if len(kept) == len(slots) else mx.array(kept, mx.int32)
            for layer in self.windowed:
                new = keys[layer], values[layer]
                self._write(layer, index, *(x if picked is None else x[picked] for x in new))
        self._evaluate()

    def _write(self, layer: int, index: SlotIndex, keys: mx.array, values: mx.array) -> None:
        self.keys[layer].write(index, keys)
        if not self.layers[layer].values_in_keys:
            self.values[layer].write(index, values)

    def _evaluate(self) -> None:
        mx.eval([array for x in (*self.keys, *self.values) for array in x.arrays()])


class Slots:
    """The keys or the values of one layer, by slot.

    Attributes:
        dtype: type of the arrays written and read.
        data: `(slots + 1, heads, dim)` in `dtype`, or in int8 if there are `scales`.
        scales: float16 `(slots + 1, heads)` for 8 bits, else None; None if `dim` is 0.
        tokens_read: number of tokens read so far; a token read twice counts twice.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: mx.Dtype, kv_bits: int | None) -> None:
        self.dtype = dtype
        quantized = kv_bits is not None and shape[-1] > 0
        self.data = mx.zeros(shape, mx.int8 if quantized else dtype)
        self.scales = mx.zeros(shape[:2], mx.float16) if quantized else None
        self.tokens_read = 0

    @staticmethod
    def bytes_per_head(dim: int, dtype: mx.Dtype, kv_bits: int | None) -> int:
        if kv_bits is None or not dim:
            return dim * int(dtype.size)
        return dim * int(mx.int8.size) + int(mx.float16.size)

    def arrays(self) -> list[mx.array]:
        return [self.data] if self.scales is None else [self.data, self.scales]

    def grow(self, slots: int) -> None:
        """Enlarge to `slots` slots; the new ones are zero."""
        self.data = _with_zeros(self.data, slots + 1)
        if self.scales is not None:
            self.scales = _with_zeros(self.scales, slots + 1)

    def read(self, index: SlotIndex) -> mx.array:
        where = index.where
        self.tokens_read += index.count
        if self.scales is None:
            return self.data[where]
        return dequantize(self.data[where], self.scales[where], self.dtype)

    def write(self, index: SlotIndex, new: mx.array) -> None:
        if not new.shape[-1]:  # width 0: an indexer's cache has keys only
            return
        if self.scales is None:
            self.data[index.where] = new
        else:
            self.data[index.where], self.scales[index.where] = quantize(new)


def _own_width(shape: LayerShape) -> int:
    """Return the width of a head's stored values; 0 if the values are columns of the keys."""
    return 0 if shape.values_in_keys else shape.value_dim


def _with_zeros(array: mx.array, length: int) -> mx.array:
    missing = mx.zeros((length - len(array), *array.shape[1:]), array.dtype)
    return mx.concatenate([array, missing])


class SlotIndex:
    """The slots to read or write at once.

    Attributes:
        where: index into the first axis of a pool's arrays: a slice if the slots are one ascending
            run, which needs no gather; else an int32 array.
        run: the first slot of that run, and the one after its last; None if there is no such run.
        count: number of slots.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        first, count = slots[0], len(slots)
        self.count = count
        consecutive = slots[-1] - first == count - 1 and list(slots) == list(
            range(first, first + count)
        )
        self.run = (first, first + count) if consecutive else None
        self.where = slice(first, first + count) if consecutive else mx.array(list(slots), mx.int32)
