"""Conversion of GGML's quantized blocks to MLX's affine quantization.

Both formats store small integers `q` with a scale and an offset per group of 32; the value is
`scale * q + bias`. MLX packs a group's integers in order, lowest bits first, into 32-bit words.
GGML's block layouts are in its `ggml-common.h`. The conversion is exact except for Q4_K, where each
group's scale is a product that is rounded to float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import Q4_K
from numpy.typing import NDArray

GROUP_SIZE = 32

_Bytes = NDArray[np.uint8]
_Half = NDArray[np.float16]


class Affine(NamedTuple):
    """A tensor of shape (…, n), quantized in groups of 32.

    Attributes:
        weight: packed integers, uint32 (…, n * bits / 32).
        scales, biases: float16 (…, n / 32), one for each group.
    """

    weight: NDArray[np.uint32]
    scales: _Half
    biases: _Half


def repack(rows: _Bytes, kind: Type) -> Affine:
    """Repack a tensor's raw bytes (…, bytes of a row), of a type in `REPACKABLE`, for MLX."""
    blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][1])
    packed, scales, biases = REPACKABLE[kind](blocks)
    lead = rows.shape[:-1]
    words = np.ascontiguousarray(packed).view(np.uint32)
    return Affine(words.reshape(*lead, -1), scales.reshape(*lead, -1), biases.reshape(*lead, -1))


def _q4_0(blocks: _Bytes) -> tuple[_Bytes, _Half, _Half]:
    scale = _halves(blocks[:, :2])
    return _pair(_nibbles(blocks[:, 2:])), scale, -8 * scale


def _q4_1(blocks: _Bytes) -> tuple[_Bytes, _Half, _Half]:
    return _pair(_nibbles(blocks[:, 4:])), _halves(blocks[:, :2]), _halves(blocks[:, 2:4])


def _q8_0(blocks: _Bytes) -> tuple[_Bytes, _Half, _Half]:
    scale = _halves(blocks[:, :2])
    return blocks[:, 2:] ^ np.uint8(0x80), scale, -128 * scale  # signed to offset by 128


def _q4_k(blocks: _Bytes) -> tuple[_Bytes, _Half, _Half]:
    """Repack super-blocks of eight groups; a group's scale is a 6-bit multiple of the block's."""
    scale, offset = (_halves(blocks[:, i : i + 2]).astype(np.float32) for i in (0, 2))
    group_scales, group_offsets = Q4_K.get_scale_min(blocks[:, 4:16])
    groups = _nibbles(blocks[:, 16:].reshape(-1, 32))  # each 32 bytes hold two groups
    scales = (scale * group_scales).astype(np.float16)
    return _pair(groups), scales, (-offset * group_offsets).astype(np.float16)


REPACKABLE: dict[Type, Callable[[_Bytes], tuple[_Bytes, _Half, _Half]]] = {
    Type.Q4_0: _q4_0,
    Type.Q4_1: _q4_1,
    Type.Q8_0: _q8_0,
    Type.Q4_K: _q4_k,
}


def _halves(raw: _Bytes) -> _Half:
    return np.ascontiguousarray(raw).view(np.float16)


def _nibbles(raw: _Bytes) -> _Bytes:
    """Split each byte into two 4-bit values: all low halves of a row, then all high halves."""
    return np.concatenate([raw & np.uint8(0x0F), raw >> np.uint8(4)], axis=-1)


def _pair(values: _Bytes) -> _Bytes:
    """Pack each two neighbouring 4-bit values into a byte, the first in the low bits."""
    packed: _Bytes = values[:, 0::2] | (values[:, 1::2] << np.uint8(4))
    return packed
