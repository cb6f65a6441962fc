"""Shape and dtype checks whose messages name every dimension: `q (T=5, Hq=9, D=64)`."""

from __future__ import annotations

import mlx.core as mx

from sgl_mlx.metal_kernels.inputs import DecodeInputs, ExtendInputs
from sgl_mlx.metal_kernels.pool import AttentionOptions, PoolLayer

WIDTHS = (
    *((64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (512, 512)),
    *((192, 128), (576, 512)),
)
"""Pairs of key and value width that the kernels support."""

DTYPES = (mx.float16, mx.bfloat16, mx.float32)


class Shapes:
    """Lengths of dimensions by symbol, such as T or Hq; the first array with a symbol sets it."""

    def __init__(self, **lengths: int) -> None:
        self.lengths = dict(lengths)

    def __getitem__(self, symbol: str) -> int:
        return self.lengths[symbol]

    def check(self, name: str, array: mx.array, *symbols: str) -> None:
        """Check an array's shape, and set the symbols that have no length yet.

        Raises:
            ValueError: the array has another number of dimensions, or a dimension has another
                length.
        """
        wanted = tuple(self.lengths.get(s, -1) for s in symbols)
        fits = len(wanted) == array.ndim and all(
            w in (-1, got) for w, got in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{name} has shape {array.shape}, expected {self._spell(symbols)}")
        self.lengths.update(zip(symbols, array.shape, strict=True))

    def check_heads(self) -> None:
        """Raise ValueError unless the kernels support these numbers and widths of heads."""
        if self["Hq"] % self["Hkv"]:
            raise ValueError(f"Hq={self['Hq']} query heads do not divide by Hkv={self['Hkv']}")
        if (self["D"], self["V"]) not in WIDTHS:
            raise ValueError(
                f"D={self['D']}, V={self['V']}: the kernels take keys and values of these widths: "
                f"{', '.join(f'{d}/{v}' for d, v in WIDTHS)}"
            )

    def _spell(self, symbols: tuple[str, ...]) -> str:
        spelled = (f"{s}={self.lengths[s]}" if s in self.lengths else s for s in symbols)
        return f"({', '.join(spelled)})"


def check_extend(inputs: ExtendInputs) -> Shapes:
    """Check the inputs of `extend_attention`; raises ValueError if one is wrong.

    Returns:
        The lengths T (tokens), Hq, Hkv, D, V, N (slots + 1).
    """
    q, keys, values, pool, plan, options = inputs
    shapes = Shapes(T=plan.tokens)
    shapes.check("q", q, "T", "Hq", "D")
    shapes.check("keys", keys, "T", "Hkv", "D")
    shapes.check("values", values, "T", "Hkv", "V")
    _check_rest(shapes, q, pool, options)
    _check_dtype("keys", keys, q)
    _check_dtype("values", values, q)
    return shapes


def check_decode(inputs: DecodeInputs) -> Shapes:
    """Check the inputs of `decode_attention`; raises ValueError if one is wrong.

    Returns:
        The lengths T (tokens), B (rows), W (columns of the tail), Hq, Hkv, D, V, N (slots + 1).
    """
    q, tail_keys, tail_values, tail_length, pool, plan, options = inputs
    shapes = Shapes(T=len(plan.rows) * plan.tokens, B=len(plan.rows), W=plan.width)
    shapes.check("q", q, "T", "Hq", "D")
    shapes.check("tail_keys", tail_keys, "B", "W", "Hkv", "D")
    shapes.check("tail_values", tail_values, "B", "W", "Hkv", "V")
    _check_rest(shapes, q, pool, options)
    _check_dtype("tail_keys", tail_keys, q)
    _check_dtype("tail_values", tail_values, q)
    plan.check_tail(tail_length)
    return shapes


def _check_rest(shapes: Shapes, q: mx.array, pool: PoolLayer, options: AttentionOptions) -> None:
    _check_pool(shapes, q.dtype, pool)
    shapes.check_heads()
    if options.sinks is not None:
        shapes.check("sinks", options.sinks, "Hq")
    if options.window is not None and options.window < 1:
        raise ValueError(f"window={options.window} must be at least one token, or None")
    if options.softcap is not None and options.softcap <= 0:
        raise ValueError(f"softcap={options.softcap} must be above zero, or None")


def _check_pool(shapes: Shapes, dtype: mx.Dtype, pool: PoolLayer) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype} is not one of {', '.join(map(str, DTYPES))}")
    stored = mx.int8 if pool.quantized else dtype
    for name, width in (("keys", "D"), ("values", "D" if pool.values_in_keys else "V")):
        array = getattr(pool, name)
        shapes.check(f"pool {name}", array, "N", "Hkv", width)
        if array.dtype != stored:
            raise ValueError(f"pool {name} is {array.dtype}, expected {stored}")
    if (pool.key_scales is None) != (pool.value_scales is None):
        raise ValueError("pool: key_scales and value_scales must both be given, or neither")
    if pool.key_scales is not None and pool.value_scales is not None:
        shapes.check("key_scales", pool.key_scales, "N", "Hkv")
        shapes.check("value_scales", pool.value_scales, "N", "Hkv")


def _check_dtype(name: str, array: mx.array, like: mx.array) -> None:
    if array.dtype != like.dtype:
        raise ValueError(f"{name} is {array.dtype}, expected {like.dtype}")
