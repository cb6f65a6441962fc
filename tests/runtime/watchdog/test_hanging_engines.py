"""An engine whose step hangs, or whose thread dies: who is told, and what works afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import EngineStoppedError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Plan, StepResult
from sgl_mlx.runtime.scheduler.scheduler import Scheduler
from tests.patience import PATIENCE, eventually
from tests.runtime.conftest import MakeEngine
from tests.runtime.faults import all_ended, unharmed

GREEDY = SamplingParams(temperature=0, max_new_tokens=6)
PROMPT = (Text("ab a"),)


class Hanging:
    """A runner's `run` that hangs while `gate` is closed; `reached` is set when it does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()
        run = ModelRunner.run

        def run_or_hang(runner: ModelRunner, plan: Plan) -> StepResult:
            if not self.gate.is_set():
                self.reached.set()
                self.gate.wait(PATIENCE)
            return run(runner, plan)

        patch.setattr(ModelRunner, "run", run_or_hang)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    made = Hanging(monkeypatch)
    yield made
    made.gate.set()


@pytest.fixture
def engine(make_engine: MakeEngine, hanging: Hanging) -> Iterator[Engine]:
    """An engine with a short patience, which has seen the steps of these tests before."""
    with all_ended():
        made = make_engine(watchdog_seconds=0.3)
        for _ in range(2):
            made.submit(PROMPT, GREEDY).result(PATIENCE)
            assert made.flush_cache()
        yield made
        hanging.gate.set()
        made.shutdown()


def failures(*futures: Future[Any]) -> list[BaseException | None]:
    return [future.exception(PATIENCE) for future in futures]


def test_a_step_that_hangs_fails_all_that_waits_for_it(engine: Engine, hanging: Hanging) -> None:
    hanging.gate.clear()
    events: list[object] = []
    submitted = engine.submit(PROMPT, GREEDY, events.append)
    assert hanging.reached.wait(PATIENCE)
    scored = engine.score(PROMPT, ["a", "b"])
    asked: Future[Any] = Future()

    def ask() -> None:
        try:
            asked.set_result(engine.get_server_info())
        except EngineStoppedError as error:
            asked.set_exception(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for error in failures(submitted, scored, asked):
        assert isinstance(error, EngineStoppedError)
        assert "has not ended in" in str(error)
    thread.join()
    assert engine.failure is not None
    for call in (lambda: engine.submit(PROMPT, GREEDY), engine.get_server_info):
        with pytest.raises(EngineStoppedError, match="takes requests again once"):
            call()


def test_when_the_step_ends_after_all_the_engine_serves_again(
    engine: Engine, hanging: Hanging
) -> None:
    right = engine.submit(PROMPT, GREEDY).result(PATIENCE)[0].token_ids

    def assert_right(engine: Engine) -> None:
        assert engine.submit(PROMPT, GREEDY).result(PATIENCE)[0].token_ids == right

    with unharmed(engine, assert_right):
        hanging.gate.clear()
        failures(engine.submit(PROMPT, GREEDY))
        hanging.gate.set()
        eventually(lambda: engine.failure is None, "the engine serves again")


def test_an_engine_that_hangs_can_be_shut_down(engine: Engine, hanging: Hanging) -> None:
    hanging.gate.clear()
    waiting = engine.submit(PROMPT, GREEDY)
    engine.shutdown()
    assert isinstance(waiting.exception(PATIENCE), EngineStoppedError)
    with pytest.raises(EngineStoppedError):
        engine.submit(PROMPT, GREEDY)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("broken", [False, True], ids=["dies", "dies twice"])
def test_a_thread_that_dies_is_told_with_its_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """Even if its last act, to tell the requests, fails too."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("scheduler on fire")

    monkeypatch.setattr(Scheduler, "next", fail)
    if broken:
        monkeypatch.setattr(Scheduler, "fail_all", fail)
    [error] = failures(engine.submit(PROMPT, GREEDY))
    assert isinstance(error, EngineStoppedError)
    assert "the engine's thread died: ZeroDivisionError: scheduler on fire" in str(error)
    with pytest.raises(EngineStoppedError, match="scheduler on fire"):
        engine.submit(PROMPT, GREEDY)
    assert "scheduler on fire" in str(engine.failure)
    engine.shutdown()
