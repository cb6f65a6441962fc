"""A folder of blocks as files, which several processes may share. No threads here.

A file appears whole, by renaming, or not at all: whoever is killed leaves at most a temporary file.
One process writes at a time, holding a lock that its death releases. So a temporary file that the
holder finds is nobody's, and the size of the folder stays within its bound at every moment. The
lock file holds that size as a number; it may be too large after a crash, until the files are
counted again. Readers take no lock. Files of other names are never touched.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sgl_mlx.runtime.disk.block_file import Arrays, decode, encode

_OURS = re.compile(r"[0-9a-f]{40}\.(safetensors|tmp)")
_KEPT = 0.9
"""Share of the bound that is left after making room, so that files are not counted for each."""


class BlockFolder:
    """The folder; see the module.

    Args:
        path: made, readable by its owner alone, if it is not there: KV tells what was prompted.
        limit: bytes that all blocks together may take.

    Raises:
        OSError: when the folder cannot be made or written.

    Attributes:
        broken: files found damaged, and removed.
        used: bytes of all blocks when one was last written.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self.broken = self.used = 0
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.locked() as book:
            self._note(book, self._shrink(limit))

    def has(self, key: str) -> bool:
        return self._file(key).exists()

    def read(self, key: str) -> Arrays | None:
        """Read the arrays of a block; None if it is not there or not whole."""
        file = self._file(key)
        try:
            data = file.read_bytes()
        except OSError:
            return None
        arrays = decode(key, data)
        if arrays is None:
            self.broken += 1
            with suppress(OSError):
                file.unlink()
        return arrays

    def touch(self, keys: Sequence[str]) -> None:
        """Mark blocks as used, the first one last, as without it the others are not found."""
        for key in reversed(keys):
            with suppress(OSError):
                _stamp(self._file(key))

    def write(self, key: str, arrays: Arrays) -> bool:
        """Keep a block, dropping the least recently used ones to make room.

        Returns:
            Whether it is kept; not, if it is larger than the bound.

        Raises:
            OSError: from the disk; nothing half-written stays visible.
        """
        data = encode(key, arrays)
        if len(data) > self._limit:
            return False
        with self.locked() as book:
            if self.has(key):
                return True
            used = _noted(book)
            if used is None or used + len(data) > self._limit:
                goal = min(int(self._limit * _KEPT), self._limit - len(data))
                used = self._shrink(goal)
            self._note(book, used + len(data))
            self._write(key, data)
        return True

    # -- inside -------------------------------------------------------------------------------

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.safetensors"

    def _write(self, key: str, data: bytes) -> None:
        temporary = self._path / f"{key}.tmp"
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            _stamp(temporary)
            temporary.rename(self._file(key))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _shrink(self, goal: int) -> int:
        """Remove dead temporary files, then old blocks down to `goal` bytes; count what is left."""
        blocks = []
        for file, status in self._entries():
            if file.suffix == ".tmp":
                file.unlink(missing_ok=True)
            else:
                blocks.append((status.st_mtime_ns, status.st_size, file))
        left = sum(size for _, size, _ in blocks)
        for _, size, file in sorted(blocks):
            if left <= goal:
                break
            file.unlink(missing_ok=True)
            left -= size
        return left

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self._path) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        yield Path(entry.path), entry.stat()

    def _note(self, book: IO[bytes], size: int) -> None:
        book.seek(0)
        book.write(b"%20d" % size)
        book.flush()
        self.used = size

    @contextmanager
    def locked(self) -> Iterator[IO[bytes]]:
        """Be the one writer among all processes; gives the file that notes the size."""
        descriptor = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as book:
            fcntl.flock(book, fcntl.LOCK_EX)
            yield book


def _stamp(file: Path) -> None:
    """Set the time of last use in nanoseconds; the system's own ticks are too coarse."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _noted(book: IO[bytes]) -> int | None:
    book.seek(0)
    text = book.read().strip()
    return int(text) if text.isdigit() else None
