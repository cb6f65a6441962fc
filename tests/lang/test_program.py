"""Programs: arguments and options, backends, binding, batches, errors of the body."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from types import GeneratorType
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import BackendError, BatchError, InvalidParamsError, ProgramError
from sgl_mlx.testing import ScriptedBackend
from tests.patience import PATIENCE


@sgl.function
def echo(s: Any, word: str, end: str = "!") -> str:
    s += "say " + word + end + sgl.gen("x")
    return word


@pytest.fixture(autouse=True)
def _no_default_backend() -> Iterator[None]:
    sgl.set_default_backend(None)
    yield
    sgl.set_default_backend(None)


def test_run_passes_arguments_and_keeps_the_returned_value() -> None:
    state = echo.run("hi", end="?", backend=ScriptedBackend("one"))
    assert (state.text(), state.ret_value) == ("say hi?one", "hi")


def test_run_returns_while_generation_goes_on() -> None:
    backend = ScriptedBackend("one", manual=True)
    state = echo.run("hi", backend=backend)
    assert "x" not in state
    backend.step()
    assert state["x"] == "one"


def test_use_thread_false_waits_for_generation() -> None:
    state = echo.run("hi", backend=ScriptedBackend("one"), use_thread=False)
    assert "x" in state


def test_sampling_parameters_of_run_hold_unless_gen_gives_its_own() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x") + sgl.gen("y", temperature=0.0, stop=["b", "c"])

    backend = ScriptedBackend("one")
    program.run(backend=backend, temperature=0.7, stop="a", max_new_tokens=9).sync()
    first, second = (call.params for call in backend.calls)
    assert first == SamplingParams(temperature=0.7, stop=("a",), max_new_tokens=9)
    assert second == SamplingParams(temperature=0.0, stop=("b", "c"), max_new_tokens=9)


def test_a_gen_without_any_parameters_has_sglangs_defaults() -> None:
    backend = ScriptedBackend("one")
    echo.run("hi", backend=backend).sync()
    sglangs = SamplingParams(max_new_tokens=128, temperature=1.0)
    assert backend.calls[0].params == replace(sglangs, token_healing=True)


def test_special_tokens_in_the_output_follow_global_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sgl.global_config, "skip_special_tokens_in_output", False)
    backend = ScriptedBackend("one")
    echo.run("hi", backend=backend).sync()
    assert backend.calls[0].params == SamplingParams(skip_special_tokens=False, token_healing=True)


def test_invalid_options_fail_at_once() -> None:
    with pytest.raises(InvalidParamsError, match="temperature"):
        echo.run("hi", backend=ScriptedBackend("one"), temperature=-1)


def test_without_a_backend_the_error_says_how_to_set_one() -> None:
    with pytest.raises(BackendError, match="set_default_backend"):
        echo.run("hi")


def test_an_object_that_is_no_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="is no backend"):
        echo.run("hi", backend=object())


def test_the_default_backend_runs_programs_called_like_functions() -> None:
    @sgl.function
    def outer(s: Any) -> None:
        inner = echo("inner")
        s += "got " + inner["x"]

    sgl.set_default_backend(ScriptedBackend("one"))
    assert outer.run().text() == "got one"


def test_nested_calls_progress_while_the_caller_goes_on() -> None:
    @sgl.function
    def outer(s: Any) -> None:
        first, second = echo("a"), echo("b")
        s += sgl.gen("own")
        s.ret_value = (first, second)
        s["inner"] = [first, second]

    backend = ScriptedBackend("one", manual=True)
    sgl.set_default_backend(backend)
    state = outer.run()
    assert backend.prompts == ["say a!", "say b!", ""]
    backend.run_all()
    assert [inner["x"] for inner in state["inner"]] == ["one", "one"]


def test_a_runtime_stands_for_its_endpoint() -> None:
    class Runtime:
        endpoint = ScriptedBackend("one")

    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen("a")

    runtime = Runtime()
    sgl.set_default_backend(runtime)
    assert sgl.global_config.default_backend is runtime
    assert program.run()["a"] == "one"
    assert Runtime.endpoint.prompts == ["x"]


def test_flush_cache_and_server_info_ask_the_backend_or_say_there_is_none() -> None:
    assert sgl.flush_cache() is False
    assert sgl.get_server_info() is None
    backend = ScriptedBackend(model_name="tiny")
    assert sgl.flush_cache(backend) is True
    sgl.set_default_backend(backend)
    info = sgl.get_server_info()
    assert info is not None
    assert info["model_path"] == "tiny"


# -- arguments ------------------------------------------------------------------------------------


def test_the_first_parameter_must_be_named_s() -> None:
    with pytest.raises(ProgramError, match="must be named s"):

        @sgl.function
        def program(state: Any) -> None: ...

    with pytest.raises(ProgramError, match="must be named s"):

        @sgl.function
        def empty() -> None: ...


def test_the_decorator_takes_options() -> None:
    @sgl.function(num_api_spec_tokens=64)
    def program(s: Any) -> None: ...

    assert program.num_api_spec_tokens == 64


@pytest.mark.parametrize("kwargs", [{}, {"word": "a", "nonsense": 1}])
def test_wrong_arguments_name_the_program_and_what_it_takes(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ProgramError, match=r"program echo\(\).*it takes word, end"):
        echo.run(**kwargs, backend=ScriptedBackend("one"))


@pytest.mark.parametrize("name", [f.name for f in fields(SamplingParams)] + ["timeout"])
@pytest.mark.parametrize("default", ["", "=None"])
def test_a_value_belongs_to_the_programs_own_parameter(name: str, default: str) -> None:
    namespace: dict[str, Any] = {}
    exec(
        f"def program(s, {name}{default}): s += str({name}) + sgl.gen('x')", {"sgl": sgl}, namespace
    )
    program, backend = sgl.function(namespace["program"]), ScriptedBackend("one")
    assert program.run(**{name: "a"}, backend=backend).text() == "aone"
    usual = SamplingParams(token_healing=backend.calls[0].params.token_healing)
    assert backend.calls[0].params == usual


@pytest.mark.parametrize(
    "source",
    [
        "async def program(s): s += 'a'",
        "def program(s): yield 'a'",
        "async def program(s): yield 'a'",
    ],
)
def test_a_function_whose_call_runs_nothing_is_no_program(source: str) -> None:
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    with pytest.raises(ProgramError, match=r"program\(\) must be an ordinary function.*run_async"):
        sgl.function(namespace["program"])


def test_a_state_is_iterated_as_its_text() -> None:
    with warnings.catch_warnings(action="ignore"):
        assert "".join(echo.run("hi", backend=ScriptedBackend("one"))) == "say hi!one"
    streamed = echo.run("hi", backend=ScriptedBackend("one two"), stream=True)
    assert "".join(streamed) == streamed.text()


def test_bind_settles_arguments() -> None:
    bound = echo.bind(word="hi")
    assert bound.run(end=".", backend=ScriptedBackend("one")).text() == "say hi.one"
    with pytest.raises(ProgramError, match="no parameter 'wrod'"):
        echo.bind(wrod="hi")


# -- errors of the body ---------------------------------------------------------------------------


def test_an_exception_of_the_body_propagates_and_cancels_what_is_in_flight() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x")
        raise RuntimeError("body")

    backend = ScriptedBackend("one", manual=True)
    with pytest.raises(RuntimeError, match="body"):
        program.run(backend=backend)
    assert backend.calls[0].future.cancelled()


def test_a_failed_generation_read_in_the_body_propagates_from_run() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x")
        s += s["x"]

    with pytest.raises(ValueError, match="boom"):
        program.run(backend=ScriptedBackend([ValueError("boom")]))


def test_streaming_runs_the_body_in_a_thread_and_its_errors_reach_the_reader() -> None:
    go_on = threading.Event()

    @sgl.function
    def program(s: Any) -> None:
        s += "a "
        assert go_on.wait(PATIENCE)
        s += sgl.gen("x")
        raise RuntimeError("body")

    state = program.run(backend=ScriptedBackend("one two"), stream=True)
    go_on.set()
    with pytest.raises(RuntimeError, match="body"):
        list(state.text_iter())


def test_streaming_yields_the_whole_text_in_order() -> None:
    state = echo.run("hi", backend=ScriptedBackend("one two three"), stream=True)
    assert "".join(state.text_iter()) == "say hi!one two three"


def test_dropping_a_streaming_state_half_read_cancels_its_request() -> None:
    backend = ScriptedBackend("one", manual=True)
    state = echo.run("hi", backend=backend, stream=True)
    pieces = state.text_iter()
    assert next(pieces) == "say hi!"
    while not backend.calls:
        threading.Event().wait(0.01)
    del state
    assert not backend.calls[0].future.cancelled()
    del pieces
    gc.collect()
    assert backend.calls[0].future.cancelled()


def test_run_async_returns_when_all_is_generated() -> None:
    state = asyncio.run(echo.run_async("hi", backend=ScriptedBackend("one")))
    assert "x" in state


# -- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[{"word": "a"}, {"word": "b"}], [["a"], ("b",)]])
@pytest.mark.parametrize("num_threads", ["auto", 1])
def test_a_batch_returns_states_in_order_with_all_generated(rows: Any, num_threads: Any) -> None:
    backend = ScriptedBackend(lambda prompt: prompt[4])
    states = echo.run_batch(rows, backend=backend, num_threads=num_threads)
    assert isinstance(states, list)
    assert ["x" in state for state in states] == [True, True]
    assert [state["x"] for state in states] == ["a", "b"]


def test_a_batch_of_nothing_is_empty() -> None:
    assert echo.run_batch([], backend=ScriptedBackend()) == []


def test_a_batch_takes_sampling_parameters() -> None:
    backend = ScriptedBackend("one")
    echo.run_batch([["a"]], backend=backend, temperature=0, max_new_tokens=3)
    params = backend.calls[0].params
    assert (params.temperature, params.max_new_tokens) == (0, 3)


def test_bodies_of_a_batch_wait_side_by_side() -> None:
    barrier = threading.Barrier(3, timeout=PATIENCE)

    @sgl.function
    def program(s: Any) -> None:
        barrier.wait()

    assert len(list(program.run_batch([[], [], []], backend=ScriptedBackend()))) == 3


def test_a_generator_of_states_is_lazy_and_complete() -> None:
    backend = ScriptedBackend("one")
    rows = [{"word": str(i)} for i in range(450)]
    states = echo.run_batch(rows, backend=backend, generator_style=True, num_threads=2)
    assert isinstance(states, GeneratorType)
    assert backend.calls == []
    assert [state.ret_value for state in states] == [str(i) for i in range(450)]


def test_a_failed_generation_spoils_its_own_state_alone() -> None:
    backend = ScriptedBackend({"say a": ValueError("boom"), "say b": "fine"})
    states = list(echo.run_batch([["a"], ["b"]], backend=backend))
    assert isinstance(states[0].error(), ValueError)
    with pytest.raises(ValueError, match="boom"):
        states[0]["x"]
    assert states[1]["x"] == "fine"


def test_an_exception_of_a_body_raises_from_the_batch() -> None:
    @sgl.function
    def program(s: Any, i: int) -> None:
        assert i != 1, "body"

    with pytest.raises(BatchError, match=r"1 of 3 rows raised: 1;.*AssertionError: body") as caught:
        program.run_batch([[0], [1], [2]], backend=ScriptedBackend())
    assert isinstance(caught.value.__cause__, AssertionError)


def test_the_progress_bar_shows_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    echo.run_batch([["a"], ["b"]], backend=ScriptedBackend("one"), progress_bar=True)
    assert "100%" in capsys.readouterr().out


@pytest.mark.parametrize("rows", ["ab", [1]])
def test_rows_of_a_batch_must_be_arguments(rows: Any) -> None:
    with pytest.raises(ProgramError, match="a dict or a list"):
        echo.run_batch(rows, backend=ScriptedBackend())


def test_the_number_of_threads_must_make_sense() -> None:
    with pytest.raises(ProgramError, match="num_threads"):
        echo.run_batch([["a"]], backend=ScriptedBackend("one"), num_threads=0)


def test_a_misspelt_option_of_a_batch_is_refused() -> None:
    with pytest.raises(InvalidParamsError, match="unknown sampling parameter 'temprature'"):
        echo.run_batch([["a"]], backend=ScriptedBackend("one"), temprature=0)
