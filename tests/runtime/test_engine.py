"""The call shapes of the engine, on a toy model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sgl_mlx.core import Generated, SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError
from sgl_mlx.runtime.engine import Engine

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6}
COUNTERS = ["prompt_tokens", "cached_tokens", "computed_tokens", "decode_tokens", "forward_passes"]
SECONDS = ["tree_seconds", "schedule_seconds", "model_seconds"]


def stats(engine: Engine) -> dict[str, Any]:
    return dict(engine.get_server_info()["stats"])


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["text"] for answer in answers]


# -- shapes -----------------------------------------------------------------------------------


def test_one_prompt_gives_one_dictionary_of_sglangs_shape(toy: Engine) -> None:
    answer = toy.generate("ab a", GREEDY)
    assert set(answer) == {"text", "output_ids", "meta_info"}
    meta = answer["meta_info"]
    assert len(answer["output_ids"]) == meta["completion_tokens"] == 6
    assert meta["prompt_tokens"] == len(toy.tokenizer.encode("ab a"))
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert 0 <= meta["cached_tokens"] < meta["prompt_tokens"]
    assert isinstance(meta["id"], str)


def test_a_list_gives_a_list_in_the_same_order(toy: Engine) -> None:
    alone = [toy.generate(p, GREEDY)["text"] for p in ("ab", "ba", "x")]
    assert texts(toy.generate(["ab", "ba", "x"], GREEDY)) == alone
    assert texts(toy.generate(["ab"], GREEDY)) == alone[:1]
    assert toy.generate([], GREEDY) == []


def test_token_ids_do_as_well_as_text(toy: Engine) -> None:
    ids = toy.tokenizer.encode("ab a")
    alone = toy.generate("ab a", GREEDY)["output_ids"]
    assert toy.generate(input_ids=ids, sampling_params=GREEDY)["output_ids"] == alone
    [a, b] = toy.generate(input_ids=[ids, [5, 6]], sampling_params=GREEDY)
    assert a["output_ids"] == alone
    assert b["meta_info"]["prompt_tokens"] == 2


def test_a_list_of_params_gives_each_prompt_its_own(toy: Engine) -> None:
    params = [{"max_new_tokens": n, "temperature": 0} for n in (1, 4)]
    answers = toy.generate(["ab", "ab"], params)
    assert [len(a["output_ids"]) for a in answers] == [1, 4]
    with pytest.raises(InvalidParamsError, match="2 sampling_params for 3 prompts"):
        toy.generate(["a", "b", "c"], params)


def test_params_by_name_go_on_top_of_those_in_one_piece(toy: Engine) -> None:
    answer = toy.generate("ab", SamplingParams(max_new_tokens=3), temperature=0, max_new_tokens=2)
    assert len(answer["output_ids"]) == 2


def test_several_samples_of_one_prompt_differ_and_are_a_list(toy: Engine) -> None:
    answers = toy.generate("ab", n=3, max_new_tokens=12, temperature=1.5, seed=1)
    assert len(set(texts(answers))) == 3
    alone = toy.generate("ab", max_new_tokens=12, temperature=1.5, seed=2)
    assert answers[1]["text"] == alone["text"]  # each further sample has the next seed
    both = toy.generate(["ab", "x"], n=2, max_new_tokens=2)
    sizes = [len(toy.tokenizer.encode(text)) for text in ("ab", "ab", "x", "x")]
    assert [a["meta_info"]["prompt_tokens"] for a in both] == sizes


def test_a_seed_gives_the_same_sample_alone_and_in_any_batch(toy: Engine) -> None:
    prompts = ["ab a", *(f"prompt {i}" for i in range(7))]
    params = [{"max_new_tokens": 20, "temperature": 1.2, "seed": 40 + i} for i in range(8)]
    alone = [toy.generate(p, q)["output_ids"] for p, q in zip(prompts, params, strict=True)]
    for order in (1, -1):
        toy.flush_cache()
        found = toy.generate(prompts[::order], params[::order])
        assert [a["output_ids"] for a in found][::order] == alone
    assert len(set(map(tuple, alone))) == 8


def test_without_a_seed_samples_differ_between_calls_and_agree_between_engines(
    make_engine: Callable[..., Engine],
) -> None:
    runs = []
    for seed in (3, 3, 4):
        engine = make_engine(random_seed=seed)
        runs.append([engine.generate("ab", max_new_tokens=12)["text"] for _ in range(2)])
    assert runs[0][0] != runs[0][1]
    assert runs[0] == runs[1] != runs[2]


def test_a_stream_grows_to_the_whole_answer(toy: Engine) -> None:
    whole = toy.generate("ab a", GREEDY)
    *growing, last = toy.generate("ab a", GREEDY, stream=True)
    assert last["text"] == whole["text"]
    assert last["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]
    assert growing
    for shorter, longer in zip(growing, [*growing[1:], last], strict=True):
        assert longer["text"].startswith(shorter["text"])
        assert shorter["meta_info"]["finish_reason"] is None


def test_only_one_prompt_can_be_streamed(toy: Engine) -> None:
    with pytest.raises(InvalidParamsError, match="one prompt, got 2"):
        toy.generate(["a", "b"], GREEDY, stream=True)


def test_the_asynchronous_calls_answer_the_same(toy: Engine) -> None:
    async def ask() -> tuple[Any, Any, list[Any]]:
        one = toy.async_generate("ab a", GREEDY)
        many = toy.async_generate(["ab a", "x"], GREEDY)
        pieces = await toy.async_generate("ab a", GREEDY, stream=True)
        return await one, await many, [piece async for piece in pieces]

    one, many, pieces = asyncio.run(ask())
    right = toy.generate("ab a", GREEDY)["text"]
    assert one["text"] == many[0]["text"] == pieces[-1]["text"] == right
    assert len(many) == 2


def test_no_new_tokens_computes_the_prompt_alone(toy: Engine) -> None:
    toy.flush_cache()
    before = stats(toy)
    answer = toy.generate("some text", max_new_tokens=0)
    assert (answer["text"], answer["output_ids"]) == ("", [])
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    after = stats(toy)
    assert (
        after["computed_tokens"] - before["computed_tokens"] == answer["meta_info"]["prompt_tokens"]
    )
    assert toy.prefill((Text("some text"),)).result() == answer["meta_info"]["prompt_tokens"]


def test_output_is_bounded_by_the_context(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(context_length=20)
    answer = engine.generate(input_ids=[5] * 15, max_new_tokens=100, ignore_eos=True)
    assert len(answer["output_ids"]) == 5
    assert answer["meta_info"]["finish_reason"]["type"] == "length"


# -- the cache --------------------------------------------------------------------------------


def test_a_prompt_is_cached_until_the_cache_is_flushed(toy: Engine) -> None:
    ids = [[10, 11, 12, 13, 14, 15, 16]]
    toy.flush_cache()
    cached = []
    for _ in range(2):
        cached.append(
            toy.generate(input_ids=ids, max_new_tokens=1)[0]["meta_info"]["cached_tokens"]
        )
    assert toy.flush_cache()
    cached.append(toy.generate(input_ids=ids, max_new_tokens=1)[0]["meta_info"]["cached_tokens"])
    assert cached == [0, 6, 0]


def test_what_a_model_generated_is_cached_for_the_next_turn(toy: Engine) -> None:
    toy.flush_cache()
    first = toy.submit((Text("ab a"),), SamplingParams(temperature=0, max_new_tokens=8)).result()[0]
    prompt = (Text("ab a"), Generated(first.text, first.token_ids), Text("xy"))
    second = toy.submit(prompt, SamplingParams(max_new_tokens=1)).result()[0]
    assert second.cached_tokens == first.prompt_tokens + 7  # the last one has no KV yet


def test_without_the_radix_cache_every_prompt_is_computed(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(disable_radix_cache=True)
    answers = [engine.generate("ab ab ab", GREEDY) for _ in range(2)]
    assert [a["meta_info"]["cached_tokens"] for a in answers] == [0, 0]
    assert answers[0]["text"] == answers[1]["text"]


def test_the_counters_add_up(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    answers = engine.generate(["ab ab x", "ab ab y", "z"], GREEDY)
    found = stats(engine)
    prompts = [a["meta_info"]["prompt_tokens"] for a in answers]
    assert found["prompt_tokens"] == sum(prompts)
    assert found["computed_tokens"] + found["cached_tokens"] == sum(prompts)
    assert found["decode_tokens"] == 3 * (6 - 1)  # the prompt's step samples the first token
    assert found["forward_passes"] >= 6
    assert all(isinstance(found[name], int) for name in COUNTERS)
    assert all(found[name] > 0 for name in SECONDS)


def test_server_info_tells_model_and_limits(make_engine: Callable[..., Engine]) -> None:
    info = make_engine(max_total_tokens=1234, context_length=99).get_server_info()
    assert info["model_path"].endswith("toy")
    assert (info["max_total_num_tokens"], info["context_length"]) == (1234, 99)
