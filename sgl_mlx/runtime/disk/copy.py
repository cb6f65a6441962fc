"""Copies of KV between the pool and host memory, bit by bit as the pool stores it.

Blocks of an 8-bit pool are int8 with float16 scales. bfloat16 is kept as uint16: numpy lacks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from sgl_mlx.runtime.cache.tier import Load, LoadState, Spill, SpillState
from sgl_mlx.runtime.disk.block_file import STATE, WINDOW, Arrays, Kind, kind_of
from sgl_mlx.runtime.disk.store import DiskStore
from sgl_mlx.runtime.pool.kv import KVPool, SlotIndex
from sgl_mlx.runtime.pool.states import StatePool

Copied = Spill | Load | SpillState | LoadState
"""A transfer between a pool and the store."""


class PoolCopy:
    """Executor of a plan's transfers between the pools and the disk store.

    Call it only when no unevaluated array refers to a pool.

    Args:
        states: the pool of recurrent states; None for a model of attention alone.
    """

    def __init__(self, pool: KVPool, store: DiskStore, states: StatePool | None = None) -> None:
        self._pool = pool
        self._states = states
        self._store = store
        self._bytes_per_slot = {
            windows: sum(x.nbytes // len(x) for _, x in _arrays(pool, windows))
            for windows in (False, True)
        }

    def make(self, transfers: Sequence[Copied]) -> None:
        """Execute transfers in order: spills copy from a pool to the store, loads copy back.

        Blocks that the store's write queue has no room for are not copied.
        """
        for transfer in transfers:
            match transfer:
                case Spill():
                    self._spill(transfer)
                case Load():
                    self._load(transfer)
                case SpillState():
                    self._spill_state(transfer)
                case LoadState():
                    self._load_state(transfer)

    def _spill(self, spill: Spill) -> None:
        size = len(spill.slots) // len(spill.keys)
        kind: Kind = "window" if spill.windows else "block"
        nbytes = size * self._bytes_per_slot[spill.windows]
        count = self._store.takes(len(spill.keys), nbytes, kind)
        if not count:
            return
        host = read(self._pool, spill.slots[: count * size], spill.windows)
        # the last block first: then the first block, without which none is found, is the newest
        for i in reversed(range(count)):
            part = slice(i * size, (i + 1) * size)
            self._store.write(spill.keys[i], {name: array[part] for name, array in host.items()})

    def _load(self, load: Load) -> None:
        wanted = [i for i, slot in enumerate(load.slots) if slot]
        part: slice | list[int] = slice(load.skip, load.skip + len(load.slots))
        if len(wanted) < len(load.slots):
            part = [load.skip + i for i in wanted]
        slots = [load.slots[i] for i in wanted]
        arrays = self._store.take(load.reading)
        host = {name: array[part] for name, array in arrays.items()}
        write(self._pool, slots, host, load.windows)

    def _spill_state(self, spill: SpillState) -> None:
        assert self._states is not None, "states of a model of attention alone"
        each = StatePool.bytes_per_slot(self._states.shapes)
        size = each + len(spill.slots) * self._bytes_per_slot[False]
        if not self._store.takes(1, size, "snapshot"):
            return
        kept = {
            f"{STATE}{i}": _host(array)[spill.state : spill.state + 1].copy()
            for i, array in enumerate(self._states.arrays)
        }
        tail = read(self._pool, spill.slots) if spill.slots else {}
        self._store.write(spill.key, {**kept, **tail})

    def _load_state(self, load: LoadState) -> None:
        assert self._states is not None, "states of a model of attention alone"
        host = self._store.take(load.reading)
        arrays = [
            _device(host[f"{STATE}{i}"], array.dtype) for i, array in enumerate(self._states.arrays)
        ]
        self._states.write([load.state], arrays)
        if load.slots:
            tail = {n: x[load.skip :] for n, x in host.items() if not n.startswith(STATE)}
            write(self._pool, load.slots, tail)


def layout(pool: KVPool, states: StatePool | None = None) -> Callable[[Arrays], bool]:
    """Return a check of whether arrays from a file have the names, types and shapes of the pools.

    A block must have all arrays of the layers with window slots, or all arrays of the other layers,
    of one length. A snapshot must have one row of each state, and either all arrays of KV or none.
    """
    kv, windows = (
        {name: _form(_host(array)) for name, array in _arrays(pool, windows)}
        for windows in (False, True)
    )
    kept = {f"{STATE}{i}": _form(_host(x)) for i, x in enumerate(states.arrays if states else ())}

    def fits(arrays: Arrays) -> bool:
        found = {name: _form(array) for name, array in arrays.items() if array.ndim}
        tokens = {
            len(array)
            for name, array in arrays.items()
            if array.ndim and not name.startswith(STATE)
        }
        kind = kind_of(arrays)
        if kind != "snapshot":
            return found == (windows if kind == "window" else kv) and len(tokens) == 1
        rows = {len(array) for name, array in arrays.items() if name in kept and array.ndim}
        return found in (kept, {**kept, **kv}) and rows == {1} and len(tokens) <= 1

    return fits


def _form(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.dtype, array.shape[1:]


def read(pool: KVPool, slots: Sequence[int], windows: bool = False) -> Arrays:
    """Copy the KV in these slots to host memory, as arrays by name.

    Args:
        windows: True for the layers that have window slots, False for all others.
    """
    where = np.array(slots)
    return {name: _host(array)[where] for name, array in _arrays(pool, windows)}


def write(pool: KVPool, slots: Sequence[int], host: Arrays, windows: bool = False) -> None:
    """Write KV that `read` returned to these slots, one for each token; any slots will do."""
    where = SlotIndex(slots).where
    for name, array in _arrays(pool, windows):
        array[where] = _device(host[name], array.dtype)
    mx.eval([array for _, array in _arrays(pool, windows)])


def _arrays(pool: KVPool, windows: bool) -> Iterator[tuple[str, mx.array]]:
    """Yield the arrays, by name, of the layers that have window slots, or of all others."""
    for kind, layers in (("keys", pool.keys), ("values", pool.values)):
        for i, slots in enumerate(layers):
            if (i in pool.windowed) != windows:
                continue
            for part, array in zip(("", ".scales"), slots.arrays(), strict=False):
                if array.size:  # an indexer's cache has keys alone
                    yield f"{WINDOW if windows else ''}{kind}.{i}{part}", array


def _device(array: np.ndarray[Any, Any], dtype: mx.Dtype) -> mx.array:
    """Convert an array that `_host` returned back to an array of MLX."""
    new = mx.array(array)
    return new.view(mx.bfloat16) if dtype == mx.bfloat16 else new


def _host(array: mx.array) -> np.ndarray[Any, Any]:
    """View an array as a numpy array; drop the view soon, or pool writes copy the array."""
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
