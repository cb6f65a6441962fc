"""Programs under asyncio on a real engine: cancelled ones leave no request behind."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.errors import RequestAborted
from sgl_mlx.lang.body import BodyThread
from sgl_mlx.runtime.engine import Engine

HANGS = 120
"""Seconds after which a thread that does not end counts as hanging."""

STEPS = 2
LONG, SHORT = 3000, 2


@pytest.fixture
def engine(smollm2: Engine) -> Iterator[Engine]:
    yield smollm2
    check_nothing_runs(smollm2)


def check_nothing_runs(engine: Engine) -> None:
    """Check that all bodies end, and that the engine computes no more than the step it was in.

    Aborts are orders to the engine's thread, and stats are an order behind them.
    """
    before = engine.get_server_info()["stats"]
    for thread in threading.enumerate():
        if isinstance(thread, BodyThread):
            thread.join(HANGS)
            assert not thread.is_alive()
    after = engine.get_server_info()["stats"]
    assert (after["running"], after["waiting"]) == (0, 0)
    assert after["forward_passes"] - before["forward_passes"] <= STEPS


@sgl.function
def count(s: Any, number: int, tokens: int) -> int:
    s += f"{number}: The numbers from one on are" + sgl.gen("x", tokens, ignore_eos=True)
    s += "." + sgl.gen("y", max_tokens=1)
    return len(s["x"] + s["y"])


@sgl.function
def branches(s: Any, number: int, tokens: int) -> int:
    s += f"{number}: The numbers are"
    forks = s.fork(2)
    forks += sgl.gen("x", tokens, ignore_eos=True)
    forks.join()
    return len(s["x"])


@sgl.function
def chosen(s: Any, number: int, tokens: int) -> int:
    s += f"{number} is a " + sgl.select("x", ["number", "colour"])
    s += sgl.gen("y", tokens, ignore_eos=True)
    return len(s["y"])


PROGRAMS = [count, branches, chosen]


def test_of_a_hundred_programs_half_are_cancelled_at_random(engine: Engine) -> None:
    draw = random.Random(0)

    async def one(number: int) -> int:
        program, stream = draw.choice(PROGRAMS), draw.random() < 0.5
        if number % 2:
            state = await program.run_async(number, SHORT, backend=engine)
            return int(state.ret_value)
        long = program.run_async(number, LONG, backend=engine, stream=stream)
        return await asyncio.wait_for(to_its_end(long), draw.uniform(0, 1))

    async def to_its_end(long: Any) -> int:
        state = await long
        async for _ in state:
            pass
        return int(state.ret_value)

    async def main() -> list[Any]:
        made = await asyncio.gather(*map(one, range(100)), return_exceptions=True)
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]
        return made

    results = asyncio.run(main())
    check_nothing_runs(engine)
    assert all(isinstance(result, TimeoutError) for result in results[::2])
    assert all(isinstance(result, int) and result > 0 for result in results[1::2])


def test_a_timeout_aborts_the_request(engine: Engine) -> None:
    with pytest.raises(TimeoutError, match="took longer than"):
        count.run(0, LONG, backend=engine, timeout=0.3)
    check_nothing_runs(engine)
    with pytest.raises(TimeoutError, match="a request took longer than"):
        count.run(0, LONG, backend=engine, request_timeout=0.3)


def test_dropping_or_leaving_a_streamed_program_aborts_its_request(engine: Engine) -> None:
    pieces = count.run(0, LONG, backend=engine, stream=True).text_iter("x")
    next(pieces)
    del pieces
    check_nothing_runs(engine)
    with count.run(0, LONG, backend=engine, stream=True) as state:  # type: ignore[attr-defined]
        next(state.text_iter("x"))
    with pytest.raises(RequestAborted):
        state.text()
