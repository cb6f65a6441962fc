"""Store of KV blocks on disk, with one thread that writes and one that reads.

The engine's thread never waits for the disk. When the write queue is full, new blocks are dropped.
A block can be read while it is still in the queue.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sgl_mlx.limits import Limits
from sgl_mlx.runtime.disk.block_file import Arrays, Kind, kind_of
from sgl_mlx.runtime.disk.block_folder import BlockFolder

CLOSING_SECONDS = 20.0
"""Seconds for which `close` goes on writing queued blocks, by default."""


class DiskReading:
    """Blocks being read from disk; implements `tier.Reading`.

    `arrays` has room for all blocks, one after another; the first `count` of them are valid.
    """

    def __init__(self, id: int, keys: Sequence[str]) -> None:
        self.id = id
        self.keys = keys
        self.done = False
        self.count = 0
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def append(self, block: Arrays) -> None:
        if not self.arrays:
            self.arrays = {
                name: np.empty((len(self.keys) * len(array), *array.shape[1:]), array.dtype)
                for name, array in block.items()
            }
        for name, array in block.items():
            start = self.count * len(array)
            self.arrays[name][start : start + len(array)] = array
        self.count += 1


@dataclass
class Blocks:
    """Counts of files of one kind, such as blocks of KV.

    `spilled` were written to disk, `read` were read, `waiting` are queued for writing now.
    `dropped` were not queued because the queue was full; `failed` were queued but not written.
    """

    spilled: int = 0
    read: int = 0
    dropped: int = 0
    failed: int = 0
    waiting: int = 0


class DiskStore:
    """Store of blocks in a folder; implements `tier.BlockStore`. Its two threads raise no errors.

    Args:
        on_read: called by the reading thread when a reading is done.
        pending_bytes: largest size of the write queue, in bytes.
        fits: whether arrays from a file have the names, types and shapes of the pools; a block
            that does not fit is not read.
    """

    def __init__(
        self,
        folder: BlockFolder,
        on_read: Callable[[], None],
        pending_bytes: int = Limits().max_disk_queue_bytes,
        fits: Callable[[Arrays], bool] = lambda arrays: True,
    ) -> None:
        self.folder = folder
        self._on_read = on_read
        self._fits = fits
        self._limit = pending_bytes
        self._pending: dict[str, Arrays] = {}
        self._pending_bytes = 0
        self._counts: dict[Kind, Blocks] = {k: Blocks() for k in ("block", "snapshot", "window")}
        self._lock = threading.Lock()  # guards the three attributes above
        self._deadline: float | None = None
        self._ids = itertools.count()
        self._readings: dict[int, DiskReading] = {}  # used by the engine thread only
        self._writes: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[DiskReading | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"sgl-mlx disk {name}", daemon=True)
            for name, work in (("writer", self._write_all), ("reader", self._read_all))
        ]
        for thread in self._threads:
            thread.start()

    # -- on the engine thread -----------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Return True if the block is in the folder or in the write queue."""
        return key in self._pending or self.folder.has(key)

    def keys(self) -> set[str]:
        """Return the keys of all blocks that are in the folder or in the write queue."""
        with self._lock:
            pending = set(self._pending)
        return pending | self.folder.keys()

    def read(self, keys: Sequence[str]) -> DiskReading:
        """Start to read blocks and return at once; the reading's `done` is set later."""
        reading = DiskReading(next(self._ids), keys)
        self._readings[reading.id] = reading
        self._reads.put(reading)
        return reading

    def drop(self, reading: int) -> None:
        """Forget the reading with this id, whose KV will not be loaded, unless it was taken."""
        self._readings.pop(reading, None)

    def take(self, reading: int) -> Arrays:
        """Return the arrays of the finished reading with this id, and forget the reading."""
        return self._readings.pop(reading).arrays

    @property
    def held_readings(self) -> int:
        """Number of readings that are neither taken nor dropped yet."""
        return len(self._readings)

    def takes(self, blocks: int, size: int, kind: Kind = "block") -> int:
        """Return how many of `blocks` new blocks, `size` bytes each, may be queued with `write`.

        Blocks beyond this number are counted as dropped.
        """
        with self._lock:
            taken = min(blocks, max(self._limit - self._pending_bytes, 0) // size)
            self._counts[kind].dropped += blocks - taken
        return taken

    def write(self, key: str, block: Arrays) -> None:
        """Queue a block to be written, if it is not queued yet; its arrays must stay unchanged."""
        with self._lock:
            if key in self._pending:
                return
            self._pending[key] = block
            self._pending_bytes += _bytes(block)
        self._writes.put(key)

    def stats(self, kind: Kind = "block") -> Blocks:
        """Return counts of files of one kind since the start."""
        with self._lock:
            waiting = sum(kind_of(block) == kind for block in self._pending.values())
            return replace(self._counts[kind], waiting=waiting)

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Write queued blocks for `seconds` at most, then stop the threads.

        May be called again, to wait longer for the threads.
        """
        self._deadline = self._deadline or time.monotonic() + seconds
        self._writes.put(None)
        self._reads.put(None)
        for thread in self._threads:
            thread.join(seconds)

    # -- on their own threads -----------------------------------------------------------------

    def _write_all(self) -> None:
        while (key := self._writes.get()) is not None:
            block = self._pending[key]
            written = self._write(key, block)
            with self._lock:
                del self._pending[key]
                self._pending_bytes -= _bytes(block)
                counts = self._counts[kind_of(block)]
                counts.spilled += written
                counts.failed += not written

    def _write(self, key: str, block: Arrays) -> bool:
        if self._deadline is not None and time.monotonic() > self._deadline:
            return False
        with suppress(Exception):  # of any kind, or the writing thread would end
            return self.folder.write(key, block)
        return False

    def _read_all(self) -> None:
        while (reading := self._reads.get()) is not None:
            with suppress(Exception):  # sequences wait for `done`, whatever happens
                self._read(reading)
            reading.done = True
            self._on_read()

    def _read(self, reading: DiskReading) -> None:
        for key in reading.keys:
            block = self._pending.get(key) or self.folder.read(key)
            if block is None or not self._fits(block):
                break
            reading.append(block)
            with self._lock:
                self._counts[kind_of(block)].read += 1
        self.folder.touch(reading.keys[: reading.count])


def _bytes(block: Arrays) -> int:
    return sum(array.nbytes for array in block.values())
