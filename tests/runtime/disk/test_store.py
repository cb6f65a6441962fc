"""Writing behind and reading ahead: the caller never waits, and nothing untrue is ever read."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.disk.store import DiskReading, DiskStore
from tests.patience import PATIENCE
from tests.runtime.disk.test_block_file import block, same
from tests.runtime.disk.test_block_folder import SIZE, key

Open = Callable[..., DiskStore]


class SlowFolder(BlockFolder):
    """Writes when it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 100 * SIZE)
        self.go = threading.Event()
        self.error: Exception | None = None

    def write(self, key: str, arrays: object) -> bool:
        self.go.wait(PATIENCE)
        if self.error:
            raise self.error
        return super().write(key, arrays)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> SlowFolder:
    return SlowFolder(tmp_path)


@pytest.fixture
def was_read() -> threading.Event:
    return threading.Event()


@pytest.fixture
def store(folder: SlowFolder, was_read: threading.Event) -> Iterator[DiskStore]:
    opened = DiskStore(folder, was_read.set)
    yield opened
    folder.go.set()
    opened.close()


def read(store: DiskStore, was_read: threading.Event, *keys: str) -> DiskReading:
    was_read.clear()
    reading = store.read(keys)
    assert was_read.wait(PATIENCE)
    assert reading.done
    return reading


def test_what_waits_to_be_written_can_be_read(
    store: DiskStore, was_read: threading.Event, folder: SlowFolder
) -> None:
    store.write(key(1), block(1))
    assert store.has(key(1))
    assert not folder.has(key(1))
    reading = read(store, was_read, key(1))
    assert same(reading.arrays, block(1))


def test_closing_writes_what_waits(store: DiskStore, folder: SlowFolder) -> None:
    for i in range(5):
        store.write(key(i), block(i))
    folder.go.set()
    store.close()
    assert all(folder.has(key(i)) for i in range(5))
    assert store.stats().spilled == 5
    assert store.stats().waiting == 0


def test_closing_does_not_go_on_for_ever(store: DiskStore, folder: SlowFolder) -> None:
    for i in range(5):
        store.write(key(i), block(i))
    store.close(0)
    folder.go.set()
    store.close(PATIENCE)
    assert store.stats().spilled <= 1
    assert store.stats().failed >= 4


def test_blocks_are_read_one_after_the_other_up_to_the_first_missing(
    store: DiskStore, was_read: threading.Event, folder: SlowFolder
) -> None:
    folder.go.set()
    for i in (1, 2, 4):
        folder.write(key(i), block(i))
    reading = read(store, was_read, *map(key, (1, 2, 3, 4)))
    assert reading.count == 2
    expected = np.concatenate([block(1)["keys.0"], block(2)["keys.0"]])
    np.testing.assert_array_equal(reading.arrays["keys.0"][:8], expected)


def test_nothing_found_is_a_reading_too(store: DiskStore, was_read: threading.Event) -> None:
    reading = read(store, was_read, key(7))
    assert (reading.count, reading.arrays) == (0, {})


def test_a_reading_is_forgotten_when_it_is_taken_or_dropped(
    store: DiskStore, was_read: threading.Event, folder: SlowFolder
) -> None:
    folder.go.set()
    folder.write(key(1), block(1))
    taken, dropped = (read(store, was_read, key(1)) for _ in range(2))
    assert taken.id != dropped.id
    assert same(store.take(taken.id), block(1))
    store.drop(dropped.id)
    assert store.held_readings == 0


def test_what_would_wait_too_long_is_dropped(folder: SlowFolder) -> None:
    size = sum(array.nbytes for array in block().values())
    store = DiskStore(folder, lambda: None, pending_bytes=2 * size)
    assert store.takes(3, size) == 2
    store.write(key(1), block(1))
    assert store.takes(1, size) == 1
    store.write(key(2), block(2))
    assert store.takes(3, size) == 0
    folder.go.set()
    store.close()
    assert store.stats().dropped == 4
    assert store.takes(1, size) == 1


@pytest.mark.parametrize("error", [OSError("disk full"), MemoryError(), KeyError("x")])
def test_errors_of_the_disk_cost_blocks_and_nothing_else(
    store: DiskStore, folder: SlowFolder, was_read: threading.Event, error: Exception
) -> None:
    folder.error = error
    folder.go.set()
    store.write(key(1), block())
    folder.error = None
    store.write(key(2), block())
    store.close()
    assert store.stats().failed + store.stats().spilled == 2


WRITER = """
import sys
from pathlib import Path
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.disk.store import DiskStore
from tests.runtime.disk.test_block_file import block
from tests.runtime.disk.test_block_folder import SIZE, key

store = DiskStore(BlockFolder(Path(sys.argv[1]), 12 * SIZE), lambda: None)
print("ready", flush=True)
i = int(sys.argv[2])
while True:
    if store.takes(1, SIZE) and store.stats().waiting < 4:
        store.write(key(i % 40), block(i % 40))
        i += 1
"""


def test_a_kill_at_any_moment_leaves_only_what_is_true(tmp_path: Path) -> None:
    moments = random.Random(0)
    seen = 0
    starts = itertools.count()
    while (start := next(starts)) < 20 or seen <= 20:
        assert start < 200, "hardly a block survives: the writer is killed before it writes"
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(moments.uniform(0.001, 0.08))  # a random moment, not a wait for one
            writer.send_signal(signal.SIGKILL)
        folder = BlockFolder(tmp_path, 12 * SIZE)
        found = {i: folder.read(key(i)) for i in range(40)}
        assert folder.broken == 0
        for i, arrays in found.items():
            assert arrays is None or same(arrays, block(i))
            seen += arrays is not None
        assert sum(f.stat().st_size for f in tmp_path.glob("*.*")) <= 12 * SIZE
    assert seen > 20


def test_a_reading_ends_whatever_is_in_the_files(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path, 100 * SIZE)
    folder.write(key(0), block(0))
    folder.write(key(1), {"other": np.ones((3, 5), np.int8)})
    folder.write(key(2), {"scalar": np.ones((), np.int8)})
    read_all = threading.Event()
    store = DiskStore(folder, read_all.set)
    for keys, count in (((key(0), key(1)), 1), ((key(2),), 0), ((key(0),), 1)):
        assert read(store, read_all, *keys).count == count
    store.close()


def test_blocks_and_snapshots_are_counted_by_themselves(tmp_path: Path) -> None:
    read_all = threading.Event()
    store = DiskStore(BlockFolder(tmp_path, 100 * SIZE), read_all.set)
    store.write(key(0), block(0))
    store.write(key(1), {"states.0": np.ones((1, 5), np.float32)})
    while store.stats().waiting + store.stats("snapshot").waiting:
        pass
    read(store, read_all, key(0))
    read(store, read_all, key(1))
    assert store.takes(1, 1 << 60) == store.takes(1, 1 << 60, "snapshot") == 0
    for counts in (store.stats(), store.stats("snapshot")):
        assert (counts.spilled, counts.read, counts.dropped, counts.failed) == (1, 1, 1, 0)
    store.close()
