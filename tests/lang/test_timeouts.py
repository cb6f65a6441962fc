"""Timeouts of programs and of their requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.errors import ProgramTimeout
from sgl_mlx.lang.clock import Alarm, clock
from tests.lang.selective import (
    NEVER,
    PROGRAMS,
    Selective,
    nested,
    nested_batch,
    retry,
    scored,
    unread,
)


def by_run(program: Any, **options: Any) -> Any:
    return program.run(NEVER, **options, use_thread=False)


def by_stream(program: Any, **options: Any) -> Any:
    return program.run(NEVER, **options, stream=True).sync()


def by_async(program: Any, **options: Any) -> Any:
    return asyncio.run(program.run_async(NEVER, **options))


@pytest.mark.parametrize("timeout", ["timeout", "request_timeout"])
@pytest.mark.parametrize("run", [by_run, by_stream, by_async])
@settings(deadline=None, max_examples=6)
@given(program=st.sampled_from([p for p in PROGRAMS if p is not retry]))
def test_a_program_ends_when_its_time_is_up(program: Any, run: Any, timeout: str) -> None:
    if timeout == "request_timeout" and program in (nested, nested_batch, scored):
        timeout = "timeout"  # these programs send no request from their own stream
    backend = Selective()
    with pytest.raises(ProgramTimeout, match=r"took longer than 0\.01 s") as caught:
        run(program, backend=backend, **{timeout: 0.01})
    assert isinstance(caught.value, TimeoutError)
    backend.check_nothing_is_left()


def test_a_program_that_retries_ends_when_its_time_is_up() -> None:
    backend = Selective()
    with pytest.raises(ProgramTimeout):
        retry.run(NEVER, backend=backend, timeout=0.01)
    backend.check_nothing_is_left()


def test_a_program_in_time_keeps_its_values_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rings: list[Callable[[], object]] = []

    def after(seconds: float, ring: Callable[[], object]) -> Alarm:
        rings.append(ring)
        return Alarm(seconds, ring)

    monkeypatch.setattr(clock, "after", after)
    state = unread.run("now", backend=Selective(), timeout=1, request_timeout=1)
    assert rings
    for ring in rings:
        ring()
    assert (state.text(), state["x"]) == ("nowanswer", "answer")
    assert state.error() is None


def test_a_body_may_answer_a_late_request_with_something_else() -> None:
    @sgl.function
    def program(s: Any) -> str:
        fork = s.fork()[0]
        fork += NEVER + sgl.gen("x")
        try:
            return str(fork["x"])
        except TimeoutError:
            s += "instead"
            return "instead"

    state = program.run(backend=Selective(), request_timeout=0.01)
    assert (state.ret_value, state.text()) == ("instead", "instead")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", True, [], 1 << 80])
@pytest.mark.parametrize("name", ["timeout", "request_timeout"])
def test_a_timeout_is_a_number_of_seconds(name: str, value: Any) -> None:
    run = partial(unread.run, "now", backend=Selective(), **{name: value})
    if value == 1 << 80:
        assert run()["x"] == "answer"
    else:
        with pytest.raises(
            sgl.InvalidParamsError, match=f"{name} must be a positive number of seconds"
        ):
            run()


def test_a_parameter_called_timeout_belongs_to_the_program() -> None:
    @sgl.function
    def program(s: Any, timeout: str) -> None:
        s += timeout

    assert program.run(timeout="mine", backend=Selective()).text() == "mine"
