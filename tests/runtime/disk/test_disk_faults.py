"""Each row is a fault of the disk tier: it costs time at most, and never an answer."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.disk.block_folder import BlockFolder
from sgl_mlx.runtime.disk.copy import PoolCopy
from sgl_mlx.runtime.engine import Engine
from tests.patience import PATIENCE, eventually
from tests.runtime.faults import (
    OTHERS,
    SLOTS,
    Answer,
    Broken,
    all_ended,
    always,
    answering,
    answers,
    assert_right_or_told,
    once,
    submit,
    unharmed,
)
from tests.runtime.footprint import start_workers

Open = Callable[[], Engine]
FEW = SamplingParams(temperature=0, max_new_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def right(toy_folder: Path) -> list[Answer]:
    with Engine(str(toy_folder), max_total_tokens=SLOTS) as engine:
        return answers(submit(engine))


@pytest.fixture(scope="module")
def others(toy_folder: Path) -> list[Answer]:
    """The right answers to `OTHERS`."""
    with Engine(str(toy_folder), max_total_tokens=SLOTS) as engine:
        return answers(submit(engine, OTHERS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def opened(toy_folder: Path, folder: Path) -> Iterator[Open]:
    """`opened()` makes an engine on the folder; no temporary file may be left."""
    made: list[Engine] = []

    def make() -> Engine:
        made[:] = [engine for engine in made if not engine._loop.stopping]  # frees the others
        options: dict[str, Any] = {"max_total_tokens": SLOTS, "disk_cache_dir": str(folder)}
        made.append(Engine(str(toy_folder), **options))
        return made[-1]

    with all_ended():
        yield make
        for engine in made:
            engine.shutdown()
    assert not list(folder.glob("*.tmp"))


def number(engine: Engine, name: str) -> int:
    return int(engine.get_server_info()["stats"][name])


def written(engine: Engine) -> None:
    """Wait until nothing waits to be written."""
    eventually(lambda: not number(engine, "disk_waiting_tokens"), "all blocks are written")


def restarted(opened: Open, right: list[Answer]) -> Engine:
    """An engine whose folder has the blocks of all prompts, and whose pool has none."""
    engine = opened()
    assert answers(submit(engine)) == right
    engine.shutdown()
    return opened()


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# -- calls that fail --------------------------------------------------------------------------


class Failing(NamedTuple):
    """Calls of `owner.name` that raise while requests run; `when` says which."""

    name: str
    owner: Any
    call: str
    error: Exception
    when: Callable[[int], bool] = always


FULL, READ_ONLY, BROKEN, GONE = (
    OSError(number, os.strerror(number))
    for number in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENOENT)
)
WRITES = [
    Failing("full, when the file is made", BlockFolder, "_write", FULL),
    Failing("full, when the file is synchronised", os, "fsync", FULL),
    Failing("full for some files", os, "fsync", FULL, lambda call: call % 3 == 1),
    Failing("a file that cannot be renamed", Path, "rename", BROKEN),
    Failing("a read-only disk", BlockFolder, "_write", READ_ONLY),
    Failing("a lock that cannot be taken", fcntl, "flock", BROKEN),
    Failing("no memory for the file", BlockFolder, "write", MemoryError()),
    Failing("an error nobody thought of", BlockFolder, "write", ZeroDivisionError("writer")),
]
READS = [
    Failing("a disk that cannot be read", Path, "read_bytes", BROKEN),
    Failing("one file that cannot be read", Path, "read_bytes", BROKEN, once(1)),
    Failing("files that vanish", Path, "read_bytes", GONE),
    Failing("no memory for what is read", Path, "read_bytes", MemoryError()),
    Failing("stamps that cannot be set", os, "utime", READ_ONLY),
    Failing("an error nobody thought of", BlockFolder, "read", ZeroDivisionError("reader")),
]


@pytest.mark.parametrize("row", WRITES, ids=lambda row: row.name)
def test_writes_that_fail(
    opened: Open,
    folder: Path,
    right: list[Answer],
    others: list[Answer],
    row: Failing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = opened()
    with unharmed(engine, answering(others, OTHERS)):
        with monkeypatch.context() as patch:
            broken = Broken(patch, row.owner, row.call, row.when, row.error)
            found = [answers(submit(engine)) for _ in range(3)]
            written(engine)
        assert broken.fired
        for round in found:
            assert_right_or_told(round, right, None)
        assert number(engine, "disk_failed_tokens") > 0
        assert answers(submit(engine)) == right
    written(engine)
    engine.shutdown()
    assert blocks(folder)


@pytest.mark.parametrize("row", READS, ids=lambda row: row.name)
def test_reads_that_fail(
    opened: Open, right: list[Answer], row: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = restarted(opened, right)
    with unharmed(engine, answering(right)), monkeypatch.context() as patch:
        broken = Broken(patch, row.owner, row.call, row.when, row.error)
        assert_right_or_told(answers(submit(engine)), right, None)
    assert broken.fired


def test_a_load_into_the_pool_that_fails_ends_its_step_with_the_reason(
    opened: Open, right: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = restarted(opened, right)
    with unharmed(engine, answering(right)), monkeypatch.context() as patch:
        broken = Broken(patch, PoolCopy, "_load", once(0), ZeroDivisionError("half loaded"))
        found = answers(submit(engine))
    assert broken.fired
    assert_right_or_told(found, right, "half loaded")


# -- files that are not what they were --------------------------------------------------------


def _flip(files: Sequence[Path]) -> None:
    draw = random.Random(0)
    for file in files:
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)


def _truncate(files: Sequence[Path]) -> None:
    for i, file in enumerate(files):
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size * i // len(files))


def _swap(files: Sequence[Path]) -> None:
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)


def _remove_folder(files: Sequence[Path]) -> None:
    shutil.rmtree(files[0].parent)


def _remove_half(files: Sequence[Path]) -> None:
    for file in files[::2]:
        file.unlink()


def _fill_lock(files: Sequence[Path]) -> None:
    (files[0].parent / "lock").write_bytes(b"9" * 20)


def _spoil_lock(files: Sequence[Path]) -> None:
    (files[0].parent / "lock").write_bytes(os.urandom(64))


def _remove_lock(files: Sequence[Path]) -> None:
    (files[0].parent / "lock").unlink()


def _leave_temporaries(files: Sequence[Path]) -> None:
    for file in files:
        file.with_suffix(".tmp").write_bytes(file.read_bytes()[:100])


DAMAGES = {
    "a bit of every file": _flip,
    "truncated files": _truncate,
    "files with each other's names": _swap,
    "a folder that is gone": _remove_folder,
    "half of the files gone": _remove_half,
    "a lock that says the folder is full": _fill_lock,
    "a lock full of nonsense": _spoil_lock,
    "a lock that is gone": _remove_lock,
    "files half written by others": _leave_temporaries,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("restarted", [False, True], ids=["while it runs", "before a restart"])
def test_files_that_are_not_what_they_were(
    opened: Open, folder: Path, right: list[Answer], damage: str, restarted: bool
) -> None:
    engine = opened()
    with unharmed(engine, answering(right)) as watched:
        assert answers(submit(engine)) == right
        written(engine)
        if restarted:
            engine.shutdown()
        DAMAGES[damage](blocks(folder))
        if restarted:
            engine = watched.engine = opened()
        for _ in range(2):
            assert_right_or_told(answers(submit(engine)), right, None)
    engine.shutdown()
    left = BlockFolder(folder, 10**9)
    damaged = [key for key in sorted(left.keys()) if left.read(key) is None]
    assert left.keys().isdisjoint(damaged)  # reading them has removed them


# -- time and company -------------------------------------------------------------------------


def test_a_disk_that_is_slow_to_read_holds_up_only_its_own_readers(
    opened: Open, right: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = restarted(opened, right)
    gate, reading, read = threading.Event(), threading.Event(), Path.read_bytes

    def slow(path: Path) -> bytes:
        reading.set()
        gate.wait(PATIENCE)
        return read(path)

    with unharmed(engine, answering(right)), monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", slow)
        slowed = submit(engine)
        assert reading.wait(PATIENCE)
        other = engine.submit([70, 71, 72], FEW)
        assert len(other.result(PATIENCE)[0].token_ids) == 3
        gate.set()
        assert_right_or_told(answers(slowed), right, None)


def test_a_disk_that_is_slow_to_write_drops_blocks_and_holds_up_nobody(
    opened: Open, right: list[Answer], others: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, sync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        gate.wait(PATIENCE)
        sync(descriptor)

    engine = opened()
    with unharmed(engine, answering(others, OTHERS)), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        disk = engine._loop.model.disk
        assert disk is not None
        patch.setattr(disk.store, "_limit", 10_000)
        for _ in range(3):
            assert answers(submit(engine)) == right
        assert number(engine, "disk_dropped_tokens") > 0
        gate.set()
        written(engine)


def test_a_lock_that_another_process_holds_delays_writes_alone(
    opened: Open, folder: Path, right: list[Answer], others: list[Answer]
) -> None:
    engine = opened()
    with unharmed(engine, answering(others, OTHERS)):
        before = number(engine, "disk_spilled_tokens")
        with BlockFolder(folder, 10**9).locked():
            for _ in range(2):
                assert answers(submit(engine)) == right
            assert number(engine, "disk_spilled_tokens") == before
        written(engine)
        assert number(engine, "disk_spilled_tokens") > before


def test_two_engines_on_one_folder_at_a_time(
    opened: Open, folder: Path, right: list[Answer]
) -> None:
    engines = [opened(), opened()]
    with ExitStack() as both_unharmed:
        for engine in engines:
            start_workers(engine)
        for engine in engines:
            both_unharmed.enter_context(unharmed(engine, answering(right)))
        for _ in range(3):
            both = [submit(engine) for engine in engines]
            for futures in both:
                assert answers(futures) == right
        for engine in engines:
            written(engine)
            assert number(engine, "disk_broken_files") == 0


@pytest.mark.parametrize("jump", [-(10**18), 10**18, -3600 * 10**9], ids=["1970s", "2050s", "hour"])
def test_a_clock_that_jumps(
    opened: Open,
    right: list[Answer],
    others: list[Answer],
    jump: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, now, wall = opened(), time.time_ns, time.time
    with unharmed(engine, answering(others, OTHERS)), monkeypatch.context() as patch:
        assert answers(submit(engine, timeout=PATIENCE)) == right
        patch.setattr(time, "time_ns", lambda: now() + jump)
        patch.setattr(time, "time", lambda: wall() + jump / 1e9)
        for _ in range(2):
            assert answers(submit(engine, timeout=PATIENCE)) == right
        written(engine)
    assert number(engine, "disk_failed_tokens") == 0
