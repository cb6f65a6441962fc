"""Programs run with `stream=True`: reading waits for the body, and nothing is cut off silently."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.errors import EngineStoppedError, UnknownVariableError
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.testing import ScriptedBackend
from tests.patience import PATIENCE


class Slow:
    """A program whose body stops at every step until it is let on."""

    def __init__(self, steps: list[str]) -> None:
        self._turns = threading.Semaphore(0)
        self._steps = steps

    def start(self, backend: ScriptedBackend) -> Any:
        @sgl.function
        def program(s: Any) -> str:
            for number, step in enumerate(self._steps):
                assert self._turns.acquire(timeout=PATIENCE)
                if step == "gen":
                    s += f"{number}:" + sgl.gen(f"v{number}")
                elif step == "read":
                    s += sgl.gen(f"v{number}")
                    assert s[f"v{number}"] == "word"
                elif step == "set":
                    s[f"v{number}"] = "word"
                elif step == "fork":
                    forks = s.fork(2)
                    forks += sgl.gen(f"v{number}")
                    forks.join()
                else:
                    with s.var_scope(f"v{number}"):
                        s += "word"
                s.sync()  # in the body, this waits for what is submitted, not for the body
                assert f"v{number}" in s
            assert "".join(s.text_iter()) == s.text()
            return "returned"

        return program.run(backend=backend, stream=True)

    def go_on(self) -> None:
        self._turns.release()


READS = {
    "ret_value": lambda s: s.ret_value,
    "sync": lambda s: (s.sync(), s.text())[1],
    "text": lambda s: s.text(),
    "error": lambda s: (s.error(), s.ret_value)[1],
    "text_iter": lambda s: "".join(s.text_iter()),
    "repr": lambda s: repr(s)[len("ProgramState(") : -1],
    "fork": lambda s: s.fork()[0].text(),
}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(["gen", "read", "set", "fork", "scope"]), min_size=1, max_size=5),
    st.sampled_from(sorted(READS)),
    st.data(),
)
def test_reading_waits_for_the_body_that_will_submit_it(
    steps: list[str], name: str, data: st.DataObject
) -> None:
    slow = Slow(steps)
    state = slow.start(ScriptedBackend("word", piece=1))
    variable = data.draw(st.integers(0, len(steps) - 1))
    with ThreadPoolExecutor(4) as pool:
        value = pool.submit(lambda: state[f"v{variable}"])
        meta = pool.submit(lambda: state.get_meta_info(f"v{variable}"))
        pieces = pool.submit(lambda: "".join(state.text_iter(f"v{variable}")))
        whole = pool.submit(READS[name], state)
        for _ in steps:
            assert not whole.done()
            slow.go_on()
        expected = ["word"] * 2 if steps[variable] == "fork" else "word"
        assert value.result(PATIENCE) == expected
        assert pieces.result(PATIENCE) == "word"
        meta.result(PATIENCE)
        result = whole.result(PATIENCE)
    assert result == (state.ret_value if name in ("ret_value", "error") else state.text())
    assert state.ret_value == "returned"


def test_a_name_that_the_body_never_submits_is_unknown_once_it_has_ended() -> None:
    slow = Slow(["gen", "gen"])
    state = slow.start(ScriptedBackend("word"))
    with ThreadPoolExecutor(2) as pool:
        value = pool.submit(lambda: state["nobody"])
        meta = pool.submit(lambda: state.get_meta_info("nobody"))
        slow.go_on()
        assert state["v0"] == "word"
        assert not value.done()
        assert not meta.done()
        slow.go_on()
        with pytest.raises(UnknownVariableError, match="submitted so far: 'v0', 'v1'"):
            value.result(PATIENCE)
        assert meta.result(PATIENCE) is None


@pytest.mark.parametrize("read", [*READS.values(), lambda s: s["x"], lambda s: s["later"]])
def test_an_error_of_the_body_is_raised_wherever_the_state_is_read(read: Any) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a"
        raise LookupError("body")

    state = program.run(backend=ScriptedBackend(), stream=True)
    with pytest.raises(LookupError, match="body"):
        read(state)
    assert isinstance(state.error(), LookupError)


def test_a_streamed_program_may_be_appended_to_once_its_body_has_ended() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a" + sgl.gen("x")

    state = program.run(backend=ScriptedBackend("b"), stream=True)
    state.sync()
    state += "c" + sgl.gen("y")
    assert (state.text(), state["y"]) == ("abcb", "b")


@sgl.function
def ask(s: Any) -> str:
    s += "q" + sgl.gen("x")
    return str(s["x"])


@sgl.function
def leave(s: Any) -> None:
    s += "q" + sgl.gen("x")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("program", [ask, leave])
def test_leaving_an_engine_says_which_program_is_cut_off(program: Any) -> None:
    class Stopping(ScriptedBackend):
        def shutdown(self) -> None:
            for call in self.pending:
                call.future.set_exception(EngineStoppedError("the engine was shut down"))

    backend = Stopping("x", manual=True)
    before = set(threading.enumerate())
    state = program.run(backend=backend, stream=True)
    while not backend.pending:
        threading.Event().wait(0.01)
    (thread,) = set(threading.enumerate()) - before

    def stop() -> None:
        backend.shutdown()
        thread.join(PATIENCE)

    with pytest.warns(RuntimeWarning, match=rf"program {program.name}\(\) was cut off.*call sync"):
        stop()
    with pytest.raises(EngineStoppedError):
        state.text()


def python(source: str) -> subprocess.CompletedProcess[str]:
    script = "import sgl_mlx as sgl\nfrom sgl_mlx.testing import ScriptedBackend\n" + source
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


PROGRAM = """
@sgl.function
def ask(s):
    s += "q" + sgl.gen("x")
    s["x"]
"""


def test_python_says_which_program_its_end_cuts_off() -> None:
    source = PROGRAM + "state = ask.run(backend=ScriptedBackend('x', manual=True), stream=True)\n"
    ended = python(source)
    assert ended.returncode == 0
    assert "program ask() was still running when Python ended" in ended.stderr


def test_python_ends_silently_after_programs_that_ended_or_were_cancelled() -> None:
    source = (
        PROGRAM
        + "ask.run(backend=ScriptedBackend('x'), stream=True).sync()\n"
        + "state = ask.run(backend=ScriptedBackend('x', manual=True), stream=True)\n"
        + "state.cancel()\n"
    )
    ended = python(source)
    assert (ended.returncode, ended.stderr) == (0, "")


# -- text in pieces without streaming -------------------------------------------------------------


def test_reading_pieces_without_streaming_says_how_to_get_them_at_the_users_line() -> None:
    state = ask.run(backend=ScriptedBackend("one two three"))
    with pytest.warns(UserWarning, match="run the program with stream=True") as caught:
        assert list(state.text_iter()) == ["qone two three"]
    assert caught[0].filename == __file__

    async def collect() -> list[str]:
        return [piece async for piece in state]

    with pytest.warns(UserWarning, match="run the program with stream=True"):
        assert asyncio.run(collect()) == ["qone two three"]


def test_the_state_of_a_body_is_a_plain_one() -> None:
    @sgl.function
    def program(s: Any) -> type:
        return type(s)

    assert program.run(backend=ScriptedBackend(), stream=True).ret_value is ProgramState
