"""A folder of block files that several processes may share.

A file is written under a temporary name and then renamed, so that a killed process leaves at most a
temporary file. Writers hold a lock, which is released when their process dies. So any temporary
file that the holder of the lock finds is abandoned, and the folder never exceeds its limit. The
lock file contains the folder's size as a number. After a crash the number may be too large, until
the files are counted again. Readers take no lock. Files with other names are never touched.
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
"""Share of the limit that stays in use after an eviction, so that evictions are rare."""


class BlockFolder:
    """Folder of block files with a limit on its size; evicts the least recently used blocks.

    Args:
        path: the folder; if it does not exist, it is made readable for its owner alone, because
            KV reveals prompts.
        limit: largest size of all blocks together, in bytes.

    Raises:
        OSError: the folder cannot be made or written.

    Attributes:
        broken: number of damaged files that were found and removed.
        used: size of all blocks in bytes when this object was made or last wrote a block.
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

    def keys(self) -> set[str]:
        """List the keys of all blocks in the folder."""
        with suppress(OSError):
            return {path.stem for path in self._path.iterdir() if path.suffix == ".safetensors"}
        return set()

    def read(self, key: str) -> Arrays | None:
        """Read the arrays of a block; None if it does not exist or is damaged.

        A damaged file is removed.
        """
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

    def discard(self, key: str) -> None:
        """Remove a block, if it is there; `used` counts it until the files are counted again."""
        with suppress(OSError):
            self._file(key).unlink()

    def touch(self, keys: Sequence[str]) -> None:
        """Mark a prompt's blocks as used now, the first block last, so that it is evicted last.

        Without a prompt's first block, its later blocks cannot be found.
        """
        for key in reversed(keys):
            with suppress(OSError):
                _stamp(self._file(key))

    def write(self, key: str, arrays: Arrays) -> bool:
        """Write a block, and evict the least recently used ones if there is no room.

        Returns:
            True if the block is in the folder now; False if it is larger than the limit.

        Raises:
            OSError: the disk failed; no incomplete block is left.
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
            with open(temporary, "wb", opener=_owner_only) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            _stamp(temporary)
            temporary.rename(self._file(key))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _shrink(self, goal: int) -> int:
        """Remove temporary files, then the least recently used blocks until `goal` bytes are left.

        Returns:
            The size of the blocks left, in bytes.
        """
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
        """Wait for the writers' lock and hold it; yield its file, which has the folder's size."""
        descriptor = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as book:
            fcntl.flock(book, fcntl.LOCK_EX)
            yield book


def _owner_only(path: str, flags: int) -> int:
    """Open a file and return its descriptor; KV reveals prompts, so only the owner can read it."""
    return os.open(path, flags, 0o600)


def _stamp(file: Path) -> None:
    """Set a file's time of last use to now, in nanoseconds; the file system's clock is coarser."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _noted(book: IO[bytes]) -> int | None:
    book.seek(0)
    text = book.read().strip()
    return int(text) if text.isdigit() else None
