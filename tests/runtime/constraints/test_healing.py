"""Token healing: the end of a prompt and the output are tokenized as one text."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_mlx.benchmarks.micro.healing import cuts, hits
from sgl_mlx.core import StreamEvent, Text
from sgl_mlx.runtime.constraints.healing import Healing
from sgl_mlx.sampling import SamplingParams
from tests.runtime.constraints.constrained_fixtures import engine, figures, needs_model

pytestmark = needs_model

PROMPTS = [
    *('The link is <a href="http:', "The capital of France is ", "def main(self, arg", '{"na'),
    *("I like caf", 'She said: "Hel', "import num", "for i in ran", "1, 2, 3, ", "Once upon a ti"),
]
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8}


def healed(prompts: list[str], **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = engine().generate(
        prompts, {**GREEDY, "token_healing": True, **params}
    )
    return found


def test_a_url_goes_on_with_slashes() -> None:
    (answer,) = healed(['The link is <a href="http:'], max_new_tokens=6)
    assert answer["text"].startswith("//")


def test_a_trailing_space_becomes_part_of_the_next_word() -> None:
    (answer,) = healed(["The capital of France is "])
    assert answer["text"].startswith("Paris")


def test_a_character_split_over_tokens_stays_whole() -> None:
    rocket = engine().tokenizer.encode("Go \U0001f680", add_special=False)
    spellings = engine()._loop.model.spellings
    found = spellings.heals(rocket)
    assert found is None or "\ufffd" not in found.text
    (answer,) = healed(["Go \U0001f680"])
    assert "\ufffd" not in answer["text"].rstrip("\ufffd")


def test_special_tokens_are_never_taken_back() -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>"
    with_healing, without = engine().generate(
        [prompt] * 2, [{**GREEDY, "token_healing": on} for on in (True, False)]
    )
    assert with_healing["output_ids"] == without["output_ids"]


def test_the_output_goes_on_from_the_prompt_or_merges_with_its_end() -> None:
    tokenizer = engine().tokenizer
    for prompt, answer in zip(PROMPTS, healed(PROMPTS), strict=True):
        found = engine()._loop.model.spellings.heals(tokenizer.encode(prompt))
        taken = found.text if found else ""
        spelled = b"".join(map(tokenizer.token_bytes, answer["output_ids"]))
        shown = answer["text"].rstrip("\ufffd").encode()
        assert spelled.startswith(shown) or spelled.startswith(taken.encode() + shown)


@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("streamed", [False, True])
def test_healing_shows_in_no_count_and_no_logprob(limit: int, streamed: bool) -> None:
    params = {**GREEDY, "token_healing": True, "max_new_tokens": limit, "ignore_eos": True}
    asked: dict[str, Any] = {"return_logprob": True, "return_text_in_logprobs": True}
    asked.update(logprob_start_len=0, top_logprobs_num=2)
    prompts = PROMPTS[:3] if streamed else PROMPTS
    answers = engine().generate(prompts, params, **asked) if not streamed else []
    for prompt in prompts if streamed else ():
        *_, last = engine().generate(prompt, params, stream=True, **asked)
        answers.append(last)
    for prompt, answer in zip(prompts, answers, strict=True):
        meta, count = answer["meta_info"], len(engine().tokenizer.encode(prompt))
        assert meta["prompt_tokens"] == count
        assert meta["completion_tokens"] == len(answer["output_ids"]) == limit
        assert meta["finish_reason"] == {"type": "length", "length": limit}
        for name in ("input_token_logprobs", "input_top_logprobs"):
            assert len(meta[name]) == count
        for name in ("output_token_logprobs", "output_top_logprobs"):
            assert len(meta[name]) == limit
        told = [token_id for _, token_id, _ in meta["input_token_logprobs"]]
        assert told == engine().tokenizer.encode(prompt)
        texts = [text for *_, text in meta["output_token_logprobs"]]
        if "\ufffd" not in "".join(texts):
            assert "".join(texts) == answer["text"]


def test_a_stop_token_that_comes_too_early_counts_without_the_prompts_end() -> None:
    stop = engine().tokenizer.encode("\n", add_special=False)
    for prompt in PROMPTS:
        (answer,) = healed([prompt], stop_token_ids=stop, min_new_tokens=4, max_new_tokens=12)
        assert answer["meta_info"]["completion_tokens"] > 4
        assert not {*stop} & {*answer["output_ids"][:4]}


def test_pieces_of_a_stream_make_up_the_text() -> None:
    events: list[StreamEvent] = []
    params = SamplingParams(max_new_tokens=8, temperature=0, token_healing=True)
    (done,) = engine().submit((Text(PROMPTS[0]),), params, events.append).result()
    assert "".join(event.text for event in events) == done.text


def test_stop_strings_are_found_in_the_text_alone() -> None:
    (plain,) = healed([PROMPTS[1]])
    (stopped,) = healed([PROMPTS[1]], stop=[" ", "."])
    assert plain["text"].startswith(stopped["text"])
    assert stopped["text"] == "Paris"


def test_the_cached_prefix_survives_healing() -> None:
    prompt = "A list of words: " + "alpha beta gamma delta " * 20 + "http:"
    length = len(engine().tokenizer.encode(prompt))
    first, second = healed([prompt])[0], healed([prompt])[0]
    assert first["text"] == second["text"]
    assert second["meta_info"]["cached_tokens"] >= length - 2


def test_what_is_missing_is_spelled_token_by_token() -> None:
    tokenizer, spellings = engine().tokenizer, engine()._loop.model.spellings
    healing = Healing(spellings, b"abc")
    (first,) = tokenizer.encode("a", add_special=False)
    healing.accept(first)
    assert not healing.done
    (rest,) = tokenizer.encode("bc", add_special=False)
    assert healing.allowed()[rest >> 3] >> (rest & 7) & 1
    healing.accept(rest)
    assert healing.done


def test_healed_continuations_are_tokenized_like_the_uncut_text_more_often() -> None:
    corpus = cuts(engine().tokenizer, 100)
    plain, with_healing = hits(engine(), corpus, False), hits(engine(), corpus, True)
    figures.info(f"first token as in the uncut text: {with_healing} healed, {plain} plain, of 100")
    assert with_healing > plain
