"""A block that is not exactly what was written is no block."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sgl_mlx.runtime.disk.block_file import Arrays, decode, encode

KEY = "ab" * 20


def block(seed: int = 0) -> Arrays:
    numbers = np.random.default_rng(seed)
    return {
        "keys.0": numbers.standard_normal((4, 2, 3)).astype(np.float32),
        "keys.1": numbers.integers(-127, 128, (4, 2, 8)).astype(np.int8),
        "keys.1.scales": numbers.random((4, 2)).astype(np.float16),
        "values.0": numbers.integers(0, 1 << 16, (4, 2, 3)).astype(np.uint16),
    }


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a
    )


def test_a_block_comes_back_bit_for_bit() -> None:
    read = decode(KEY, encode(KEY, block()))
    assert read is not None
    assert same(read, block())


def test_a_block_under_another_name_is_none() -> None:
    assert decode("cd" * 20, encode(KEY, block())) is None


@pytest.mark.parametrize("flipped", [0x01, 0x80, 0xFF])
def test_whichever_byte_is_damaged_the_block_is_true_or_none(flipped: int) -> None:
    data, true = encode(KEY, block()), block()
    harmless = 0
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= flipped
        read = decode(KEY, bytes(damaged))
        assert read is None or same(read, true), i
        harmless += read is not None
    assert harmless <= 8  # the padding of the header, where white space may become another


def test_wherever_it_is_cut_off_or_goes_on_it_is_none() -> None:
    data = encode(KEY, block())
    for length in range(len(data)):
        assert decode(KEY, data[:length]) is None
    assert decode(KEY, data + b"\0") is None


def test_noise_and_holes_are_none() -> None:
    noise = random.Random(0)
    data = encode(KEY, block())
    for _ in range(300):
        assert decode(KEY, noise.randbytes(noise.randrange(400))) is None
        start = noise.randrange(len(data) - 16)
        hole = data[:start] + bytes(16) + data[start + 16 :]
        assert hole == data or decode(KEY, hole) is None
