"""Attention of a step by our kernels, for Metal or for the CPU: keys are read inside the pool.

`KernelEpoch` does the work of `decode.Epoch` and `KernelChunks` that of `prefill.Chunks`, for rows
the kernels can take (`rows_fit`). Nothing is gathered when an epoch opens, and rows of any length
mix without padding.

It is decided layer by layer: those whose head dims the kernels do not take, whose kernel failed its
self-test, or for which something else is faster are attended in plain MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import mlx.core as mx

from sgl_mlx.cpu_kernels import attention as cpu_attention
from sgl_mlx.cpu_kernels.attention import CpuAttention
from sgl_mlx.metal_kernels.dispatch import CutOvers
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import DecodePlan, ExtendPlan, ExtendRow, SharedSpan
from sgl_mlx.metal_kernels.pool import AttentionOptions
from sgl_mlx.metal_kernels.shapes import DTYPES, WIDTHS
from sgl_mlx.metal_kernels.tested import TestedKernels
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.spans import shared_spans
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.scheduler.plan import Row

Kernels = TestedKernels | CpuAttention


def pool_fits(pool: KVPool, kernels: Kernels) -> bool:
    """True if the kernels can read this pool: every layer on a CPU, one or more on Metal."""
    if isinstance(kernels, CpuAttention):
        return all(cpu_attention.fits(x.key_dim, x.value_dim, pool.dtype) for x in pool.layers)
    return pool.dtype in DTYPES and any((x.key_dim, x.value_dim) in WIDTHS for x in pool.layers)


def rows_fit(rows: Sequence[Row]) -> bool:
    """True if every key's index is its position, as the kernels assume: no gaps, no branches."""
    return all(row.prefix_positions is None for row in rows)


class KernelEpoch:
    """A decode epoch with the attributes and calls of `decode.Epoch`.

    `keys` and `values` are the tails `(rows, width, kv_heads, dim)` by layer.

    Args:
        layers: those that the kernels may take.
        cut_overs: choose into which chunks keys are cut.
        plain: opens the epoch in plain MLX that attends the other layers.
    """

    def __init__(
        self,
        pool: KVPool,
        rows: Sequence[Row],
        width: int,
        kernels: Kernels,
        layers: Container[int],
        cut_overs: CutOvers,
        plain: Callable[[], Epoch],
    ) -> None:
        self.ids = [row.id for row in rows]
        self.rows = rows
        self.width = width
        self.steps = 0
        self._pool, self._kernels = pool, kernels
        self._first_positions = mx.array([row.position for row in rows], mx.int32)
        spans, private = shared_spans(rows)
        keys = sum(len(row.prefix) for row in rows)  # shared ones are read by as many tiles
        self._plan = DecodePlan(
            [row.prefix[start:] for row, start in zip(rows, private, strict=True)],
            [SharedSpan(s.first, s.last, s.start, s.slots) for s in spans],
            width=width,
            chunk=cut_overs.chunk(keys, min(x.heads for x in pool.layers)),
        )
        shape = len(rows), width
        self.keys = [mx.zeros((*shape, x.heads, x.key_dim), pool.dtype) for x in pool.layers]
        self.values = [mx.zeros((*shape, x.heads, x.value_dim), pool.dtype) for x in pool.layers]
        self._layers, self._open_plain = layers, plain
        self._plain: Epoch | None = None
        self._in_plain: set[int] = set()
        self._taken: set[tuple[object, ...]] = set()

    def begin_step(self) -> mx.array:
        """Begin the next step; returns the positions `(rows,)` of its tokens."""
        self.steps += 1
        if self._plain is not None:
            self._plain.begin_step()
        return self._first_positions + (self.steps - 1)

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """See `models.layer_cache.Attention`; takes one token a row."""
        self.keys[layer][:, self.steps - 1] = keys
        self.values[layer][:, self.steps - 1] = values
        if self._plain is not None and layer in self._in_plain:
            self._plain.store(layer, keys, values)

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """See `models.layer_cache.Attention`; takes one token a row."""
        if self._plain is None or layer not in self._in_plain:
            tail = self.keys[layer], self.values[layer], self.steps
            inputs = DecodeInputs(queries, *tail, self._pool.layer(layer), self._plan, options)
            case = layer, queries.shape[1], options.window, options.softcap, options.sinks is None
            if case in self._taken or (layer in self._layers and self._kernels.takes(inputs)):
                self._taken.add(case)
                return self._kernels.decode(inputs)
            self._leave(layer)
        assert self._plain is not None
        return self._plain.attend(layer, queries, options)

    def _leave(self, layer: int) -> None:
        """Attend a layer in plain MLX from its first step on."""
        assert self.steps == 1, "a kernel's verdict changed in the middle of an epoch"
        if self._plain is None:
            self._plain = self._open_plain()
            self._plain.begin_step()
        self._in_plain.add(layer)
        self._plain.store(layer, self.keys[layer][:, 0], self.values[layer][:, 0])

    def arrays(self) -> list[mx.array]:
        """Return all that steps write."""
        return [*self.keys, *self.values]

    def tail(self) -> tuple[list[int], list[mx.array], list[mx.array]]:
        """Return slots, keys and values `(tokens, heads, dim)` by layer to write to the pool."""
        where = [
            (i * self.width + step, slot)
            for i, row in enumerate(self.rows)
            for step, slot in enumerate(row.slots[: self.steps])
        ]
        picked = mx.array([i for i, _ in where], mx.int32)
        keys, values = ([x.flatten(0, 1)[picked] for x in xs] for xs in (self.keys, self.values))
        return [slot for _, slot in where], keys, values


class KernelChunks:
    """Rows of several new tokens each; see `prefill.Chunks`.

    Args:
        layers: those that the kernels may take.
        plain: makes the attention in plain MLX of the other layers.
    """

    def __init__(
        self,
        pool: KVPool,
        rows: Sequence[Row],
        kernels: Kernels,
        layers: Container[int],
        plain: Callable[[], Chunks | SdpaChunks],
    ) -> None:
        self._pool, self._kernels = pool, kernels
        self._plan = ExtendPlan([ExtendRow(row.prefix, len(row.tokens)) for row in rows])
        self._stored: dict[int, tuple[mx.array, mx.array]] = {}
        self._layers, self._make_plain = layers, plain
        self._plain: Chunks | SdpaChunks | None = None

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """See `models.layer_cache.Attention`."""
        self._stored[layer] = keys, values

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """See `models.layer_cache.Attention`."""
        new = self._stored[layer]
        inputs = ExtendInputs(queries, *new, self._pool.layer(layer), self._plan, options)
        if layer in self._layers and self._kernels.takes(inputs):
            return self._kernels.extend(inputs)
        if self._plain is None:
            self._plain = self._make_plain()
        self._plain.store(layer, *new)
        return self._plain.attend(layer, queries, options)
