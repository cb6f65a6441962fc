"""MLX arrays as the bytes a kernel sees, and back."""

from __future__ import annotations

import ctypes

import mlx.core as mx
import numpy as np

from tests.metal_kernels.emulator.errors import Unsupported


def as_input(value: mx.array | bool | int | float, row_contiguous: bool) -> mx.array:
    """An evaluated array, made row-contiguous where the kernel asks for it."""
    array = value if isinstance(value, mx.array) else mx.array(value)
    if row_contiguous:
        array = mx.contiguous(array)
    mx.eval(array)
    if not memoryview(array).c_contiguous:
        raise Unsupported(f"an input of shape {array.shape} with strides of its own")
    return array


def to_bytes(array: mx.array) -> bytes:
    return bytes(memoryview(array))


def from_bytes(content: bytes, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    array = mx.array(np.frombuffer(content, np.uint8))
    if array.size == 0:
        return mx.zeros(shape, dtype)
    return array.view(dtype).reshape(shape)


def filled(shape: tuple[int, ...], dtype: mx.Dtype, value: float) -> bytes:
    return to_bytes(as_input(mx.full(shape, value, dtype), True))


def write_in_place(array: mx.array, content: bytes) -> None:
    """Change the array's own memory, as a kernel does that writes to an input."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memoryview(array)))
    ctypes.memmove(address, content, len(content))
