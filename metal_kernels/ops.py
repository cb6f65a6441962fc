"""Attention over the KV pool by the Metal kernels; `reference` has the same functions in MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from sgl_mlx.metal_kernels.build import Kernels, Launch
from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.plan import MIN_ELEMENTS, DecodePlan, tile_rows
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer
from sgl_mlx.metal_kernels.shapes import Shapes, check_decode, check_extend

SIMD = 32
TILE_THREADS = 128


def widest_block(dim: int, value_dim: int) -> int:
    """Return the most query vectors that a simdgroup of `decode_attention` holds in registers.

    For every 128 dimensions, a lane holds 4 floats of each query, of its sums, and of the keys and
    values fetched ahead: at most 108 of its 128 registers.
    """
    return 4 if dim + value_dim <= 512 else 2


def extend_attention(inputs: ExtendInputs, kernels: Kernels) -> mx.array:
    """Attend new tokens to their sequence's prefix in the pool and, causally, to each other.

    Returns:
        `(T, Hq, V)` in the dtype of `q`.

    Raises:
        ValueError: a shape or dtype is wrong; the message names every dimension.
    """
    q, keys, values, pool, plan, options = inputs
    shapes = check_extend(inputs)
    tiles, count = plan.tiles(shapes["Hq"] // shapes["Hkv"], tile_rows(shapes["D"], shapes["V"]))
    (out,) = kernels.launch(
        "extend_attention",
        {
            **{"q": q, "new_keys": keys, "new_values": values},
            **_pool_inputs(pool, kernels),
            **{"slots": plan.slots, "rows": plan.table, "tiles": tiles},
            **{"reals": _reals(options), "sinks": _sinks(options, q.dtype, kernels)},
        },
        output_shapes=[(*q.shape[:2], shapes["V"])],
        output_dtypes=[q.dtype],
        grid=(TILE_THREADS, count, shapes["Hkv"]),
        threadgroup=(TILE_THREADS, 1, 1),
        template=[*_template(shapes, q, pool, options), ("SINKS", options.sinks is not None)],
    )
    return out


def decode_attention(inputs: DecodeInputs, kernels: Kernels) -> mx.array:
    """Attend the new tokens of each sequence to all keys of the sequence up to themselves.

    Returns:
        `(rows * tokens, Hq, V)` in the dtype of `q`.

    Raises:
        ValueError: a shape or dtype is wrong; the message names every dimension.
    """
    return DecodeCall(inputs, kernels)(inputs)


class DecodeCall:
    """Decode attention of one layer for all steps of a plan, with the common inputs prepared once.

    The kernels `decode_attention` and `shared_attention` compute partial softmaxes, and
    `merge_partials` merges them.

    Args:
        inputs: the inputs of one step. The inputs of other steps may differ only in the contents of
            arrays and in `tail_length`.

    Raises:
        ValueError: a shape or dtype is wrong; the message names every dimension.
    """

    def __init__(self, inputs: DecodeInputs, kernels: Kernels) -> None:
        self._kernels = kernels
        self._plan = inputs.plan
        shapes = check_decode(inputs)
        self._own = self._prepare_own(inputs, shapes)
        self._shared = self._prepare_shared(inputs, shapes) if self._plan.spans else None
        self._merge = self._prepare_merge(inputs, shapes)

    def __call__(self, inputs: DecodeInputs) -> mx.array:
        """Attend one step; returns `(rows * tokens, Hq, V)` in the dtype of `q`."""
        q, tail_keys, tail_values, tail_length, pool, _, options = inputs
        ints = self._plan.step_table(tail_length)
        step = {"q": q, "ints": ints, **_pool_inputs(pool, self._kernels)}
        own = self._own(tail_keys=tail_keys, tail_values=tail_values, **step)
        shared = own if self._shared is None else self._shared(**step)
        (out,) = self._merge(
            **dict(zip(("own_out", "own_peaks", "own_masses"), own, strict=True)),
            **dict(zip(("shared_out", "shared_peaks", "shared_masses"), shared, strict=True)),
            **{"ints": ints, "sinks": _sinks(options, q.dtype, self._kernels)},
        )
        return out

    def _prepare_own(self, inputs: DecodeInputs, shapes: Shapes) -> Launch:
        count = self._plan.item_count
        vectors = self._plan.tokens * shapes["Hq"] // shapes["Hkv"]
        blocks = -(-vectors // widest_block(shapes["D"], shapes["V"]))
        template = _template(shapes, inputs.q, inputs.pool, inputs.options)
        return self._kernels.prepare(
            "decode_attention",
            {**self._tables(inputs.options), "items": self._plan.items},
            **_partial_outputs(count, self._plan, shapes),
            grid=(SIMD, count, shapes["Hkv"] * blocks),
            threadgroup=(SIMD, min(4, count), 1),
            template=[*template, ("Q_BLOCK", -(-vectors // blocks))],
        )

    def _prepare_shared(self, inputs: DecodeInputs, shapes: Shapes) -> Launch:
        rows = tile_rows(shapes["D"], shapes["V"])
        tiles, count = self._plan.shared_tiles(shapes["Hq"] // shapes["Hkv"], rows)
        return self._kernels.prepare(
            "shared_attention",
            {**self._tables(inputs.options), "tiles": tiles},
            **_partial_outputs(self._plan.shared_partial_count, self._plan, shapes),
            grid=(TILE_THREADS, count, shapes["Hkv"]),
            threadgroup=(TILE_THREADS, 1, 1),
            template=_template(shapes, inputs.q, inputs.pool, inputs.options),
        )

    def _prepare_merge(self, inputs: DecodeInputs, shapes: Shapes) -> Launch:
        vectors = shapes["T"] * shapes["Hq"]
        sinks = inputs.options.sinks is not None
        sizes = ("VALUE_DIM", shapes["V"]), ("HEADS", shapes["Hq"])
        return self._kernels.prepare(
            "merge_partials",
            {"merges": self._plan.merges, "shared_partials": self._plan.shared_partials},
            output_shapes=[(shapes["T"], shapes["Hq"], shapes["V"])],
            output_dtypes=[inputs.q.dtype],
            grid=(SIMD, vectors, 1),
            threadgroup=(SIMD, min(4, vectors), 1),
            template=[("T", inputs.q.dtype), *sizes, ("SINKS", sinks)],
        )

    def _tables(self, options: AttentionOptions) -> dict[str, mx.array]:
        reals = self._plan.reals(options.scale, options.softcap or 0.0)
        return {"slots": self._plan.slots, "rows": self._plan.table, "reals": reals}


def _partial_outputs(partials: int, plan: DecodePlan, shapes: Shapes) -> dict[str, Any]:
    vectors = partials, plan.tokens, shapes["Hq"]
    return {
        "output_shapes": [(*vectors, shapes["V"]), vectors, vectors],
        "output_dtypes": [mx.float32] * 3,
    }


def _template(
    shapes: Shapes, q: mx.array, pool: PoolLayer, options: AttentionOptions
) -> list[tuple[str, Any]]:
    return [
        *(("T", q.dtype), ("DIM", shapes["D"]), ("VALUE_DIM", shapes["V"])),
        *(("HEADS", shapes["Hq"]), ("KV_HEADS", shapes["Hkv"])),
        *(("WINDOW", options.window or 0), ("CAPPED", options.softcap is not None)),
        *(("QUANTIZED", pool.quantized), ("VALUES_IN_KEYS", pool.values_in_keys)),
    ]


def _pool_inputs(pool: PoolLayer, kernels: Kernels) -> dict[str, mx.array]:
    missing = kernels.absent
    return {
        **{"pool_keys": pool.keys, "pool_values": pool.values},
        "key_scales": missing if pool.key_scales is None else pool.key_scales,
        "value_scales": missing if pool.value_scales is None else pool.value_scales,
    }


def _reals(options: AttentionOptions) -> mx.array:
    values = [options.scale, options.softcap or 0.0]
    return mx.array(values + [0.0] * (MIN_ELEMENTS - len(values)), mx.float32)


def _sinks(options: AttentionOptions, dtype: mx.Dtype, kernels: Kernels) -> mx.array:
    """Convert the sinks to the queries' dtype; return a placeholder if there are none."""
    return kernels.absent if options.sinks is None else options.sinks.astype(dtype)
