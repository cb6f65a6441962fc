"""A folder of blocks: bounded, shared, and never half-written."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from sgl_mlx.runtime.disk.block_file import Arrays, encode
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from tests.runtime.disk.test_block_file import block, same

SIZE = len(encode("0" * 40, block()))


def key(i: int) -> str:
    return f"{i:040x}"


def on_disk(path: Path) -> int:
    """Bytes of everything but the lock."""
    return sum(file.stat().st_size for file in path.iterdir() if file.name != "lock")


def kept(folder: BlockFolder, count: int) -> list[int]:
    return [i for i in range(count) if folder.has(key(i))]


def test_what_was_written_is_there_for_whoever_opens_the_folder(tmp_path: Path) -> None:
    assert BlockFolder(tmp_path, 100 * SIZE).write(key(1), block())
    other = BlockFolder(tmp_path, 100 * SIZE)
    read = other.read(key(1))
    assert read is not None
    assert same(read, block())
    assert other.read(key(2)) is None


def test_the_folder_never_exceeds_its_bound_and_loses_the_least_recently_used(
    tmp_path: Path,
) -> None:
    folder = BlockFolder(tmp_path, 5 * SIZE)
    for i in range(40):
        assert folder.write(key(i), block(i))
        assert on_disk(tmp_path) <= 5 * SIZE
        folder.touch([key(0)])
    assert 0 in kept(folder, 40)
    assert 39 in kept(folder, 40)
    assert len(kept(folder, 40)) >= 4


def test_of_blocks_used_together_the_first_stays_longest(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path, 5 * SIZE)
    for i in range(4):
        folder.write(key(i), block())
    folder.touch([key(i) for i in range(4)])
    for i in range(4, 7):
        folder.write(key(i), block())
    left = kept(folder, 4)
    assert left == list(range(len(left)))
    assert 0 < len(left) < 4


def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path, 9 * SIZE)
    for i in range(9):
        folder.write(key(i), block())
    BlockFolder(tmp_path, 3 * SIZE)
    assert on_disk(tmp_path) <= 3 * SIZE


def test_a_block_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path, SIZE - 1)
    assert not folder.write(key(1), block())
    assert on_disk(tmp_path) == 0


def test_a_damaged_block_is_a_miss_and_goes(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path, 9 * SIZE)
    folder.write(key(1), block())
    file = tmp_path / f"{key(1)}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert folder.read(key(1)) is None
    assert not folder.has(key(1))
    assert folder.broken == 1
    assert folder.write(key(1), block())
    assert folder.read(key(1)) is not None


def test_what_a_crash_left_is_removed_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    dead, foreign = tmp_path / f"{key(1)}.tmp", tmp_path / "thesis.safetensors"
    for file in (dead, foreign):
        file.write_bytes(bytes(SIZE))
    folder = BlockFolder(tmp_path, 2 * SIZE)
    for i in range(5):
        folder.write(key(i), block())
    assert not dead.exists()
    assert foreign.exists()


@pytest.mark.parametrize("said", [b"", b"-3", b"many", b"\xff\xff"])
def test_a_lost_size_is_counted_again(tmp_path: Path, said: bytes) -> None:
    folder = BlockFolder(tmp_path, 3 * SIZE)
    for i in range(3):
        folder.write(key(i), block())
    (tmp_path / "lock").write_bytes(said)
    folder.write(key(3), block())
    assert on_disk(tmp_path) <= 3 * SIZE
    assert folder.used == on_disk(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = BlockFolder(tmp_path, 9 * SIZE)

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        folder.write(key(1), block())
    assert on_disk(tmp_path) == 0
    assert not folder.has(key(1))


def test_others_cannot_look_into_a_folder_we_made(tmp_path: Path) -> None:
    BlockFolder(tmp_path / "made", SIZE)
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0


def test_others_cannot_read_a_block_in_a_folder_of_theirs(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    BlockFolder(tmp_path, 9 * SIZE).write(key(1), block())
    files = [file for file in tmp_path.iterdir() if file.is_file()]
    assert len(files) == 2
    assert [file for file in files if file.stat().st_mode & 0o077] == []


def _fill(path: Path, start: int) -> None:
    folder = BlockFolder(path, 6 * SIZE)
    for i in range(start, start + 60):
        folder.write(key(i), block(i))
        with folder.locked():  # nobody writes or removes while it is counted
            assert on_disk(path) <= 6 * SIZE
        folder.read(key(i - 3))


def test_processes_that_share_a_folder_share_its_bound(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_fill, args=(tmp_path, start)) for start in (0, 30)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0]
    folder = BlockFolder(tmp_path, 6 * SIZE)
    found = {i: folder.read(key(i)) for i in kept(folder, 90)}
    assert found
    assert all(read is not None and same(read, block(i)) for i, read in found.items())


def test_arrays_need_not_be_contiguous(tmp_path: Path) -> None:
    whole = np.arange(48, dtype=np.float32).reshape(8, 2, 3)
    part: Arrays = {"keys.0": whole[2:6]}
    folder = BlockFolder(tmp_path, 1 << 20)
    folder.write(key(1), part)
    read = folder.read(key(1))
    assert read is not None
    assert same(read, part)
