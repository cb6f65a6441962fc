"""Faults in one request, or in the engine, and who hears of them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import EngineStoppedError, RequestAborted, SglError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.request.output import TextOutput
from sgl_mlx.runtime.runner import ModelRunner
from sgl_mlx.runtime.scheduler.plan import Decode, Plan, StepResult
from tests.patience import PATIENCE
from tests.runtime.checks import assert_holds_nothing

GREEDY = SamplingParams(temperature=0, max_new_tokens=6)
LONG = SamplingParams(temperature=0, max_new_tokens=400, ignore_eos=True)
PROMPT = (Text("ab a"),)


@contextmanager
def paused(engine: Engine) -> Iterator[None]:
    """The engine thread stands still between two turns; orders queue up."""
    reached, go_on = threading.Event(), threading.Event()

    def stand_still(_: object) -> None:
        reached.set()
        go_on.wait(PATIENCE)

    thread = threading.Thread(target=lambda: engine.run_on_model(stand_still))
    thread.start()
    assert reached.wait(PATIENCE)
    try:
        yield
    finally:
        go_on.set()
        thread.join()


# -- requests given up ------------------------------------------------------------------------


def test_an_abandoned_stream_frees_its_slots(toy: Engine) -> None:
    stream = toy.generate("ab a", LONG, stream=True)
    next(stream)
    assert not toy.flush_cache()  # the request runs
    stream.close()
    assert_holds_nothing(toy)


def test_a_cancelled_future_frees_its_slots_whether_it_runs_or_waits(toy: Engine) -> None:
    heard = threading.Event()
    running = toy.submit(PROMPT, LONG, lambda _: heard.set())
    assert heard.wait(PATIENCE)
    with paused(toy):
        waiting = toy.submit((Text("x"),), LONG)
        assert waiting.cancel()
        assert running.cancel()
    assert_holds_nothing(toy)
    with pytest.raises(CancelledError):
        running.result(0)


def test_cancelling_one_request_leaves_those_beside_it_as_they_are(toy: Engine) -> None:
    alone = toy.submit(PROMPT, LONG).result(PATIENCE)[0]
    heard = threading.Event()
    victim = toy.submit((Text("b a"),), LONG, lambda _: heard.set())
    kept = toy.submit(PROMPT, LONG)
    assert heard.wait(PATIENCE)
    victim.cancel()
    assert kept.result(PATIENCE)[0].token_ids == alone.token_ids


def test_cancelling_scores_gives_up_every_choice(toy: Engine) -> None:
    with paused(toy):
        assert toy.score(PROMPT, ["a", "b", "x"], unconditional=True).cancel()
    assert_holds_nothing(toy)


def test_a_callback_that_raises_fails_its_own_request_alone(toy: Engine) -> None:
    alone = toy.submit((Text("b a"),), LONG).result(PATIENCE)[0]

    def fail(piece: str) -> None:
        raise ZeroDivisionError("the caller's own")

    with paused(toy):
        hurt = toy.submit(PROMPT, LONG, fail)
        unhurt = toy.submit((Text("b a"),), LONG)
    with pytest.raises(ZeroDivisionError, match="the caller's own"):
        hurt.result(PATIENCE)
    assert unhurt.result(PATIENCE)[0].token_ids == alone.token_ids
    assert_holds_nothing(toy)


def test_a_slow_callback_does_not_hold_up_the_model(toy: Engine) -> None:
    gate = threading.Event()
    slow = toy.submit(PROMPT, GREEDY, lambda _: gate.wait(PATIENCE) and None)
    toy.run_on_model(lambda _: None)  # turns go on while the callback waits
    while toy.get_server_info()["stats"]["running"]:
        pass
    assert not slow.done()
    gate.set()
    assert slow.result(PATIENCE)


# -- steps that fail --------------------------------------------------------------------------


Fault = Callable[[int, set[str]], bool]


@pytest.fixture
def fail_where(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Makes the steps fail for which `fault(call, ids)` is true; calls count from 0."""

    def install(fault: Fault) -> None:
        run, calls = ModelRunner.run, itertools.count()

        def run_or_fail(self: ModelRunner, plan: Plan) -> StepResult:
            ids = plan.ids if isinstance(plan, Decode) else [row.id for row in plan.rows]
            if fault(next(calls), set(ids)):
                raise ZeroDivisionError("device on fire")
            return run(self, plan)

        monkeypatch.setattr(ModelRunner, "run", run_or_fail)

    return install


TEXTS = ("ab a", "b", "a b b a", "x y")
NAMES = [f"row {text}" for text in TEXTS]


def together(engine: Engine) -> list[Any]:
    """The futures of four requests that start in one step."""
    assert engine.flush_cache()
    with paused(engine):
        rows = zip(TEXTS, NAMES, strict=True)
        return [engine.submit((Text(t),), GREEDY, rid=name) for t, name in rows]


def tokens_of(futures: Sequence[Any]) -> list[tuple[int, ...]]:
    return [future.result(PATIENCE)[0].token_ids for future in futures]


@pytest.mark.parametrize("step", [0, 1, 2, 5], ids=["prefill", "opening", "decode", "later"])
def test_a_step_that_fails_once_changes_no_answer(
    make_engine: Callable[..., Engine], fail_where: Callable[[Fault], None], step: int
) -> None:
    engine = make_engine()
    right = tokens_of(together(engine))
    fail_where(lambda call, _: call == step)
    assert tokens_of(together(engine)) == right
    assert_holds_nothing(engine)


@pytest.mark.parametrize("first", [0, 1, 2, 5])
@pytest.mark.parametrize("guilty", range(4))
def test_the_row_that_makes_steps_fail_ends_alone(
    make_engine: Callable[..., Engine],
    fail_where: Callable[[Fault], None],
    first: int,
    guilty: int,
) -> None:
    engine = make_engine()
    right = tokens_of(together(engine))
    fail_where(lambda call, ids: call >= first and NAMES[guilty] in ids)
    futures = together(engine)
    with pytest.raises(RequestAborted, match="step failed: ZeroDivisionError: device on fire"):
        futures[guilty].result(PATIENCE)
    del futures[guilty], right[guilty]
    assert tokens_of(futures) == right
    assert_holds_nothing(engine)


def test_steps_that_always_fail_end_their_requests_and_the_engine_goes_on(
    make_engine: Callable[..., Engine], fail_where: Callable[[Fault], None]
) -> None:
    engine = make_engine()
    right = tokens_of(together(engine))
    broken = True
    fail_where(lambda *_: broken)
    for future in together(engine):
        with pytest.raises(RequestAborted, match="ZeroDivisionError: device on fire"):
            future.result(PATIENCE)
    assert_holds_nothing(engine)
    broken = False
    assert tokens_of(together(engine)) == right


def test_a_pool_that_cannot_be_brought_up_to_date_ends_all_requests(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    right = tokens_of(together(engine))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("pool on fire")

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "synchronise", fail)
        for future in together(engine):
            with pytest.raises(RequestAborted, match="ZeroDivisionError: pool on fire"):
                future.result(PATIENCE)
    assert tokens_of(together(engine)) == right
    assert_holds_nothing(engine)


def test_an_output_that_cannot_take_its_token_fails_its_own_request_alone(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    right = tokens_of(together(engine))
    push = TextOutput.push

    def push_or_fail(self: TextOutput, token: int, *rest: Any) -> Any:
        if self._params.stop == ("never",):
            raise ZeroDivisionError("text on fire")
        return push(self, token, *rest)

    monkeypatch.setattr(TextOutput, "push", push_or_fail)
    assert engine.flush_cache()
    with paused(engine):
        hurt = engine.submit(PROMPT, GREEDY.override(stop="never"))
        unhurt = [engine.submit((Text(t),), GREEDY) for t in TEXTS]
    with pytest.raises(RequestAborted, match="ZeroDivisionError: text on fire"):
        hurt.result(PATIENCE)
    assert tokens_of(unhurt) == right
    assert_holds_nothing(engine)


# -- the end ----------------------------------------------------------------------------------


def test_shutdown_fails_what_is_unfinished_and_returns(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    heard = threading.Event()
    running = engine.submit(PROMPT, LONG, lambda _: heard.set())
    assert heard.wait(PATIENCE)
    queued = [engine.submit((Text("x"),), LONG) for _ in range(3)]
    scores = engine.score(PROMPT, ["a", "b"])
    engine.shutdown()
    for future in [running, *queued, scores]:
        with pytest.raises(EngineStoppedError, match="shut down"):
            future.result(0)  # type: ignore[attr-defined]
    engine.shutdown()  # a second time does nothing


def test_orders_given_just_before_the_end_are_answered(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(engine.get_server_info())
        except SglError as error:
            found.append(error)

    with paused(engine):
        late = engine.submit(PROMPT, LONG)
        asking = threading.Thread(target=ask)
        asking.start()
        stopping = threading.Thread(target=engine.shutdown)
        stopping.start()
    for thread in (asking, stopping):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(found) == 1
    with pytest.raises(EngineStoppedError):
        late.result(0)


def test_calls_after_the_end_say_so(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.shutdown()
    calls: list[Callable[[], object]] = [
        lambda: engine.generate("ab"),
        lambda: list(engine.generate("ab", stream=True)),
        lambda: engine.submit(PROMPT, GREEDY),
        lambda: engine.score(PROMPT, ["a"]),
        engine.flush_cache,
        engine.get_server_info,
    ]
    for call in calls:
        with pytest.raises(EngineStoppedError, match="make a new one"):
            call()


def test_a_callback_that_raises_while_the_engine_stops_hurts_nobody_else(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    inside, go_on = threading.Event(), threading.Event()

    def fail(piece: str) -> None:
        inside.set()
        go_on.wait(PATIENCE)
        raise ZeroDivisionError

    hurt = engine.submit(PROMPT, LONG, fail)
    other = engine.submit((Text("x"),), LONG)
    assert inside.wait(PATIENCE)
    stopping = threading.Thread(target=engine.shutdown)
    stopping.start()
    while True:  # until the gate is closed
        try:
            engine.get_server_info()
        except EngineStoppedError:
            break
    go_on.set()
    stopping.join(PATIENCE)
    with pytest.raises(ZeroDivisionError):
        hurt.result(0)
    with pytest.raises(EngineStoppedError):
        other.result(0)


def test_an_engine_used_with_with_is_shut_down(make_engine: Callable[..., Engine]) -> None:
    with make_engine() as engine:
        assert engine.generate("ab", GREEDY)["output_ids"]
    with pytest.raises(EngineStoppedError):
        engine.generate("ab")
