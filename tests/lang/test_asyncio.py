"""Programs under asyncio: hundreds at a time, cancelled as tasks are, with nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.errors import ProgramCancelled, RequestAborted
from sgl_mlx.lang.running import RunningProgram
from sgl_mlx.testing import ScriptedBackend
from tests.lang.selective import NEVER, PROGRAMS, Selective, read, unread
from tests.patience import PATIENCE


async def run_one(program: Any, word: str, backend: Any, stream: bool) -> str:
    state = await program.run_async(word, backend=backend, stream=stream)
    if stream:
        async for _ in state:
            pass
    return str(state.ret_value)


async def cancelled_soon(work: Coroutine[Any, Any, str], seconds: float, by_timeout: bool) -> str:
    """Run `work` and cancel it after a while, as handlers are cancelled."""
    if by_timeout:
        return await asyncio.wait_for(work, seconds)
    task = asyncio.ensure_future(work)
    await asyncio.sleep(seconds)
    task.cancel()
    return await task


CASES = st.lists(
    st.tuples(
        st.sampled_from(PROGRAMS),
        st.booleans(),  # never answered, and cancelled
        st.booleans(),  # stream
        st.floats(0, 0.05),  # seconds until it is cancelled
        st.booleans(),  # how
    ),
    min_size=1,
    max_size=100,
)


@settings(deadline=None, max_examples=25)
@given(CASES)
def test_of_many_programs_the_cancelled_end_and_the_others_do_not_notice(cases: Any) -> None:
    backend = Selective()

    async def main() -> list[Any]:
        works = []
        for program, cancelled, stream, seconds, by_timeout in cases:
            word = f"{NEVER if cancelled else 'now'} "
            work = run_one(program, word, backend, stream)
            works.append(cancelled_soon(work, seconds, by_timeout) if cancelled else work)
        results = await asyncio.gather(*works, return_exceptions=True)
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]
        return results

    results = asyncio.run(main())
    for (_, cancelled, _, _, by_timeout), result in zip(cases, results, strict=True):
        if cancelled:
            assert isinstance(result, TimeoutError if by_timeout else asyncio.CancelledError)
        else:
            assert result == "answer"
    backend.check_nothing_is_left()


def test_two_hundred_programs_wait_side_by_side_and_short_ones_pass_them() -> None:
    backend = Selective()

    async def main() -> list[str]:
        long = [asyncio.ensure_future(run_one(read, NEVER, backend, False)) for _ in range(200)]
        while len(backend.pending) < 200:
            await asyncio.sleep(0.01)
        short = [run_one(read, "now", backend, False) for _ in range(50)]
        answers = await asyncio.wait_for(asyncio.gather(*short), PATIENCE)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), PATIENCE) == "free"
        assert not any(task.done() for task in long)
        backend.run_all()
        return [*answers, *await asyncio.wait_for(asyncio.gather(*long), PATIENCE)]

    assert asyncio.run(main()) == ["answer"] * 250
    backend.check_nothing_is_left()


def test_the_body_of_a_cancelled_program_ends_at_its_next_word() -> None:
    backend, going, cancelled = Selective(), threading.Event(), threading.Event()
    seen: list[BaseException] = []

    @sgl.function
    def program(s: Any) -> None:
        going.set()
        assert cancelled.wait(PATIENCE)
        try:
            s += "a word"
        except BaseException as error:
            seen.append(error)
            raise

    async def main() -> None:
        task = asyncio.ensure_future(program.run_async(backend=backend))
        while not going.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    cancelled.set()
    backend.check_nothing_is_left()
    assert [type(error) for error in seen] == [ProgramCancelled]


def test_a_body_that_does_not_notice_holds_nobody_up() -> None:
    backend, stuck = Selective(), threading.Event()

    @sgl.function
    def program(s: Any) -> None:
        stuck.wait(PATIENCE)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(program.run_async(backend=backend), 0.01)

    asyncio.run(main())
    assert not stuck.is_set()
    stuck.set()
    backend.check_nothing_is_left()


def test_errors_of_the_body_and_of_generation_are_raised_where_it_is_awaited() -> None:
    @sgl.function
    def broken(s: Any) -> None:
        raise KeyError("body")

    with pytest.raises(KeyError, match="body"):
        asyncio.run(broken.run_async(backend=ScriptedBackend()))
    with pytest.raises(ValueError, match="boom"):
        asyncio.run(unread.run_async("a", backend=ScriptedBackend([ValueError("boom")])))
    with pytest.raises(sgl.ProgramError, match="it takes word"):
        asyncio.run(unread.run_async(nonsense="a", backend=ScriptedBackend("one")))


# -- streaming ------------------------------------------------------------------------------------


def test_streamed_pieces_come_while_the_body_waits() -> None:
    backend = Selective(piece=2)

    async def main() -> list[str]:
        state = await read.run_async("now ", backend=backend, stream=True)
        assert isinstance(state, RunningProgram)
        pieces = [piece async for piece in state.text_async_iter("x")]
        assert state.ret_value == "answer"
        return pieces

    pieces = asyncio.run(main())
    assert "".join(pieces) == "answer"


@pytest.mark.parametrize("how", ["with", "cancel", "drop", "reader"])
def test_a_streamed_program_ends_with_its_reader(how: str) -> None:
    backend = Selective()

    async def main() -> None:
        state = await read.run_async(NEVER, backend=backend, stream=True)
        while not backend.pending:
            await asyncio.sleep(0.01)
        if how == "with":
            with state:
                pass
        elif how == "cancel":
            state.cancel()
        elif how == "reader":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(state.text_async_iter("x")), 0.01)
        if how != "drop":
            with pytest.raises(RequestAborted):
                state["x"]

    asyncio.run(main())
    backend.check_nothing_is_left()
