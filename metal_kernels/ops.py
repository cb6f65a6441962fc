"""Attention over the KV pool by the Metal kernels; `reference` has the same functions in MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from sgl_mlx.metal_kernels.build import Kernels
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

    The kernels `decode_attention` and `shared_attention` compute partial softmaxes, and
    `merge_partials` merges them.

    Returns:
        `(rows * tokens, Hq, V)` in the dtype of `q`.

    Raises:
        ValueError: a shape or dtype is wrong; the message names every dimension.
    """
    q, tail_keys, tail_values, tail_length, pool, plan, options = inputs
    shapes = check_decode(inputs)
    ints = plan.step_table(tail_length)
    step = {"q": q, **_pool_inputs(pool, kernels), "slots": plan.slots, "rows": plan.table}
    step |= {"reals": plan.reals(options.scale, options.softcap or 0.0), "ints": ints}
    template = _template(shapes, q, pool, options)
    own = _own_partials(tail_keys, tail_values, plan, shapes, step, template, kernels)
    shared = own
    if plan.spans:
        shared = _shared_partials(plan, shapes, step, template, kernels)
    arrays = dict(zip(("own_out", "own_peaks", "own_masses"), own, strict=True))
    arrays |= dict(zip(("shared_out", "shared_peaks", "shared_masses"), shared, strict=True))
    arrays |= {"merges": plan.merges, "shared_partials": plan.shared_partials}
    arrays |= {"ints": ints, "sinks": _sinks(options, q.dtype, kernels)}
    vectors = q.shape[0] * shapes["Hq"]
    (out,) = kernels.launch(
        "merge_partials",
        arrays,
        output_shapes=[(*q.shape[:2], shapes["V"])],
        output_dtypes=[q.dtype],
        grid=(SIMD, vectors, 1),
        threadgroup=(SIMD, min(4, vectors), 1),
        template=[
            *(("T", q.dtype), ("VALUE_DIM", shapes["V"]), ("HEADS", shapes["Hq"])),
            ("SINKS", options.sinks is not None),
        ],
    )
    return out


def _own_partials(
    tail_keys: mx.array,
    tail_values: mx.array,
    plan: DecodePlan,
    shapes: Shapes,
    step: dict[str, mx.array],
    template: list[tuple[str, Any]],
    kernels: Kernels,
) -> list[mx.array]:
    vectors = plan.tokens * shapes["Hq"] // shapes["Hkv"]
    blocks = -(-vectors // widest_block(shapes["D"], shapes["V"]))
    return kernels.launch(
        "decode_attention",
        {**step, "tail_keys": tail_keys, "tail_values": tail_values, "items": plan.items},
        **_partial_outputs(plan.item_count, plan, shapes),
        grid=(SIMD, plan.item_count, shapes["Hkv"] * blocks),
        threadgroup=(SIMD, min(4, plan.item_count), 1),
        template=[*template, ("Q_BLOCK", -(-vectors // blocks))],
    )


def _shared_partials(
    plan: DecodePlan,
    shapes: Shapes,
    step: dict[str, mx.array],
    template: list[tuple[str, Any]],
    kernels: Kernels,
) -> list[mx.array]:
    rows = tile_rows(shapes["D"], shapes["V"])
    tiles, count = plan.shared_tiles(shapes["Hq"] // shapes["Hkv"], rows)
    return kernels.launch(
        "shared_attention",
        {**step, "tiles": tiles},
        **_partial_outputs(plan.shared_partial_count, plan, shapes),
        grid=(TILE_THREADS, count, shapes["Hkv"]),
        threadgroup=(TILE_THREADS, 1, 1),
        template=template,
    )


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
    """Return the sinks in the queries' dtype, as MLX does; a placeholder if there are none."""
    return kernels.absent if options.sinks is None else options.sinks.astype(dtype)
