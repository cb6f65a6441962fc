"""Copies of KV between the pool and host memory, bit by bit as the pool stores it.

Blocks of an 8-bit pool are int8 with float16 scales. bfloat16 is kept as uint16: numpy lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from sgl_mlx.runtime.cache.tier import Load, Spill
from sgl_mlx.runtime.disk.block_file import Arrays
from sgl_mlx.runtime.disk.store import DiskStore
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex


class PoolCopy:
    """Executor of a plan's transfers between the KV pool and the disk store.

    Call it only when no unevaluated array refers to the pool.
    """

    def __init__(self, pool: KVPool, store: DiskStore) -> None:
        self._pool = pool
        self._store = store
        self._bytes_per_slot = sum(x.nbytes // len(x) for _, x in _arrays(pool))

    def make(self, transfers: Sequence[Spill | Load]) -> None:
        """Execute transfers in order: `Spill` copies KV to the store, `Load` back to the pool."""
        for transfer in transfers:
            if isinstance(transfer, Spill):
                self._spill(transfer)
            else:
                self._load(transfer)

    def _spill(self, spill: Spill) -> None:
        size = len(spill.slots) // len(spill.keys)
        count = self._store.takes(len(spill.keys), size * self._bytes_per_slot)
        if not count:
            return
        host = read(self._pool, spill.slots[: count * size])
        # the last block first: the first block, without which none is found, is then the newest
        for i in reversed(range(count)):
            part = slice(i * size, (i + 1) * size)
            self._store.write(spill.keys[i], {name: array[part] for name, array in host.items()})

    def _load(self, load: Load) -> None:
        part = slice(load.skip, load.skip + len(load.slots))
        arrays = self._store.take(load.reading)
        write(self._pool, load.slots, {name: array[part] for name, array in arrays.items()})


def read(pool: KVPool, slots: Sequence[int]) -> Arrays:
    """Copy the KV in these slots to host memory, as arrays by name."""
    where = np.array(slots)
    return {name: _host(array)[where] for name, array in _arrays(pool)}


def write(pool: KVPool, slots: Sequence[int], host: Arrays) -> None:
    """Write KV that `read` returned to these slots, one for each token; they may be other slots."""
    where = SlotIndex(slots).where
    for name, array in _arrays(pool):
        new = mx.array(host[name])
        array[where] = new.view(mx.bfloat16) if array.dtype == mx.bfloat16 else new
    mx.eval([array for _, array in _arrays(pool)])


def _arrays(pool: KVPool) -> Iterator[tuple[str, mx.array]]:
    for kind, layers in (("keys", pool.keys), ("values", pool.values)):
        for i, slots in enumerate(layers):
            for part, array in zip(("", ".scales"), slots.arrays(), strict=False):
                if array.size:  # an indexer's cache has keys alone
                    yield f"{kind}.{i}{part}", array


def _host(array: mx.array) -> np.ndarray[Any, Any]:
    """View an array as a numpy array; drop the view soon, or pool writes copy the array."""
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
