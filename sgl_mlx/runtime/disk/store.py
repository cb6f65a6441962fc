"""The second tier on disk: a thread that writes behind, a thread that reads ahead.

The engine's thread hands over copies and takes what was read; it never waits for the disk. When
more waits to be written than may, further blocks are dropped. What waits can be read already.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sgl_mlx.runtime.disk.block_file import Arrays
from sgl_mlx.runtime.disk.block_folder import BlockFolder

PENDING_BYTES = 512 << 20
"""Of copies that wait to be written."""
CLOSING_SECONDS = 20.0
"""How long `close` goes on writing."""


class DiskReading:
    """See `tier.Reading`; the payload is `Arrays` of all blocks found, one after the other."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.done = False
        self.count = 0
        self.payload: dict[str, np.ndarray[Any, Any]] | None = None

    def append(self, block: Arrays) -> None:
        if self.payload is None:
            self.payload = {
                name: np.empty((len(self.keys) * len(array), *array.shape[1:]), array.dtype)
                for name, array in block.items()
            }
        for name, array in block.items():
            start = self.count * len(array)
            self.payload[name][start : start + len(array)] = array
        self.count += 1


@dataclass
class Blocks:
    """How many were written, read, dropped because too many waited, lost to errors; wait now."""

    spilled: int = 0
    read: int = 0
    dropped: int = 0
    failed: int = 0
    waiting: int = 0


class DiskStore:
    """A `tier.BlockStore` over a folder. Errors of the disk are counted, and otherwise ignored.

    Args:
        on_read: called by the reading thread when a reading is done.
        pending_bytes: of copies that may wait to be written.
    """

    def __init__(
        self,
        folder: BlockFolder,
        on_read: Callable[[], None],
        pending_bytes: int = PENDING_BYTES,
    ) -> None:
        self.folder = folder
        self._on_read = on_read
        self._limit = pending_bytes
        self._pending: dict[str, Arrays] = {}
        self._pending_bytes = 0
        self._blocks = Blocks()
        self._lock = threading.Lock()  # of the three above
        self._deadline: float | None = None
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
        """See `tier.BlockStore`; true also while it waits to be written."""
        return key in self._pending or self.folder.has(key)

    def read(self, keys: Sequence[str]) -> DiskReading:
        """See `tier.BlockStore`."""
        reading = DiskReading(keys)
        self._reads.put(reading)
        return reading

    def takes(self, blocks: int, size: int) -> int:
        """How many of some blocks of `size` bytes may wait to be written; drops the others."""
        with self._lock:
            taken = min(blocks, max(self._limit - self._pending_bytes, 0) // size)
            self._blocks.dropped += blocks - taken
        return taken

    def write(self, key: str, block: Arrays) -> None:
        """Queue a block, whose arrays nobody changes any more."""
        with self._lock:
            if key in self._pending:
                return
            self._pending[key] = block
            self._pending_bytes += _bytes(block)
        self._writes.put(key)

    def stats(self) -> Blocks:
        """What happened to blocks since the start."""
        with self._lock:
            return replace(self._blocks, waiting=len(self._pending))

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Write what waits, for some time, and end the threads. Calling it again waits longer."""
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
                self._blocks.spilled += written
                self._blocks.failed += not written

    def _write(self, key: str, block: Arrays) -> bool:
        if self._deadline is not None and time.monotonic() > self._deadline:
            return False
        with suppress(OSError, MemoryError):
            return self.folder.write(key, block)
        return False

    def _read_all(self) -> None:
        while (reading := self._reads.get()) is not None:
            with suppress(OSError, MemoryError):
                self._read(reading)
            reading.done = True
            self._on_read()

    def _read(self, reading: DiskReading) -> None:
        for key in reading.keys:
            block = self._pending.get(key) or self.folder.read(key)
            if block is None:
                break
            reading.append(block)
        self.folder.touch(reading.keys[: reading.count])
        with self._lock:
            self._blocks.read += reading.count


def _bytes(block: Arrays) -> int:
    return sum(array.nbytes for array in block.values())
