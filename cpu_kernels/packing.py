"""Packing of MLX's quantized weights into the order in which `linear.h` multiplies them.

Weights `w = scale * q + bias` have the shape (N, K): N outputs, K inputs. They are cut into tiles
of 16 outputs by 32 inputs, so that one vector register holds the same inputs of 16 outputs. A tile
consists of 16 pairs of neighbouring inputs. With 8 bits, a pair takes 16 halfwords, one for each
output: the even input in the low byte, the odd one in the high byte. With 4 bits, four pairs share
16 words: even inputs in the low half of a word, odd inputs in the high half, the first pair in the
lowest bits of each half.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

LANES = 16
DEEP = 32


class Packed(NamedTuple):
    """Packed weights: `q` in uint8, `scales` and `biases` in float32, all flat.

    `n` is the number of outputs before they were padded with zeros to a multiple of 16.
    """

    q: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int
    n: int


def fits(k: int, bits: int, group_size: int) -> bool:
    """Return True if weights with `k` inputs, quantized with these parameters, can be packed."""
    return bits in (4, 8) and group_size % DEEP == 0 and k % group_size == 0


def pack(
    weight: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int
) -> Packed:
    """Pack weights that MLX quantized.

    Args:
        weight: uint32 `(N, K * bits / 32)`.
        scales, biases: `(N, K / group_size)`.

    Raises:
        ValueError: `fits` is False for these weights.
    """
    n, k = weight.shape[0], weight.shape[1] * 32 // bits
    if not fits(k, bits, group_size):
        raise ValueError(f"cannot pack {n} x {k} weights of {bits} bits in groups of {group_size}")
    levels = _levels(np.array(weight), bits)
    missing = -n % LANES
    levels = np.pad(levels, ((0, missing), (0, 0)))
    tiles = levels.reshape(-1, LANES, k // DEEP, DEEP // 2, 2).transpose(0, 2, 3, 1, 4)
    if bits == 4:  # (blocks, deep, 4 words, 4 pairs in each, lanes, 2)
        nibbles = tiles.reshape(*tiles.shape[:2], 4, 4, LANES, 2).astype(np.uint16)
        shifts = np.array([0, 4, 8, 12], np.uint16)[:, None, None]
        packed = (nibbles << shifts).sum(axis=3, dtype=np.uint16)
    else:
        packed = tiles
    return Packed(
        mx.array(np.ascontiguousarray(packed).view(np.uint8).reshape(-1)),
        mx.array(_by_tile(scales, missing)),
        mx.array(_by_tile(biases, missing)),
        bits,
        group_size,
        n,
    )


def unpack(packed: Packed) -> mx.array:
    """Unpack to weights (N, K) in float32, equal to `mx.dequantize`."""
    blocks = -(-packed.n // LANES)
    scales, biases = (x.reshape(blocks, -1, LANES) for x in (packed.scales, packed.biases))
    groups = scales.shape[1]
    deep = groups * packed.group_size // DEEP
    if packed.bits == 4:
        words = packed.q.view(mx.uint16).reshape(blocks, deep, 4, 1, LANES, 2)
        shifts = mx.array([0, 4, 8, 12], mx.uint16)[:, None, None]
        levels = ((words >> shifts) & 15).reshape(blocks, deep, 4 * 4, LANES, 2)
    else:
        levels = packed.q.reshape(blocks, deep, DEEP // 2, LANES, 2)
    q = levels.transpose(0, 3, 1, 2, 4).reshape(blocks * LANES, groups, packed.group_size)
    scale, bias = (x.swapaxes(1, 2).reshape(-1, groups, 1) for x in (scales, biases))
    weights: mx.array = (scale * q + bias).reshape(len(q), -1)[: packed.n]
    return weights


def _levels(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """Split MLX's words into integers `(N, K)`, the lowest bits of a word first."""
    by_byte = words.view(np.uint8)
    if bits == 8:
        return by_byte
    both = np.stack([by_byte & np.uint8(15), by_byte >> np.uint8(4)], axis=-1)
    return both.reshape(len(words), -1)


def _by_tile(x: mx.array, missing: int) -> NDArray[np.float32]:
    """Reorder `(N, groups)` to `(N / 16, groups, 16)`, flat, after padding N by `missing` zeros."""
    wide = np.pad(np.array(x.astype(mx.float32)), ((0, missing), (0, 0)))
    split = wide.reshape(-1, LANES, wide.shape[1]).swapaxes(1, 2)
    return np.ascontiguousarray(split).reshape(-1)
