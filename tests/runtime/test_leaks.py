"""The checks of faults are worth what they find: something of every kind that is left behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sgl_mlx.runtime.disk.store import DiskReading
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.request.request import InFlight
from sgl_mlx.runtime.runner import ModelRunner
from tests.patience import PATIENCE
from tests.runtime.conftest import MakeEngine
from tests.runtime.faults import (
    SLOTS,
    Answer,
    Broken,
    answering,
    answers,
    submit,
    unharmed,
)
from tests.runtime.footprint import assert_no_growth


class Kept:
    """All that a leak keeps alive until the end of its test."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.over = threading.Event()

    def end(self) -> None:
        self.over.set()
        for thing in self.things:
            if isinstance(thing, threading.Thread):
                thread: threading.Thread = thing
                thread.join()
            elif hasattr(thing, "close"):
                thing.close()
        self.things.clear()


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.end()


@pytest.fixture
def engine(make_engine: MakeEngine, tmp_path: Path) -> Engine:
    return make_engine(max_total_tokens=SLOTS, disk_cache_dir=str(tmp_path))


def _runner(engine: Engine) -> ModelRunner:
    runner = engine._loop.model.runner
    assert isinstance(runner, ModelRunner)
    return runner


def _keep_an_array(engine: Engine, kept: Kept) -> None:
    array = mx.zeros(1)
    mx.eval(array)
    kept.things.append(array)


def _grow_the_pool(engine: Engine, kept: Kept) -> None:
    engine.run_on_model(lambda _: _runner(engine)._pool.grow(SLOTS + 8))


def _keep_a_thread(engine: Engine, kept: Kept) -> None:
    kept.things.append(threading.Thread(target=kept.over.wait, args=(PATIENCE,)))
    kept.things[-1].start()


def _keep_a_file(engine: Engine, kept: Kept) -> None:
    kept.things.append(socket.socket())


def _keep_a_slot(engine: Engine, kept: Kept) -> None:
    cache = engine._loop.model.scheduler.cache
    kept.things.append(engine.run_on_model(lambda _: cache.slots.alloc(1)))


def _keep_a_request(engine: Engine, kept: Kept) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InFlight, "_forget", lambda *_: None)
        answers(submit(engine))


def _keep_a_call(engine: Engine, kept: Kept) -> None:
    engine._loop._calls.add(Future())


def _keep_a_reading(engine: Engine, kept: Kept) -> None:
    disk = engine._loop.model.disk
    assert disk is not None
    disk.store._readings[99] = DiskReading(99, ())


def _keep_the_epoch_of_a_failed_step(engine: Engine, kept: Kept) -> None:
    """Fail a step as `test_faults` does, and keep what its runner had begun."""
    forget, runner = ModelRunner.forget_epoch, _runner(engine)

    def in_an_epoch(_: int) -> bool:
        return runner._decoding is not None and not kept.things

    with pytest.MonkeyPatch.context() as patch:

        def keep(runner: ModelRunner) -> None:
            kept.things.append(runner._decoding)
            forget(runner)

        patch.setattr(ModelRunner, "forget_epoch", keep)
        Broken(patch, ModelRunner, "run", in_an_epoch, ZeroDivisionError())
        answers(submit(engine))
    assert kept.things, "no step has failed"


LEAKS: dict[str, tuple[Callable[[Engine, Kept], None], str | None]] = {
    "an array": (_keep_an_array, "active: "),
    "slots of a pool": (_grow_the_pool, "pooled: "),
    "what a failed step had begun": (_keep_the_epoch_of_a_failed_step, "active: "),
    "a thread": (_keep_a_thread, "threads: "),
    "an open file": (_keep_a_file, "files: "),
    "a slot": (_keep_a_slot, None),
    "a request": (_keep_a_request, "no request is in flight"),
    "a call": (_keep_a_call, "no call waits"),
    "a reading": (_keep_a_reading, "readings are held"),
}
"""Leaks by what is left behind: how, and what the check says of it."""


@pytest.fixture(scope="module")
def right(toy_folder: Path) -> list[Answer]:
    with Engine(str(toy_folder), max_total_tokens=SLOTS) as engine:
        return answers(submit(engine))


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found(engine: Engine, kept: Kept, right: list[Answer], name: str) -> None:
    plant, told = LEAKS[name]

    def leak() -> None:
        with unharmed(engine, answering(right), seconds=0):
            plant(engine, kept)

    with pytest.raises(AssertionError, match=told):
        leak()


def test_where_nothing_is_left_nothing_is_found(engine: Engine, right: list[Answer]) -> None:
    with unharmed(engine, answering(right)):
        assert answers(submit(engine)) == right


def test_memory_that_a_fault_does_not_give_back_is_found() -> None:
    taken: list[bytes] = []
    said = r"10 times the same fault left (\d+ MiB, ){2}\d+ MiB behind"
    with pytest.raises(AssertionError, match=said):
        assert_no_growth(lambda: taken.append(b"x" * (4 << 20)))
    assert_no_growth(lambda: len(b"x" * (32 << 20)))
