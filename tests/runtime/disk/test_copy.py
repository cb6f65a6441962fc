"""KV leaves the pool and comes back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from sgl_mlx.models.adapter import LayerShape
from sgl_mlx.models.states import StateShape
from sgl_mlx.runtime.cache.tier import Load, Spill
from sgl_mlx.runtime.disk.block_file import kind_of
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.disk.copy import PoolCopy, layout, read, write
from sgl_mlx.runtime.disk.store import DiskReading, DiskStore
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.states import StatePool

LAYERS = [LayerShape(2, 4, 3), LayerShape(1, 5, 0)]
KINDS = [(mx.float32, None), (mx.float16, None), (mx.bfloat16, None), (mx.float32, 8)]


def filled(dtype: mx.Dtype = mx.float32, kv_bits: int | None = None) -> KVPool:
    """A pool of 12 slots with random KV in all of them."""
    pool = KVPool(LAYERS, 12, dtype, kv_bits)
    keys = [mx.random.normal((12, x.heads, x.key_dim)).astype(dtype) for x in LAYERS]
    values = [mx.random.normal((12, x.heads, x.value_dim)).astype(dtype) for x in LAYERS]
    pool.write(range(1, 13), keys, values)
    return pool


def bits(pool: KVPool, slots: list[int]) -> list[bytes]:
    arrays = [x for slots in (*pool.keys, *pool.values) for x in slots.arrays()]
    picked = [array[mx.array(slots)] for array in arrays if array.size]
    return [np.array(x.view(mx.uint8)).tobytes() for x in picked]


@pytest.mark.parametrize(("dtype", "kv_bits"), KINDS, ids=lambda x: str(x).split(".")[-1])
@pytest.mark.parametrize("to", [[4, 5, 6], [9, 2, 11]], ids=["run", "scattered"])
def test_kv_comes_back_bit_for_bit_in_other_slots(
    dtype: mx.Dtype, kv_bits: int | None, to: list[int]
) -> None:
    pool = filled(dtype, kv_bits)
    before, others = bits(pool, [3, 8, 1]), [i for i in range(13) if i not in to]
    rest = bits(pool, others)
    write(pool, to, read(pool, [3, 8, 1]))
    assert bits(pool, to) == before
    assert bits(pool, others) == rest


def test_copies_are_none_the_wiser_when_the_pool_changes() -> None:
    pool = filled()
    copies = read(pool, [1, 2])
    before = {name: array.copy() for name, array in copies.items()}
    write(pool, [1, 2], read(pool, [5, 6]))
    for name, array in copies.items():
        np.testing.assert_array_equal(array, before[name])


def wait_for(reading: DiskReading) -> DiskReading:
    while not reading.done:
        pass
    return reading


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    opened = DiskStore(BlockFolder(tmp_path, 1 << 20), lambda: None)
    yield opened
    opened.close()


def test_a_spill_becomes_blocks_and_a_load_takes_any_part_of_them(store: DiskStore) -> None:
    pool = filled()
    keys = ("0" * 40, "1" * 40)
    before = bits(pool, [7, 3, 4])
    copy = PoolCopy(pool, store)
    copy.make([Spill(keys, (1, 7, 3, 4))])
    reading = store.read(keys)
    store.close()
    assert reading.count == 2
    copy.make([Load((10, 11, 12), reading.id, skip=1)])
    assert store.held_readings == 0
    assert bits(pool, [10, 11, 12]) == before


def test_transfers_are_made_in_their_order(store: DiskStore) -> None:
    pool = filled()
    copy = PoolCopy(pool, store)
    copy.make([Spill(("2" * 40,), (2,))])
    new = wait_for(store.read(("2" * 40,)))
    old = bits(pool, [1])
    copy.make([Spill(("0" * 40,), (1,)), Load((1,), new.id), Spill(("1" * 40,), (1,))])
    reading = store.read(("0" * 40, "1" * 40))
    store.close()
    copy.make([Load((5, 6), reading.id)])
    assert bits(pool, [5]) == old
    assert bits(pool, [6]) == bits(pool, [2])


def test_nothing_is_copied_when_too_much_waits_already(tmp_path: Path) -> None:
    pool = filled()
    store = DiskStore(BlockFolder(tmp_path, 1 << 20), lambda: None, pending_bytes=100)
    PoolCopy(pool, store).make([Spill(("0" * 40, "1" * 40), (1, 2, 3, 4))])
    assert store.stats().dropped == 2
    store.close()
    assert not store.has("0" * 40)


def test_layers_with_window_slots_are_copied_by_themselves(store: DiskStore) -> None:
    """And of their tokens those alone that have a slot to be written."""
    layers = [LayerShape(2, 4, 3), LayerShape(2, 4, 3, window=5)]
    pool = KVPool(layers, 12, mx.float32, None, window_slots=6)
    kv = [mx.random.normal((6, 2, width)) for width in (4, 4, 3, 3)]
    pool.write(range(1, 7), kv[:2], kv[2:], range(1, 7))
    before = [[np.array(x.data) for x in kind] for kind in (pool.keys, pool.values)]
    copy = PoolCopy(pool, store)
    copy.make([Spill(("0" * 40,), (1, 2, 3)), Spill(("1" * 40,), (4, 5, 6), windows=True)])
    reading = wait_for(store.read(("1" * 40,)))
    copy.make([Load((1, 0, 2), reading.id, windows=True)])
    assert (store.stats().dropped, store.stats("window").read) == (0, 1)
    for kind, (others, own) in zip((pool.keys, pool.values), before, strict=True):
        np.testing.assert_array_equal(kind[0].data, others)
        np.testing.assert_array_equal(kind[1].data, own[[0, 4, 6, 3, 4, 5, 6]])


def test_only_arrays_of_the_pools_own_form_fit() -> None:
    pool = filled()
    states = StatePool([StateShape(0, (3,), mx.float32)], 2)
    fits, block = layout(pool, states), dict(read(pool, [1, 2]))
    state = {"states.0": np.zeros((1, 3), np.float32)}
    name = next(iter(block))
    assert fits(block)
    assert fits(state)
    assert fits({**state, **block})
    for wrong in (
        {},
        {name: block[name]},
        {**block, "more": block[name]},
        {**block, name: block[name].astype(np.int8)},
        {**block, name: block[name][..., :1]},
        {**block, name: block[name][:1]},
        {**block, name: np.zeros((), block[name].dtype)},
        {"states.0": np.zeros((2, 3), np.float32)},
        {"states.1": np.zeros((1, 3), np.float32)},
        {**state, name: block[name]},
        {f"windows.{name}": block[name]},
    ):
        assert not fits(wrong)


def test_a_block_has_the_layers_with_window_slots_or_the_others() -> None:
    layers = [LayerShape(2, 4, 3), LayerShape(1, 5, 0, window=5)]
    pool = KVPool(layers, 12, mx.float32, None, window_slots=6)
    fits = layout(pool)
    others, windows = dict(read(pool, [1, 2])), dict(read(pool, [1, 2], windows=True))
    assert (kind_of(others), kind_of(windows)) == ("block", "window")
    assert fits(others)
    assert fits(windows)
    assert not fits({**others, **windows})
