"""Each row is a fault of a step or a callback: answers are right or errors, and nothing leaks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.models.adapter import Adapter
from sgl_mlx.runtime.attention.select import AttentionPaths
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool.kv import KVPool
from sgl_mlx.runtime.request.output import TextOutput
from sgl_mlx.runtime.request.request import Request
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.sampler import Sampled, Sampler
from sgl_mlx.runtime.scheduler.plan import Plan, PoolLost, StepResult
from tests.patience import PATIENCE
from tests.runtime.conftest import MakeEngine
from tests.runtime.faults import (
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
from tests.runtime.footprint import GROWTH, assert_no_growth

FIRE = ZeroDivisionError("device on fire")
NO_MEMORY = RuntimeError("[malloc] Unable to allocate 1073741824 bytes.")
TOLD = "the step failed: "
LONG = SamplingParams(temperature=0, max_new_tokens=250, ignore_eos=True)


class Fault(NamedTuple):
    """A call of `owner.name` that raises.

    `says` is what an error must say; with None, every answer must be right all the same.
    """

    name: str
    owner: Any
    call: str
    error: BaseException = FIRE
    says: str | None = None
    late: bool = False


ONCE = [
    Fault("a step, before it begins", ModelRunner, "run"),
    Fault("a step, when all is computed", ModelRunner, "run", late=True),
    Fault("the model", Adapter, "forward"),
    Fault("the model, when it has built its graph", Adapter, "forward", late=True),
    Fault("a plan of attention", AttentionPaths, "epoch"),
    Fault("an evaluation", mx, "eval", says=TOLD),
    Fault("a submission to the device", mx, "async_eval"),
    Fault("a sampler", Sampler, "sample"),
    Fault("a wait for tokens", Sampled, "wait"),
    Fault("a write to the pool, before it", KVPool, "write", says=TOLD),
    Fault("a write to the pool, behind it", KVPool, "write", says=TOLD, late=True),
    Fault("a transfer, before it", ModelRunner, "synchronise", says=TOLD),
    Fault("a transfer, behind it", ModelRunner, "synchronise", says=TOLD, late=True),
    Fault("a lost pool", ModelRunner, "run", PoolLost("states half written"), says=TOLD),
    Fault("no memory on the device", ModelRunner, "run", NO_MEMORY),
    Fault("no memory in Python", ModelRunner, "run", MemoryError()),
    Fault("no memory for a step's graph", Adapter, "forward", NO_MEMORY),
]
FOR_EVER = [
    Fault("every step", ModelRunner, "run", says=TOLD),
    Fault("every forward pass", Adapter, "forward", says=TOLD),
    Fault("every transfer", ModelRunner, "synchronise", says=TOLD),
    Fault("never any memory", ModelRunner, "run", NO_MEMORY, says="no room for a buffer"),
    Fault("every token's text", TextOutput, "push", says="ZeroDivisionError"),
]


@pytest.fixture(scope="module")
def right(toy_folder: Path) -> list[Answer]:
    with Engine(str(toy_folder), max_total_tokens=SLOTS) as engine:
        return answers(submit(engine))


@pytest.fixture
def engine(make_engine: MakeEngine, tmp_path: Path) -> Iterator[Engine]:
    """An engine with a small pool and a disk tier."""
    with all_ended():
        made = make_engine(max_total_tokens=SLOTS, disk_cache_dir=str(tmp_path))
        yield made
        made.shutdown()


@pytest.mark.parametrize("call", [0, 3])
@pytest.mark.parametrize("fault", ONCE, ids=lambda fault: fault.name)
def test_a_fault_that_comes_once(
    engine: Engine,
    right: list[Answer],
    fault: Fault,
    call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with unharmed(engine, answering(right)), monkeypatch.context() as patch:
        broken = Broken(patch, fault.owner, fault.call, once(call), fault.error, fault.late)
        found = [answers(submit(engine))]
        while not broken.fired:
            assert len(found) < 20, "the fault never came"
            assert engine.flush_cache()  # or soon all answers would be drafted
            found.append(answers(submit(engine)))
    for round in found:
        assert_right_or_told(round, right, fault.says)


@pytest.mark.parametrize("fault", FOR_EVER, ids=lambda fault: fault.name)
def test_a_fault_that_stays_for_a_while(
    engine: Engine, right: list[Answer], fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unharmed(engine, answering(right)), monkeypatch.context() as patch:
        Broken(patch, fault.owner, fault.call, always, fault.error)
        found = answers(submit(engine))
    assert all(isinstance(answer, Exception) for answer in found)
    assert_right_or_told(found, right, fault.says)


def test_memory_comes_back_that_a_failed_step_had_allocated(
    engine: Engine, right: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ModelRunner.run

    def fault() -> None:
        calls = itertools.count()

        def run_out_of_memory(runner: ModelRunner, plan: Plan) -> StepResult:
            if next(calls) == 0:
                held = mx.ones(2 * GROWTH, mx.uint8)
                mx.eval(held)
                raise copy(NO_MEMORY)
            return run(runner, plan)

        with monkeypatch.context() as patch:
            patch.setattr(ModelRunner, "run", run_out_of_memory)
            assert answers(submit(engine)) == right
        assert engine.flush_cache()

    with unharmed(engine, answering(right)):
        assert_no_growth(fault)


# -- callbacks and their thread ---------------------------------------------------------------


class Callbacks(NamedTuple):
    """A callback of one request; `error` is what that request's future has, or None."""

    name: str
    callback: Callable[[object], None]
    error: type[BaseException] | None


def _raise(error: BaseException) -> Callable[[object], None]:
    def callback(_: object) -> None:
        raise copy(error)

    return callback


RAISING = [
    Callbacks("an error", _raise(FIRE), ZeroDivisionError),
    Callbacks("an exit", _raise(SystemExit(3)), SystemExit),
    Callbacks("an interrupt", _raise(KeyboardInterrupt()), KeyboardInterrupt),
]


@pytest.mark.parametrize("row", RAISING, ids=lambda row: row.name)
def test_a_callback_that_raises(engine: Engine, right: list[Answer], row: Callbacks) -> None:
    with unharmed(engine, answering(right)):
        hurt = submit(engine, on_event=row.callback)
        unhurt = submit(engine)
        assert [type(future.exception(PATIENCE)) for future in hurt] == [row.error] * len(hurt)
        assert answers(unhurt) == right


@pytest.mark.parametrize("row", RAISING, ids=lambda row: row.name)
def test_a_callback_of_a_future_that_raises(
    engine: Engine, right: list[Answer], row: Callbacks
) -> None:
    with unharmed(engine, answering(right)):
        futures = submit(engine)
        for future in futures:
            future.add_done_callback(row.callback)
        assert answers(futures) == right


def test_a_completion_that_cannot_be_made(
    engine: Engine, right: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with unharmed(engine, answering(right)), monkeypatch.context() as patch:
        Broken(patch, Request, "_completion", once(0), FIRE)
        found = answers(submit(engine))
    assert sum(isinstance(answer, ZeroDivisionError) for answer in found) == 1


def test_a_callback_that_blocks_holds_up_its_own_request_alone(
    engine: Engine, right: list[Answer]
) -> None:
    gate, inside = threading.Event(), threading.Event()

    def block(_: object) -> None:
        inside.set()
        gate.wait(PATIENCE)

    with unharmed(engine, answering(right)):
        blocking = submit(engine, on_event=block)
        try:
            assert inside.wait(PATIENCE)
            events: list[Any] = []
            streamed = engine.submit([70, 71, 72], LONG, events.append)
            text = streamed.result(PATIENCE)[0].text
            assert "".join(event.text for event in events) == text
            assert answers(submit(engine)) == right
            assert not any(future.done() for future in blocking)
        finally:
            gate.set()
        assert answers(blocking) == right
