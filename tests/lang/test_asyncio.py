"""Programs under asyncio: hundreds at a time, cancelled as tasks are, with nothing left behind."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.errors import BatchError, ProgramCancelled, ProgramTimeout, RequestAborted
from sgl_mlx.lang.body import BodyThread
from sgl_mlx.lang.running import RunningProgram
from sgl_mlx.testing import Call, ScriptedBackend

WAIT = 30  # seconds before a test that hangs is called a failure
NEVER = "never"


class Selective(ScriptedBackend):
    """Answers at once, except for prompts that contain NEVER."""

    def __init__(self, **options: Any) -> None:
        super().__init__("answer", manual=True, logprobs={"a": -1.0}, **options)

    def _ask(self, call: Call, answer: Callable[[], Any]) -> Future[Any]:
        future = super()._ask(call, answer)
        if NEVER not in call.text:
            self.step(call)
        return future

    def left(self) -> list[str]:
        """Return what still runs: unanswered requests and threads of bodies."""
        threads = [t.name for t in threading.enumerate() if isinstance(t, BodyThread)]
        return threads + [call.text for call in self.pending]

    def check_nothing_is_left(self) -> None:
        end = time.monotonic() + WAIT
        while self.left() and time.monotonic() < end:
            threading.Event().wait(0.01)
        assert self.left() == []


@sgl.function
def read(s: Any, word: str) -> str:
    s += word + sgl.gen("x")
    return str(s["x"])


@sgl.function
def unread(s: Any, word: str) -> str:
    s += word + sgl.gen("x")
    return "answer"


@sgl.function
def retry(s: Any, word: str) -> str:
    """Catch every exception and try again, as programs for unreliable servers do."""
    while True:
        try:
            s += word + sgl.gen("x")
            return str(s["x"])
        except Exception:
            pass


@sgl.function
def branches(s: Any, word: str) -> str:
    forks = s.fork(3)
    forks += word + sgl.gen("x")
    forks.join()
    return str(s["x"][0])


@sgl.function
def threaded_branches(s: Any, word: str) -> str:
    forks = s.fork(2)
    forks += word + sgl.gen("x")
    with ThreadPoolExecutor(2) as pool:
        return str(next(pool.map(lambda fork: fork["x"], forks)))


@sgl.function
def nested(s: Any, word: str) -> str:
    backend = s.stream_executor.backend
    inner = read.run(word, backend=backend)
    return str(inner.ret_value)


@sgl.function
def nested_batch(s: Any, word: str) -> str:
    backend = s.stream_executor.backend
    states = read.run_batch([[word], [word]], backend=backend)
    return str(next(iter(states)).ret_value)


@sgl.function
def scored(s: Any, word: str) -> str:
    s += word
    return "answer" if sgl.score(s, ["a", "b"]).decision == "a" else ""


@sgl.function
def chosen(s: Any, word: str) -> str:
    s += word + sgl.select("x", ["a", "b"])
    return "answer" if s["x"] == "a" else ""


PROGRAMS = [
    read,
    unread,
    retry,
    branches,
    threaded_branches,
    nested,
    nested_batch,
    scored,
    chosen,
    read.compile(),
    branches.compile(),
]


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
        answers = await asyncio.wait_for(asyncio.gather(*short), WAIT)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), WAIT) == "free"
        assert not any(task.done() for task in long)
        backend.run_all()
        return [*answers, *await asyncio.wait_for(asyncio.gather(*long), WAIT)]

    assert asyncio.run(main()) == ["answer"] * 250
    backend.check_nothing_is_left()


def test_the_body_of_a_cancelled_program_ends_at_its_next_word() -> None:
    backend, going, cancelled = Selective(), threading.Event(), threading.Event()
    seen: list[BaseException] = []

    @sgl.function
    def program(s: Any) -> None:
        going.set()
        assert cancelled.wait(WAIT)
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
        stuck.wait(WAIT)

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


# -- timeouts -------------------------------------------------------------------------------------


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
        timeout = "timeout"  # their own stream asks nothing
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


def test_a_program_in_time_keeps_its_values_when_the_time_is_up() -> None:
    state = unread.run("now", backend=Selective(), timeout=0.02, request_timeout=0.02)
    threading.Event().wait(0.1)
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
        with pytest.raises(sgl.InvalidParamsError, match=f"{name} must be a number of seconds"):
            run()


def test_a_parameter_called_timeout_belongs_to_the_program() -> None:
    @sgl.function
    def program(s: Any, timeout: str) -> None:
        s += timeout

    assert program.run(timeout="mine", backend=Selective()).text() == "mine"


# -- batches --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from(["now", "raise", "wrong"]), max_size=30),
    st.integers(1, 8),
    st.sampled_from(["list", "generator", "async list", "async generator"]),
)
def test_a_row_that_raises_is_named_and_loses_no_other(
    words: list[str], num_threads: int, form: str
) -> None:
    @sgl.function
    def program(s: Any, word: str) -> str:
        s += word + sgl.gen("x")
        if word == "raise":
            raise LookupError(word)
        return word

    rows = [{"nonsense": 1} if word == "wrong" else {"word": word} for word in words]
    options: dict[str, Any] = {"backend": Selective(), "num_threads": num_threads}
    states: list[Any] = []

    async def collect() -> None:
        if form == "async list":
            states.extend(await program.run_batch_async(rows, **options))  # type: ignore[arg-type]
        else:
            made: Any = await program.run_batch_async(rows, generator_style=True, **options)
            async for state in made:
                states.append(state)

    def run() -> None:
        if form.startswith("async"):
            asyncio.run(collect())
        else:
            states.extend(program.run_batch(rows, generator_style=form == "generator", **options))

    bad = [i for i, word in enumerate(words) if word != "now"]
    if bad:
        with pytest.raises(BatchError, match=f"{len(bad)} of {len(rows)} rows raised") as caught:
            run()
        assert list(caught.value.errors) == bad
        assert caught.value.__cause__ is caught.value.errors[bad[0]]
        states = states or caught.value.states
    else:
        run()
    assert len(states) == len(rows)
    for word, state in zip(words, states, strict=True):
        if word == "now":
            assert (state.ret_value, state["x"]) == ("now", "answer")
        else:
            assert isinstance(state.error(), LookupError if word == "raise" else sgl.ProgramError)


@pytest.mark.parametrize("generator", [False, True])
def test_cancelling_a_batch_ends_its_rows(generator: bool) -> None:
    backend = Selective()
    rows = [[random.choice(["now", NEVER])] for _ in range(60)] + [[NEVER]]

    async def collect() -> None:
        made: Any = await read.run_batch_async(rows, backend=backend, generator_style=generator)
        async for _ in made:
            pass

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(collect(), 0.1)

    asyncio.run(main())
    backend.check_nothing_is_left()


def test_a_generator_of_a_batch_that_is_closed_ends_its_rows() -> None:
    backend = Selective()
    rows = [["now"]] + [[NEVER]] * 20
    states: Any = read.run_batch(rows, backend=backend, generator_style=True)
    assert next(states).ret_value == "answer"
    states.close()
    backend.check_nothing_is_left()
