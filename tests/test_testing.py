"""The public doubles keep their promises, for tests rest on them."""

from __future__ import annotations

import pytest

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import BackendError, EngineStoppedError, TokenizerError
from sgl_mlx.lang.backend import Backend
from sgl_mlx.testing import ByteTokenizer, Script, ScriptedBackend

PROMPT = (Text("the prompt"),)


def reply(script: Script, prompt: str = "the prompt", **params: object) -> str:
    backend = ScriptedBackend(script)
    return backend.submit((Text(prompt),), SamplingParams.of(params)).result()[0].text


def test_it_is_a_backend() -> None:
    assert isinstance(ScriptedBackend(), Backend)


def test_a_script_is_a_text_a_list_a_mapping_or_a_function() -> None:
    assert reply("always") == "always"
    assert reply(["first", "second"]) == "first"
    assert reply({"the": "early", "prompt": "late"}) == "late"
    assert reply(lambda prompt: prompt.upper()) == "THE PROMPT"


def test_a_prompt_without_a_reply_is_an_error_that_shows_its_end() -> None:
    for script in ([], {"other": "x"}):
        with pytest.raises(BackendError, match="no reply for the prompt ending in 'the prompt'"):
            reply(script)


def test_stop_strings_and_the_token_limit_are_honoured() -> None:
    assert reply("one. two. three", stop=".") == "one"
    assert reply("one. two", stop=[" two", "."], no_stop_trim=True) == "one."
    assert reply("one two three", max_new_tokens=2) == "one two"
    assert reply("one two three", max_new_tokens=0) == ""


def test_finish_reasons_say_what_ended_the_text() -> None:
    backend = ScriptedBackend("one. two")
    (stopped,) = backend.submit(PROMPT, SamplingParams(stop=(".",))).result()
    (cut,) = backend.submit(PROMPT, SamplingParams(max_new_tokens=1)).result()
    assert stopped.finish_reason.matched == "."
    assert (cut.finish_reason.type, cut.finish_reason.length) == ("length", 1)


def test_pieces_join_to_the_text_and_come_before_the_answer() -> None:
    backend = ScriptedBackend("one two three", manual=True, piece=5)
    pieces: list[str] = []
    future = backend.submit(PROMPT, SamplingParams(), lambda event: pieces.append(event.text))
    assert not future.done()
    future.add_done_callback(lambda _: pieces.append("|"))
    backend.step()
    assert pieces == ["one t", "wo th", "ree", "|"]


def test_calls_are_answered_in_any_order_by_hand() -> None:
    backend = ScriptedBackend(lambda prompt: prompt, manual=True)
    first = backend.submit((Text("a"),), SamplingParams())
    second = backend.submit((Text("b"),), SamplingParams())
    backend.step(backend.pending[1])
    assert second.done()
    assert not first.done()
    backend.run_all()
    assert first.done()
    with pytest.raises(BackendError, match="no call is pending"):
        backend.step()


def test_cancelled_calls_are_not_answered() -> None:
    backend = ScriptedBackend("x", manual=True)
    backend.submit(PROMPT, SamplingParams()).cancel()
    assert backend.pending == []


def test_choices_are_scored_as_scripted() -> None:
    backend = ScriptedBackend(logprobs={"yes": -0.5, "oh no": [-1.0, -2.0]})
    scores = backend.score(PROMPT, ["yes", "oh no", "other"], unconditional=True).result()
    rows = [[token.logprob for token in choice.tokens] for choice in scores.choices]
    assert rows == [[-0.5], [-1.0, -2.0], [-10.0]]
    assert all(choice.unconditional for choice in scores.choices)


def test_every_call_is_recorded() -> None:
    backend = ScriptedBackend("x")
    backend.prefill(PROMPT)
    backend.submit(PROMPT, SamplingParams(n=2))
    backend.score(PROMPT, ["a", "b"])
    assert [call.kind for call in backend.calls] == ["prefill", "submit", "score"]
    assert backend.prompts == backend.prefills == ["the prompt"]
    assert backend.calls[2].choices == ("a", "b")


def test_constraints_and_healing_are_recorded_and_not_enforced() -> None:
    backend = ScriptedBackend("neither")
    params = SamplingParams(regex="yes|no", token_healing=True)
    assert backend.submit(PROMPT, params).result()[0].text == "neither"
    assert backend.calls[0].params == params


def test_after_shutdown_calls_are_refused_and_pending_ones_cancelled() -> None:
    backend = ScriptedBackend("x", manual=True)
    pending = backend.submit(PROMPT, SamplingParams())
    assert backend.flush_cache() is False
    backend.shutdown()
    assert pending.cancelled()
    with pytest.raises(EngineStoppedError):
        backend.submit(PROMPT, SamplingParams())


def test_without_a_template_rendering_a_chat_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        ScriptedBackend().render_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("text", ["", "plain", "café 🎈"])
def test_bytes_are_tokens_and_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(token < tokenizer.vocab_size for token in ids)
    assert tokenizer.decode([*ids, tokenizer.eos_token_id]) == text


def test_a_character_cut_short_is_a_replacement_character() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
