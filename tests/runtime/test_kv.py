"""The pool of keys and values."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.runtime.kv import KVPool, SlotIndex

LAYERS = [LayerShape(2, 4, 3), LayerShape(1, 5, 0)]


def kv(count: int, start: int = 1) -> tuple[list[mx.array], list[mx.array]]:
    """Distinct numbers for `count` tokens of every layer."""
    keys, values = [], []
    for layer in LAYERS:
        keys.append(mx.arange(count * layer.heads * layer.key_dim) + start)
        values.append(-mx.arange(count * layer.heads * layer.value_dim) - start)
        keys[-1] = keys[-1].reshape(count, layer.heads, layer.key_dim).astype(mx.float32)
        values[-1] = values[-1].reshape(count, layer.heads, layer.value_dim).astype(mx.float32)
    return keys, values


@pytest.mark.parametrize("slots", [[3, 4, 5], [9, 2, 6], [7]], ids=["run", "scattered", "one"])
def test_what_was_written_is_read_back(slots: list[int]) -> None:
    pool = KVPool(LAYERS, 10, mx.float32)
    keys, values = kv(len(slots))
    pool.write(slots, keys, values)
    for layer in range(len(LAYERS)):
        found = pool.gather(layer, SlotIndex(slots))
        np.testing.assert_array_equal(np.array(found[0]), np.array(keys[layer]))
        np.testing.assert_array_equal(np.array(found[1]), np.array(values[layer]))


def test_a_write_touches_no_other_slot() -> None:
    pool = KVPool(LAYERS, 10, mx.float32)
    pool.write([1, 2, 3, 4], *kv(4))
    before = np.array(pool.keys[0])
    pool.write([2, 9], *kv(2, start=500))
    same = [i for i in range(11) if i not in (2, 9)]
    np.testing.assert_array_equal(np.array(pool.keys[0])[same], before[same])
    assert not np.array(pool.keys[0])[0].any()


def test_writing_nothing_is_allowed() -> None:
    pool = KVPool(LAYERS, 4, mx.float32)
    pool.write([], *kv(0))
    assert not np.array(pool.keys[0]).any()


@pytest.mark.parametrize("slots", [[4, 5, 7], [5, 4, 3], [4, 6, 5, 7], [4, 4]])
def test_only_consecutive_ascending_slots_are_a_run(slots: list[int]) -> None:
    assert SlotIndex(slots).run is None
    assert SlotIndex([4, 5, 6]).run == (4, 7)


def test_a_slot_costs_the_keys_and_values_of_every_layer() -> None:
    assert KVPool.bytes_per_slot(LAYERS, mx.float16) == 2 * (2 * (4 + 3) + 5)
    pool = KVPool(LAYERS, 10, mx.float32)
    allocated = sum(x.nbytes for x in [*pool.keys, *pool.values])
    assert allocated == 11 * KVPool.bytes_per_slot(LAYERS, mx.float32)  # one is padding
