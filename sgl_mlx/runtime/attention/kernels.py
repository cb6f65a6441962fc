"""Attention of a step by our kernels, for Metal or the CPU, which read keys inside the KV pool.

`KernelEpoch` replaces `decode.Epoch` (a run of decode steps), and `KernelChunks` replaces
`prefill.Chunks` (new tokens of prompts), for sequences that the kernels support (`rows_fit`).
Prefixes are not copied when an epoch opens, and sequences of any length are mixed without padding.

The choice is made for each layer. A layer is attended by MLX instead if the kernels do not support
its head dims, if its kernel failed the self-test, or if something else is faster.
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
from sgl_mlx.models.layer_cache import Attention
from sgl_mlx.runtime.attention.decode import Epoch
from sgl_mlx.runtime.attention.prefill import Chunks
from sgl_mlx.runtime.attention.sdpa import SdpaChunks
from sgl_mlx.runtime.attention.spans import shared_spans, windowed
from sgl_mlx.runtime.pool.kv import KVPool, NewKV
from sgl_mlx.runtime.scheduler.plan import Row

Kernels = TestedKernels | CpuAttention

DecodeCall = Callable[[DecodeInputs], mx.array]
"""Attention of one layer in every step of an epoch, prepared from the first step's inputs."""


def pool_fits(pool: KVPool, kernels: Kernels) -> bool:
    """Return True if the kernels can read this pool.

    The CPU kernels must support every layer; the Metal kernels must support at least one layer.
    """
    if isinstance(kernels, CpuAttention):
        return all(cpu_attention.fits(x.key_dim, x.value_dim, pool.dtype) for x in pool.layers)
    return pool.dtype in DTYPES and any((x.key_dim, x.value_dim) in WIDTHS for x in pool.layers)


def rows_fit(rows: Sequence[Row]) -> bool:
    """Return True if every row's prefix has the positions 0, 1, 2 …, as the kernels assume."""
    return all(row.prefix_positions is None for row in rows)


def _kinds(pool: KVPool) -> tuple[bool, ...]:
    """List the kinds of layers: `(False,)`; or `(False, True)` if some have slots of their own."""
    return (False, True) if pool.windowed else (False,)


class KernelEpoch(Attention):
    """Decode epoch that our kernels compute, used like `decode.Epoch` but for one epoch only.

    `keys` and `values` hold the new tokens' KV: for each layer `(rows, width, kv_heads, dim)`.

    Args:
        layers: the layers for which the kernels may be used.
        cut_overs: decide how many keys one chunk of a kernel holds.
        plain: opens an epoch in plain MLX, for layers that the kernels do not attend.
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
        keys = sum(len(row.prefix) for row in rows)  # shared keys count for each row
        chunk = cut_overs.chunk(keys, min(x.heads for x in pool.layers))

        def plan(own: bool) -> DecodePlan:
            mine = [windowed(span, rows) for span in spans] if own else spans
            return DecodePlan(
                [row.keys(own)[start:] for row, start in zip(rows, private, strict=True)],
                [SharedSpan(s.first, s.last, s.start, s.slots) for s in mine],
                width=width,
                chunk=chunk,
            )

        self._plans = {own: plan(own) for own in _kinds(pool)}
        shape = len(rows), width
        self.keys = [mx.zeros((*shape, x.heads, x.key_dim), pool.dtype) for x in pool.layers]
        self.values = [mx.zeros((*shape, x.heads, x.value_dim), pool.dtype) for x in pool.layers]
        self._layers, self._open_plain = layers, plain
        self._plain: Epoch | None = None
        self._in_plain: set[int] = set()
        self._calls: dict[tuple[object, ...], DecodeCall] = {}

    def begin_step(self) -> mx.array:
        """Begin the next step; returns the positions `(rows,)` of its new tokens."""
        self.steps += 1
        if self._plain is not None:
            self._plain.begin_step()
        return self._first_positions + (self.steps - 1)

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store a layer's new keys and values `(rows, kv_heads, dim)`, one token per row."""
        self.keys[layer][:, self.steps - 1] = keys
        self.values[layer][:, self.steps - 1] = values
        if self._plain is not None and layer in self._in_plain:
            self._plain.store(layer, keys, values)

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend a layer's queries `(rows, heads, dim)`, one token per row.

        Returns `(rows, heads, value_dim)`.
        """
        if layer not in self._in_plain:
            tail = self.keys[layer], self.values[layer], self.steps
            plan = self._plans[layer in self._pool.windowed]
            inputs = DecodeInputs(queries, *tail, self._pool.layer(layer), plan, options)
            call = self._call(layer, inputs)
            if call is not None:
                return call(inputs)
            self._leave(layer)
        assert self._plain is not None
        return self._plain.attend(layer, queries, options)

    def _call(self, layer: int, inputs: DecodeInputs) -> DecodeCall | None:
        """Return the kernels' attention of a layer, for every step; None if MLX must attend it."""
        scale, window, softcap, sinks = inputs.options
        case = layer, inputs.q.shape[1], scale, window, softcap, sinks is None
        if case not in self._calls and layer in self._layers and self._kernels.takes(inputs):
            self._calls[case] = self._kernels.decoder(inputs)
        return self._calls.get(case)

    def _leave(self, layer: int) -> None:
        """Switch a layer to plain MLX for the whole epoch; call this only in the first step."""
        assert self.steps == 1, "a kernel's verdict changed in the middle of an epoch"
        if self._plain is None:
            self._plain = self._open_plain()
            self._plain.begin_step()
        self._in_plain.add(layer)
        self._plain.store(layer, self.keys[layer][:, 0], self.values[layer][:, 0])

    def arrays(self) -> list[mx.array]:
        """Return the arrays that steps write to: the new keys and values of every layer."""
        return [*self.keys, *self.values]

    def tail(self) -> NewKV:
        """Return the KV of the steps so far, to be written to the pool."""
        where = [
            (i * self.width + step, slot)
            for i, row in enumerate(self.rows)
            for step, slot in enumerate(row.slots[: self.steps])
        ]
        picked = mx.array([i for i, _ in where], mx.int32)
        keys, values = ([x.flatten(0, 1)[picked] for x in xs] for xs in (self.keys, self.values))
        window: list[int] = []
        if self._pool.windowed:
            window = [slot for row in self.rows for slot in row.window_slots()[: self.steps]]
        return NewKV([slot for _, slot in where], keys, values, window)


class KernelChunks:
    """Attention of prefill chunks by our kernels; same interface as `prefill.Chunks`.

    Args:
        layers: the layers for which the kernels may be used.
        plain: makes the attention by MLX, for layers that the kernels do not attend.
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
        self._plans = {
            own: ExtendPlan([ExtendRow(row.keys(own), len(row.tokens)) for row in rows])
            for own in _kinds(pool)
        }
        self._stored: dict[int, tuple[mx.array, mx.array]] = {}
        self._layers, self._make_plain = layers, plain
        self._plain: Chunks | SdpaChunks | None = None

    def store(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store a layer's new keys and values `(tokens, kv_heads, dim)`, before `attend`."""
        self._stored[layer] = keys, values

    def attend(self, layer: int, queries: mx.array, options: AttentionOptions) -> mx.array:
        """Attend a layer's queries `(tokens, heads, dim)`; returns `(tokens, heads, value_dim)`."""
        new = self._stored[layer]
        plan = self._plans[layer in self._pool.windowed]
        inputs = ExtendInputs(queries, *new, self._pool.layer(layer), plan, options)
        if layer in self._layers and self._kernels.takes(inputs):
            return self._kernels.extend(inputs)
        if self._plain is None:
            self._plain = self._make_plain()
        self._plain.store(layer, *new)
        return self._plain.attend(layer, queries, options)
