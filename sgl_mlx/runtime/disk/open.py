"""Opening of the KV cache's second tier on disk, according to an engine's options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.utils import tree_flatten

from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.models.loader import LoadedModel
from sgl_mlx.runtime.cache.state_tier import StateTier
from sgl_mlx.runtime.cache.tier import Tier
from sgl_mlx.runtime.config import EngineConfig
from sgl_mlx.runtime.disk.block_file import FORMAT
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.disk.copy import PoolCopy, layout
from sgl_mlx.runtime.disk.store import DiskStore
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.pool.states import StatePool

if TYPE_CHECKING:
    from sgl_mlx.runtime.ranks.engine import Ranks  # imported by several ranks alone


@dataclass(frozen=True)
class DiskStats:
    """Counts of the KV cache's second tier on disk, since the engine's start.

    Tokens are counted in whole blocks, without layers that have window slots. Snapshots of
    recurrent state, and tokens in layers that have window slots, are counted by themselves.

    Attributes:
        spilled_tokens: tokens whose KV was written to disk.
        read_tokens: tokens whose KV was read from disk.
        dropped_tokens: tokens not written because the queue was full.
        failed_tokens: tokens not written because of an error.
        waiting_tokens: tokens queued to be written now.
        spilled_snapshots: snapshots of recurrent state that were written to disk.
        read_snapshots: snapshots that were read from disk.
        dropped_snapshots: snapshots not written because the queue was full.
        failed_snapshots: snapshots not written because of an error.
        spilled_window_tokens: tokens whose KV in layers with a window was written to disk.
        read_window_tokens: tokens whose KV in layers with a window was read from disk.
        dropped_window_tokens: tokens in layers with a window, not written because the queue was
            full.
        failed_window_tokens: tokens in layers with a window, not written because of an error.
        hits: look-ups of prompts that found enough tokens to be worth reading.
        misses: look-ups of prompts that found too few tokens.
        broken_files: damaged files that were found and removed.
        bytes: size of all blocks in the folder when this process opened it or last wrote one.
    """

    spilled_tokens: int
    read_tokens: int
    dropped_tokens: int
    failed_tokens: int
    waiting_tokens: int
    spilled_snapshots: int
    read_snapshots: int
    dropped_snapshots: int
    failed_snapshots: int
    spilled_window_tokens: int
    read_window_tokens: int
    dropped_window_tokens: int
    failed_window_tokens: int
    hits: int
    misses: int
    broken_files: int
    bytes: int


@dataclass(frozen=True)
class DiskTier:
    """Parts of the second tier on disk: block keys, the store, and copies to and from the pools."""

    tier: Tier
    store: DiskStore
    copy: PoolCopy
    states: StateTier | None = None

    def stats(self) -> DiskStats:
        """Return counts since the start."""
        blocks, lookups, size = self.store.stats(), self.tier.lookups, self.tier.size
        snapshots, windows = self.store.stats("snapshot"), self.store.stats("window")
        return DiskStats(
            spilled_tokens=blocks.spilled * size,
            read_tokens=blocks.read * size,
            dropped_tokens=blocks.dropped * size,
            failed_tokens=blocks.failed * size,
            waiting_tokens=blocks.waiting * size,
            spilled_snapshots=snapshots.spilled,
            read_snapshots=snapshots.read,
            dropped_snapshots=snapshots.dropped,
            failed_snapshots=snapshots.failed,
            spilled_window_tokens=windows.spilled * size,
            read_window_tokens=windows.read * size,
            dropped_window_tokens=windows.dropped * size,
            failed_window_tokens=windows.failed * size,
            hits=lookups.hits,
            misses=lookups.misses,
            broken_files=self.store.folder.broken,
            bytes=self.store.folder.used,
        )


def open_disk_tier(
    config: EngineConfig,
    loaded: LoadedModel,
    pool: KVPool,
    on_read: Callable[[], None],
    states: StatePool | None = None,
    ranks: Ranks | None = None,
) -> DiskTier | None:
    """Open the second tier on disk; None if `config.disk_cache_dir` is None.

    Args:
        on_read: called by the reading thread when blocks have been read.
        states: the pool of recurrent states; None for a model of attention alone.
        ranks: the other ranks, which keep their own parts of the blocks; None for none.

    Raises:
        InvalidParamsError: `config.disk_cache_dir` cannot be made or written.
    """
    store = open_store(config, pool, on_read, states, "" if ranks is None else ranks.folder)
    if store is None:
        return None
    name = identity(loaded, pool, states)
    tier = Tier(
        store if ranks is None else ranks.store(store, on_read),
        name if ranks is None else ranks.identity(name),
        layers=bool(pool.layers),
    )
    kept = StateTier(tier) if states is not None else None
    return DiskTier(tier, store, PoolCopy(pool, store, states), kept)


def open_store(
    config: EngineConfig,
    pool: KVPool,
    on_read: Callable[[], None],
    states: StatePool | None = None,
    part: str = "",
) -> DiskStore | None:
    """Open the store of blocks on disk; None if `config.disk_cache_dir` is None.

    Args:
        on_read, states: as for `open_disk_tier`.
        part: a folder within `config.disk_cache_dir`; "" for that folder itself.

    Raises:
        InvalidParamsError: the folder cannot be made or written.
    """
    if config.disk_cache_dir is None:
        return None
    path = Path(config.disk_cache_dir).expanduser() / part
    try:
        folder = BlockFolder(path, config.disk_cache_bytes)
    except OSError as error:
        raise InvalidParamsError(
            f"disk_cache_dir must be a folder that can be written, {path} is not: {error}"
        ) from error
    queued = config.limits.max_disk_queue_bytes
    return DiskStore(folder, on_read, queued, layout(pool, states))


def identity(loaded: LoadedModel, pool: KVPool, states: StatePool | None = None) -> str:
    """Hash everything that KV depends on except tokens: the model, its dtype, the pools' layout.

    The hash includes a sum of every parameter's bits, which differs between fine-tunes of a model.
    """
    digest = hashlib.sha256(f"{FORMAT} {loaded.fingerprint} {pool.dtype}".encode())
    for slots in (*pool.keys, *pool.values):
        for array in slots.arrays():
            digest.update(f"{array.dtype} {array.shape[1:]} ".encode())
    if pool.windowed:
        digest.update(f"windows {sorted(pool.windowed)} ".encode())
    for array in states.arrays if states is not None else []:
        digest.update(f"state {array.dtype} {array.shape[1:]} ".encode())
    modules = [loaded.model, *([loaded.vision.network] if loaded.vision else [])]
    sums = [
        (name, x.dtype, x.shape, mx.sum(x.view(_BITS[x.dtype.size])))
        for module in modules
        for name, x in tree_flatten(module.parameters())
    ]
    mx.eval([total for *_, total in sums])
    for name, dtype, shape, total in sorted(sums, key=lambda row: row[0]):
        digest.update(f"{name} {dtype} {shape} {total.item()} ".encode())
    return digest.hexdigest()


_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
