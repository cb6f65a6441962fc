"""Streams of events in every form that servers give them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import BackendError
from sgl_mlx.protocol import sglang as wire
from sgl_mlx.protocol.events import GrowingText, checked, json_events

TEXTS = st.text(alphabet=st.sampled_from("ab é😀\u2028\n\r:{}\"'"), min_size=1, max_size=6)
EVENTS = st.lists(st.fixed_dictionaries({"text": TEXTS, "n": st.integers()}), max_size=5)
NOISE = [b": ping", b"event: message", b"id: 7", b"retry: 5", b":", b"unknown: x"]


@given(
    events=EVENTS,
    end=st.sampled_from([b"\n", b"\r\n"]),
    prefix=st.sampled_from([b"data: ", b"data:", b""]),
    blank=st.booleans(),
    done=st.booleans(),
    indent=st.sampled_from([None, 1]),
    escaped=st.booleans(),
    bom=st.booleans(),
    noise=st.lists(st.sampled_from(NOISE), max_size=3),
)
def test_events_are_read_in_every_form(
    events: list[dict[str, Any]],
    end: bytes,
    prefix: bytes,
    blank: bool,
    done: bool,
    indent: int | None,
    escaped: bool,
    bom: bool,
    noise: list[bytes],
) -> None:
    lines = [b"\xef\xbb\xbf" + end] if bom else []
    for event in events:
        lines += [line + end for line in noise]
        written = json.dumps(event, ensure_ascii=escaped, indent=indent if prefix else None)
        lines += [prefix + line.encode() + end for line in written.split("\n")]
        lines += [end] * blank
    if done:
        lines += [prefix + b"[DONE]" + end, b"data: {never read" + end]
    assert list(json_events(lines)) == events


@given(events=EVENTS.filter(bool), cut=st.integers(1, 1000))
def test_a_stream_cut_in_an_event_is_an_error(events: list[dict[str, Any]], cut: int) -> None:
    last = json.dumps(events[-1]).encode()
    lines = [b"data: " + json.dumps(event).encode() + b"\n" for event in events[:-1]]
    lines.append(b"data: " + last[: 1 + cut % (len(last) - 1)])
    with pytest.raises(BackendError, match="cut off"):
        list(json_events(lines))


ERRORS = [
    {"error": {"message": "out of memory", "code": 500}},
    {"error": "out of memory"},
    {"error": {"type": "server_error", "detail": "out of memory"}},
    {"object": "error", "message": "out of memory"},
    [{"text": "a"}, {"error": {"message": "out of memory"}}],
]


@pytest.mark.parametrize("answer", ERRORS)
def test_errors_inside_good_answers_are_errors(answer: Any) -> None:
    with pytest.raises(BackendError, match="out of memory"):
        checked(answer)
    if isinstance(answer, dict):
        with pytest.raises(BackendError, match="out of memory"):
            list(json_events([b"data: " + json.dumps(answer).encode() + b"\n", b"\n"]))


@pytest.mark.parametrize("answer", ["nonsense", 3, None, [1]])
def test_answers_that_are_no_objects_are_errors(answer: Any) -> None:
    with pytest.raises(BackendError, match="instead of an object"):
        checked(answer)


def shown(growing: GrowingText, texts: list[str], stopped_at: str | None = None) -> str:
    pieces = [growing.add(text) for text in texts[:-1]]
    pieces += [growing.add(text, stopped_at) for text in texts[-1:]]
    return "".join(pieces) + growing.finish()


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_cumulative_texts_are_shown_piece_by_piece(pieces: list[str]) -> None:
    texts = ["".join(pieces[: i + 1]) for i in range(len(pieces))]
    growing = GrowingText()
    assert shown(growing, texts) == growing.text == texts[-1]


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_announced_increments_are_joined(pieces: list[str]) -> None:
    growing = GrowingText(increments=True)
    assert shown(growing, pieces) == growing.text == "".join(pieces)


@given(st.permutations(["He", "llo", " wörld", " 😀", "!\n"]))
def test_increments_are_noticed(pieces: list[str]) -> None:
    growing = GrowingText()
    assert shown(growing, pieces) == growing.text == "".join(pieces)


@given(st.text("aé😀", min_size=1, max_size=5))
def test_characters_that_come_byte_by_byte_are_shown_whole(text: str) -> None:
    data = text.encode()
    texts = [data[: i + 1].decode(errors="replace") for i in range(len(data))]
    growing = GrowingText()
    assert shown(growing, texts) == growing.text == text


def test_a_stop_string_cut_from_the_last_event_is_no_increment() -> None:
    growing = GrowingText()
    shown(growing, ["Hello", "Hello\nQ", "Hello"], stopped_at="\nQ:")
    assert growing.text == "Hello"


@given(start=st.none() | st.integers(-1, 9), top=st.integers(0, 4), asked=st.booleans())
def test_logprob_options_reach_the_server_unless_they_are_the_default(
    start: int | None, top: int, asked: bool
) -> None:
    params = SamplingParams(return_logprob=asked, logprob_start_len=start, top_logprobs_num=top)
    sent = wire.payload((Text("x"),), params, "")
    assert sent.get("logprob_start_len") == start
    assert sent.get("return_logprob", False) is asked
    assert sent.get("top_logprobs_num", 0) == top
