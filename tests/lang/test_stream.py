"""Streams: submitting never waits, nothing hangs, and errors name the line they come from."""

from __future__ import annotations

import gc
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Image, SamplingParams, StreamEvent, Text, Video
from sgl_mlx.errors import (
    InvalidParamsError,
    NotYetError,
    ProgramError,
    RequestAborted,
    UnknownVariableError,
)
from sgl_mlx.lang.ir import Variable
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.stream import Stream
from sgl_mlx.lang.templates.chat_template import get_chat_template
from sgl_mlx.lang.transcript import Transcript
from sgl_mlx.testing import Call, ScriptedBackend
from tests.patience import PATIENCE


def new_state(backend: ScriptedBackend, streaming: bool = False) -> ProgramState:
    transcript = Transcript(partial(get_chat_template, "default"))
    return ProgramState(Stream(backend, transcript, SamplingParams(), streaming))


def test_appending_does_not_wait_for_generation() -> None:
    backend = ScriptedBackend(["one", "two"], manual=True)
    s = new_state(backend)
    s += "a:" + sgl.gen("x") + " b:" + sgl.gen("y")
    s += " end"
    assert backend.prompts == ["a:"]
    assert "x" not in s
    backend.run_all()
    assert s.text() == "a:one b:two end"


def test_the_next_request_follows_from_the_answer_without_the_program() -> None:
    backend = ScriptedBackend(["one", "two"], manual=True)
    s = new_state(backend)
    s += "a:" + sgl.gen("x") + " b:" + sgl.gen("y")
    backend.step()
    assert backend.prompts == ["a:", "a:one b:"]


def test_reading_waits_for_its_own_variable_alone() -> None:
    backend = ScriptedBackend(["one", "two"], manual=True)
    s = new_state(backend)
    s += sgl.gen("x") + sgl.gen("y")
    backend.step()
    assert s["x"] == "one"
    assert "x" in s
    assert "y" not in s


def test_a_reader_wakes_when_another_thread_answers() -> None:
    backend = ScriptedBackend(["one"], manual=True)
    s = new_state(backend)
    s += sgl.gen("x")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(s.get_var, "x")
        backend.step()
        assert reading.result(PATIENCE) == "one"


def test_a_name_never_submitted_is_a_key_error_at_once() -> None:
    backend = ScriptedBackend("hi", manual=True)
    s = new_state(backend)
    s += sgl.gen("x")
    with pytest.raises(UnknownVariableError, match=r"no variable 'z'.*submitted so far: 'x'"):
        s["z"]
    with pytest.raises(KeyError):
        s["z"]


def test_a_thousand_queued_answers_do_not_exhaust_the_stack() -> None:
    first_pending = ScriptedBackend("x", manual=True)
    s = new_state(first_pending)
    for _ in range(1000):
        s += sgl.gen("x")
    first_pending._manual = False  # all that follow answer inside submit()
    first_pending.step()
    assert s.text() == "x" * 1000


def test_many_threads_may_append_to_one_state() -> None:
    backend = ScriptedBackend("x")
    s = new_state(backend)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: s.extend(sgl.gen(f"v{i}")), range(64)))
    assert s.text() == "x" * 64


@pytest.mark.filterwarnings("ignore:text_iter.. gives one piece")
@pytest.mark.parametrize(
    "read",
    [
        lambda s: s["x"],
        lambda s: s.text(),
        lambda s: s.messages(),
        lambda s: s.sync(),
        lambda s: s.get_meta_info("x"),
        lambda s: list(s.text_iter()),
        lambda s: list(s.text_iter("x")),
        lambda s: s.fork(2),
    ],
)
def test_a_failed_request_raises_wherever_the_state_is_read(read: Any) -> None:
    s = new_state(ScriptedBackend([ValueError("boom")]))
    s += "a" + sgl.gen("x")
    with pytest.raises(ValueError, match="boom"):
        read(s)


def test_an_error_keeps_its_traceback_and_names_the_line_of_the_program() -> None:
    def broken(prompt: str) -> str:
        raise ValueError("boom")

    s = new_state(ScriptedBackend(broken))
    s += sgl.gen("x")
    with pytest.raises(ValueError, match="boom") as caught:
        s["x"]
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "broken" in frames
    (note,) = caught.value.__notes__
    assert "in test_an_error_keeps" in note
    assert 's += sgl.gen("x")' in note


def test_variables_from_before_an_error_stay_readable() -> None:
    s = new_state(ScriptedBackend(["one", ValueError("boom")]))
    s += sgl.gen("x") + sgl.gen("y") + sgl.gen("z")
    assert s["x"] == "one"
    for name in ("y", "z"):
        with pytest.raises(ValueError, match="boom"):
            s[name]
    assert isinstance(s.error(), ValueError)


def test_what_is_appended_after_an_error_fails_the_same_way() -> None:
    s = new_state(ScriptedBackend([ValueError("boom")]))
    s += sgl.gen("x")
    s += sgl.gen("later")
    with pytest.raises(ValueError, match="boom"):
        s["later"]


def test_dropping_a_state_cancels_what_is_in_flight() -> None:
    backend = ScriptedBackend("x", manual=True)
    s = new_state(backend)
    s += sgl.gen("x") + sgl.gen("y")
    del s
    gc.collect()
    assert backend.calls[0].future.cancelled()
    assert len(backend.calls) == 1


def test_a_request_cancelled_elsewhere_is_an_error_for_readers() -> None:
    backend = ScriptedBackend("x", manual=True)
    s = new_state(backend)
    s += sgl.gen("x")
    backend.calls[0].future.cancel()
    with pytest.raises(RequestAborted):
        s["x"]


def test_aborting_wakes_a_waiting_reader() -> None:
    s = new_state(ScriptedBackend("x", manual=True))
    s += sgl.gen("x")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(s.text)
        s.stream_executor.abort()
        with pytest.raises(RequestAborted):
            reading.result(PATIENCE)


def test_invalid_sampling_values_fail_where_they_are_written() -> None:
    s = new_state(ScriptedBackend("x"))
    with pytest.raises(InvalidParamsError, match="top_p must be a number in"):
        s += "text" + sgl.gen("x", top_p=2.0)
    assert s.text() == ""


@pytest.mark.parametrize(
    ("node", "part"),
    [(sgl.image("cat.png"), Image("cat.png")), (sgl.video("cat.mp4", 8), Video("cat.mp4", 8))],
)
def test_pictures_are_parts_of_the_prompt(node: Any, part: Any) -> None:
    backend = ScriptedBackend("x")
    s = new_state(backend)
    s += "See " + node + "What is this?" + sgl.gen("x")
    assert s.text() == "See <image>What is this?x"
    assert backend.calls[0].prompt == (Text("See "), part, Text("What is this?"))


def test_a_construct_that_the_backend_lacks_raises_not_yet() -> None:
    class NoGrammar(ScriptedBackend):
        def submit(self, prompt: Any, params: SamplingParams, on_event: Any = None) -> Any:
            if params.regex is not None:
                raise NotYetError("regex")
            return super().submit(prompt, params, on_event)

    s = new_state(NoGrammar("x"))
    s += sgl.gen("x", regex="a+")
    with pytest.raises(NotYetError, match="regex"):
        s["x"]


def test_a_variable_of_another_stream_is_appended_when_it_comes() -> None:
    backend = ScriptedBackend(["one"], manual=True)
    source, target = new_state(backend), new_state(backend)
    source += sgl.gen("x")
    target += "got " + Variable("x", source.stream_executor) + "!"
    backend.step()
    assert target.text() == "got one!"


def test_aborting_a_stream_leaves_the_one_it_reads_from_alone() -> None:
    backend = ScriptedBackend(["one"], manual=True)
    source, target = new_state(backend), new_state(backend)
    source += sgl.gen("x")
    target += Variable("x", source.stream_executor)
    target.stream_executor.abort()
    backend.step()
    assert source["x"] == "one"


def test_streamed_text_arrives_before_the_answer_is_complete() -> None:
    seen, go_on = threading.Event(), threading.Event()

    class Slow(ScriptedBackend):
        def submit(self, prompt: Any, params: SamplingParams, on_event: Any = None) -> Any:
            def show(event: StreamEvent) -> None:
                on_event(event)
                if not seen.is_set():
                    seen.set()
                    assert go_on.wait(PATIENCE)

            return super().submit(prompt, params, show)

    backend = Slow("Hello world", manual=True, piece=5)
    s = new_state(backend, streaming=True)
    s += ">" + sgl.gen("x")
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(backend.step)
        assert seen.wait(PATIENCE)
        pieces = s.text_iter("x")
        assert next(pieces) == "Hello"
        go_on.set()
        assert isinstance(answering.result(PATIENCE), Call)
    assert "".join(pieces) == " world"
    assert "".join(s.text_iter()) == ">Hello world"


def test_an_unmatched_role_end_says_what_is_open() -> None:
    s = new_state(ScriptedBackend("x"))
    with pytest.raises(ProgramError, match="no turn is open"):
        s += sgl.user_end()
    s += sgl.user_begin()
    with pytest.raises(ProgramError, match="the open turn is user"):
        s += sgl.assistant_end()
