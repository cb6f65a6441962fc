"""Attention over the pool by the Metal kernels; `reference` has the same functions in plain MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from sgl_mlx.metal_kernels.build import Kernels
from sgl_mlx.metal_kernels.plan import MIN_ELEMENTS, DecodePlan, ExtendPlan, int_table
from sgl_mlx.metal_kernels.pool import Options, PoolLayer
from sgl_mlx.metal_kernels.shapes import Shapes, check_decode, check_extend, check_flush

SIMD = 32
TILE_THREADS = 128
Q_BLOCK = 4
"""Most query vectors that one simdgroup of K2 holds in registers."""


def extend_attention(
    q: mx.array,
    keys: mx.array,
    values: mx.array,
    pool: PoolLayer,
    plan: ExtendPlan,
    options: Options,
    kernels: Kernels,
) -> mx.array:
    """New tokens attend to their row's prefix in the pool and causally to each other (K1).

    Args:
        q: `(T, Hq, D)`.
        keys, values: `(T, Hkv, D)` of the new tokens, not yet in the pool.

    Returns:
        `(T, Hq, D)` in the dtype of `q`.

    Raises:
        ValueError: a shape or dtype does not fit; the message names every dimension.
    """
    shapes = check_extend(q, keys, values, pool, plan, options)
    tiles, count = plan.tiles(shapes["Hq"] // shapes["Hkv"])
    (out,) = kernels.launch(
        "extend_attention",
        {
            **{"q": q, "new_keys": keys, "new_values": values},
            **_pool_inputs(pool, kernels),
            **{"slots": plan.slots, "rows": plan.table, "tiles": tiles},
            **{"reals": _reals(options), "sinks": _sinks(options, kernels)},
        },
        output_shapes=[q.shape],
        output_dtypes=[q.dtype],
        grid=(TILE_THREADS, count, shapes["Hkv"]),
        threadgroup=(TILE_THREADS, 1, 1),
        template=[*_template(shapes, q, pool, options), ("SINKS", options.sinks is not None)],
    )
    return out


def decode_attention(
    q: mx.array,
    tail_keys: mx.array,
    tail_values: mx.array,
    tail_length: int,
    pool: PoolLayer,
    plan: DecodePlan,
    options: Options,
    kernels: Kernels,
) -> mx.array:
    """The last tokens of each row attend to everything up to themselves (K2, K3 and K2b).

    Args:
        q: `(rows * tokens, Hq, D)`, one row's tokens after another's.
        tail_keys, tail_values: `(rows, width, Hkv, D)`, of which `tail_length` columns count;
            the last `plan.tokens` of these belong to the queries.

    Returns:
        `(rows * tokens, Hq, D)` in the dtype of `q`.

    Raises:
        ValueError: a shape or dtype does not fit; the message names every dimension.
    """
    shapes = check_decode(q, tail_keys, tail_values, tail_length, pool, plan, options)
    ints = int_table([tail_length, plan.width, plan.tokens])
    step = {"q": q, **_pool_inputs(pool, kernels), "slots": plan.slots, "rows": plan.table}
    step |= {"reals": _reals(options), "ints": ints}
    template = _template(shapes, q, pool, options)
    own = _own_partials(tail_keys, tail_values, plan, shapes, step, template, kernels)
    shared = own
    if plan.spans:
        shared = _shared_partials(plan, shapes, step, template, kernels)
    inputs = dict(zip(("own_out", "own_peaks", "own_masses"), own, strict=True))
    inputs |= dict(zip(("shared_out", "shared_peaks", "shared_masses"), shared, strict=True))
    inputs |= {"merges": plan.merges, "shared_partials": plan.shared_partials}
    inputs |= {"ints": ints, "sinks": _sinks(options, kernels)}
    heads = q.shape[0] * shapes["Hq"]
    (out,) = kernels.launch(
        "merge_partials",
        inputs,
        output_shapes=[q.shape],
        output_dtypes=[q.dtype],
        grid=(SIMD, heads, 1),
        threadgroup=(SIMD, min(4, heads), 1),
        template=[
            *(("T", q.dtype), ("DIM", shapes["D"]), ("HEADS", shapes["Hq"])),
            ("SINKS", options.sinks is not None),
        ],
    )
    return out


def flush_pool(
    pool: PoolLayer,
    keys: mx.array,
    values: mx.array,
    slots: mx.array,
    previous: mx.array,
    kernels: Kernels,
) -> mx.array:
    """Write keys and values into the pool's own memory, quantizing where the pool is int8.

    Against MLX's rule that arrays are values: every later reader of the pool must take the
    returned token as an input, or MLX does not know that it has to wait.

    Args:
        keys, values: `(T, Hkv, D)`.
        slots: int32, at least `MIN_ELEMENTS` long (`int_table`), the first T count.
        previous: the token of the write before this one, `(MIN_ELEMENTS,)` int32.

    Returns:
        The token of this write, `(MIN_ELEMENTS,)` int32.
    """
    shapes = check_flush(pool, keys, values, slots, previous)
    (done,) = kernels.launch(
        "flush_pool",
        {
            **_pool_inputs(pool, kernels),
            **{"new_keys": keys, "new_values": values, "slots": slots},
            **{"ints": int_table([shapes["T"]]), "previous": previous},
        },
        output_shapes=[(MIN_ELEMENTS,)],
        output_dtypes=[mx.int32],
        grid=(SIMD, shapes["T"], shapes["Hkv"]),
        threadgroup=(SIMD, 1, 1),
        template=[
            *(("T", keys.dtype), ("DIM", shapes["D"]), ("KV_HEADS", shapes["Hkv"])),
            ("QUANTIZED", pool.quantized),
        ],
    )
    return done


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
    blocks = -(-vectors // Q_BLOCK)
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
    tiles, count = plan.shared_tiles(shapes["Hq"] // shapes["Hkv"])
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
        "output_shapes": [(*vectors, shapes["D"]), vectors, vectors],
        "output_dtypes": [mx.float32] * 3,
    }


def _template(
    shapes: Shapes, q: mx.array, pool: PoolLayer, options: Options
) -> list[tuple[str, Any]]:
    return [
        *(("T", q.dtype), ("DIM", shapes["D"])),
        *(("HEADS", shapes["Hq"]), ("KV_HEADS", shapes["Hkv"])),
        *(("WINDOW", options.window or 0), ("CAPPED", options.softcap is not None)),
        ("QUANTIZED", pool.quantized),
    ]


def _pool_inputs(pool: PoolLayer, kernels: Kernels) -> dict[str, mx.array]:
    missing = kernels.absent
    return {
        **{"pool_keys": pool.keys, "pool_values": pool.values},
        "key_scales": missing if pool.key_scales is None else pool.key_scales,
        "value_scales": missing if pool.value_scales is None else pool.value_scales,
    }


def _reals(options: Options) -> mx.array:
    values = [options.scale, options.softcap or 0.0]
    return mx.array(values + [0.0] * (MIN_ELEMENTS - len(values)), mx.float32)


def _sinks(options: Options, kernels: Kernels) -> mx.array:
    return kernels.absent if options.sinks is None else options.sinks
