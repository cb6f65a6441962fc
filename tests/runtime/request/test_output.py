"""Text, stop strings and ends of a sample, however its text is split into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.core import FinishReason, PartialCompletion, SamplingParams, StreamEvent
from sgl_mlx.runtime.constraints.healing import TakenBack
from sgl_mlx.runtime.request.output import TextOutput
from sgl_mlx.runtime.scheduler.plan import Scores
from sgl_mlx.tokenizer import Detokenizer, Tokenizer

END = 1000


class Pieces:
    """A tokenizer whose tokens are the pieces it is given, by their place; and an end token."""

    def __init__(self, pieces: Sequence[bytes | str]) -> None:
        encoded = [p.encode() if isinstance(p, str) else p for p in pieces]
        self._spelled: Any = {**dict(enumerate(encoded)), END: b"<end>"}

    def detokenizer(self, skip_special: bool = True, constrained: bool = False) -> Detokenizer:
        hidden = frozenset({END}) if skip_special else frozenset[int]()
        return Detokenizer(self._spelled, hidden, strip_space=False)

    def added_token(self, text: str) -> int | None:
        return END if text == "<end>" else None

    def is_special(self, token: int) -> bool:
        return token == END

    def token_bytes(self, token: int) -> bytes:
        return bytes(self._spelled[token])

    def token_text(self, token: int) -> str:
        return str(self._spelled[token].decode("utf-8", "replace"))


@dataclass
class Seen:
    """The outcome of a sample: the pieces that were streamed, and its end."""

    output: TextOutput
    events: list[StreamEvent] = field(default_factory=list)
    reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return self.output.text

    @property
    def streamed(self) -> list[str]:
        """The pieces of text, without an end that adds none."""
        return [event.text for event in self.events if event.text]


def run(pieces: Sequence[bytes | str], end: bool = False, **params: Any) -> Seen:
    """Push pieces as the scheduler does, up to the end: a stop, the end token or the length."""
    settings = SamplingParams.of(params)
    ended: list[TextOutput] = []
    events: list[StreamEvent] = []
    tokenizer = cast(Tokenizer, Pieces(pieces))
    output = TextOutput(settings, tokenizer, frozenset({END}), ended.append, events.append)
    reason = None
    for token in [*range(len(pieces)), *([END] if end else [])]:
        assert reason is None
        reason = output.push(token, None)
        if reason is not None:
            break
    output.finish(reason or FinishReason("length", length=len(pieces)))
    assert ended == [output]
    return Seen(output, events, output.finish_reason)


# -- stop strings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [["one STOP two"], ["one ST", "OP two"], ["one ", "S", "T", "O", "P", " two"], ["one STOP"]],
    ids=["inside a token", "over two", "letter by letter", "at the end"],
)
def test_a_stop_string_is_found_and_trimmed_wherever_it_lies(pieces: list[str]) -> None:
    seen = run(pieces, stop="STOP")
    assert (seen.text, seen.reason) == ("one ", FinishReason("stop", matched="STOP"))
    assert "".join(seen.streamed) == "one "


def test_no_stop_trim_keeps_the_stop_string_and_nothing_after_it() -> None:
    seen = run(["one ST", "OP two"], stop=["STOP"], no_stop_trim=True)
    assert seen.text == "one STOP"
    assert "".join(seen.streamed) == "one STOP"


def test_text_that_only_began_like_a_stop_is_shown_after_all() -> None:
    seen = run(["a <", "/", "b> c"], stop="</s>")
    assert seen.text == "a </b> c"
    assert seen.streamed == ["a ", "</b> c"]


def test_text_that_began_like_a_stop_is_shown_when_the_sample_ends() -> None:
    seen = run(["a <", "/"], stop="</s>")
    assert "".join(seen.streamed) == seen.text == "a </"


def test_a_stop_string_that_overlaps_with_itself_is_found() -> None:
    assert run(["aab", "aa", "bab"], stop="aabaab").text == ""
    assert run(["aa", "aab"], stop="aab").text == "aa"


def test_the_stop_string_that_is_complete_first_counts() -> None:
    for pieces in (["xabcd"], ["x", "a", "b", "c", "d"], ["xab", "cd"]):
        seen = run(pieces, stop=["abcd", "bc"])
        assert (seen.text, seen.reason) == ("xa", FinishReason("stop", matched="bc"))


def test_of_stop_strings_that_end_together_the_longer_counts() -> None:
    assert run(["xabc"], stop=["bc", "abc"]).text == "x"


letters = st.text("ab<é🙂", max_size=14)


@given(letters, st.lists(st.text("ab<é", min_size=1, max_size=4), max_size=3), st.data())
def test_the_split_into_tokens_changes_neither_text_nor_end(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(whole) - 1, 1)), max_size=9)))
    edges = [0, *[c for c in cuts if c < len(whole)], len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges) if a < b]
    trim = data.draw(st.booleans())
    seen = run(pieces, stop=stops, no_stop_trim=not trim)
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    if ends:
        end, at, stop = min(ends)
        assert seen.text == text[: at if trim else end]
        assert seen.reason == FinishReason("stop", matched=stop)
    else:
        assert seen.text == text
        assert seen.reason is not None
        assert seen.reason.type == "length"
    assert "".join(seen.streamed) == seen.text
    assert_tells_all(seen)


def assert_tells_all(seen: Seen) -> None:
    """The events of a sample add up to it, and only the last has its finish reason."""
    so_far = PartialCompletion()
    for event in seen.events:
        assert so_far.finish_reason is None
        so_far.add(event)
    whole = seen.output.completion("", [], 0, 0)
    assert so_far.to_dict() == whole.to_dict()


@given(letters, st.integers(0, 3), st.sampled_from([(), ("ab",)]), st.booleans())
def test_the_events_add_up_to_the_completion(
    text: str, top: int, stop: tuple[str, ...], finish: bool
) -> None:
    params = SamplingParams(return_logprob=True, top_logprobs_num=top, stop=stop)
    events: list[StreamEvent] = []
    pieces = cast(Tokenizer, Pieces(list(text)))
    output = TextOutput(params, pieces, frozenset({END}), lambda _: None, events.append)
    reason = None
    for token in range(len(text)):
        scores = Scores(((-0.5 * token, token),), (((-0.1, 7),) * top,) if top else ())
        reason = reason or output.push(token, scores)
    if not text:  # a prompt that is not continued is scored at its end
        output.score_next(Scores(((-1.0, 5),), (((-0.1, 7),) * top,) if top else ()))
    output.finish(reason or FinishReason("stop" if finish else "length"))
    assert_tells_all(Seen(output, events))


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=8))
def test_bytes_that_are_no_text_are_streamed_as_they_are_shown(pieces: list[bytes]) -> None:
    seen = run(pieces)
    assert "".join(seen.streamed) == seen.text == b"".join(pieces).decode("utf-8", "replace")


def test_a_character_is_shown_when_its_last_byte_has_come() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    seen = run(["caf", first, second, "!"])
    assert seen.streamed == ["caf", "é", "!"]


# -- end tokens -------------------------------------------------------------------------------


def test_the_end_token_ends_the_sample_and_is_not_in_the_text() -> None:
    seen = run(["done"], end=True)
    assert (seen.text, seen.reason) == ("done", FinishReason("stop", matched=END))
    assert seen.output.token_ids == [0, END]


def test_ignore_eos_goes_on_through_the_end_token() -> None:
    assert run(["done"], end=True, ignore_eos=True).text == "done"
    seen = run(["done"], end=True, ignore_eos=True, skip_special_tokens=False)
    assert seen.text == "done<end>"
    assert seen.reason is not None
    assert seen.reason.type == "length"


def test_a_stop_token_of_the_request_ends_it_even_with_ignore_eos() -> None:
    seen = run(["a", "b", "c"], stop_token_ids=[1], ignore_eos=True)
    assert (seen.text, seen.reason) == ("a", FinishReason("stop", matched=1))


# -- logprobs ---------------------------------------------------------------------------------


@given(st.text("aé\U0001f680", min_size=1, max_size=3), st.lists(letters, max_size=4), letters)
def test_what_was_taken_back_is_the_prompts(taken: str, rest: list[str], merged: str) -> None:
    """The first token spells it alone, or with the beginning of the answer."""
    params = SamplingParams(
        return_logprob=True, return_text_in_logprobs=True, logprob_start_len=0, max_new_tokens=9
    )
    tokenizer = cast(Tokenizer, Pieces([taken + merged, *rest]))
    back, events = TakenBack(taken, (0,)), list[StreamEvent]()
    output = TextOutput(
        params, tokenizer, frozenset({END}), lambda _: None, events.append, taken_back=back
    )
    for token in range(len(rest) + 1):
        assert output.push(token, Scores(((-1.0, token),))) is None
    output.finish(FinishReason("stop"))
    done = output.completion("", [], 1, 0)
    assert done.text == "".join(event.text for event in events) == merged + "".join(rest)
    assert done.token_ids == tuple(range(0 if merged else 1, len(rest) + 1))
    assert done.logprobs is not None
    assert "".join(entry.text or "" for entry in done.logprobs.output) == done.text
    assert [entry.logprob for entry in done.logprobs.input] == [None if merged else -1.0]
    told = [token for event in events for token in event.token_ids]
    assert tuple(told) == done.token_ids


def test_logprobs_carry_the_text_of_tokens_when_asked() -> None:
    params = SamplingParams.of({"return_logprob": True, "return_text_in_logprobs": True})
    pieces = cast(Tokenizer, Pieces(["he", "llo"]))
    output = TextOutput(params, pieces, frozenset(), lambda _: None)
    output.push(0, Scores(((-0.5, 0),)))
    output.push(1, Scores(((-0.25, 1),)))
    output.finish(FinishReason("length", length=2))
    found = output.completion("x", [5], 1, 0).logprobs
    assert found is not None
    assert [t.to_list() for t in found.output] == [[-0.5, 0, "he"], [-0.25, 1, "llo"]]
