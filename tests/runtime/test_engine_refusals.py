"""Requests that the engine refuses, and the words of its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import InvalidParamsError, MemoryLimitError, ModelNotFoundError, PromptError
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.pool.kv import KVPool

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6}


def stats(engine: Engine) -> dict[str, Any]:
    return dict(engine.get_server_info()["stats"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either prompt or input_ids"),
        ({"prompt": "a", "input_ids": [1]}, "either prompt or input_ids"),
        ({"prompt": ""}, "empty"),
        ({"prompt": ["a", ""]}, "empty"),
        ({"input_ids": []}, "empty"),
        ({"input_ids": [[1], []]}, "empty"),
        ({"input_ids": [4, 288]}, r"token id 288 is not in the vocabulary \(0 to 287\)"),
        ({"input_ids": [4, -1]}, "token id -1"),
        ({"input_ids": [4, "x"]}, "token id 'x'"),
    ],
)
def test_a_wrong_prompt_is_refused(toy: Engine, given: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        toy.generate(sampling_params=GREEDY, **given)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"min_p": 2},
        {"max_new_tokens": -1},
        {"max_new_tokens": 1.5},
        {"min_new_tokens": 5, "max_new_tokens": 3},
        {"n": 0},
        {"repetition_penalty": 0},
        {"frequency_penalty": 3},
        {"stop": [""]},
        {"stop_token_ids": [-4]},
        {"temprature": 1},
        {"return_logprob": True, "logprob_start_len": 99},
    ],
    ids=str,
)
def test_a_sampling_value_out_of_range_is_refused(toy: Engine, params: dict[str, Any]) -> None:
    wrong = list(params)[-1] if "logprob_start_len" in params else next(iter(params))
    with pytest.raises(InvalidParamsError, match=wrong):
        toy.generate("ab", params)


def test_one_wrong_request_in_a_list_leaves_none_running(toy: Engine) -> None:
    before = stats(toy)
    with pytest.raises(InvalidParamsError, match="top_p"):
        toy.generate(["ab", "x"], [{"max_new_tokens": 300}, {"top_p": 7}])
    assert stats(toy)["prompt_tokens"] == before["prompt_tokens"]
    assert toy.flush_cache()


@pytest.mark.parametrize("options", [{"context_length": 30}, {"max_total_tokens": 30}], ids=str)
def test_a_prompt_too_long_is_refused_with_the_numbers_and_the_engine_goes_on(
    make_engine: Callable[..., Engine], options: dict[str, int]
) -> None:
    engine = make_engine(**options)
    with pytest.raises(PromptError, match=r"has 31 tokens; the context holds \d+ and the KV pool"):
        engine.generate(input_ids=[5] * 31)
    assert len(engine.generate(input_ids=[5] * 20, sampling_params=GREEDY)["output_ids"]) == 6


def test_choices_must_not_be_empty(toy: Engine) -> None:
    for choices in ([], ["a", ""]):
        with pytest.raises(InvalidParamsError, match="choices"):
            toy.score((Text("ab"),), choices)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule_policy": "best"}, InvalidParamsError, "known are lpm, dfs-weight, fcfs"),
        ({"pool": 3}, InvalidParamsError, "unknown engine option 'pool'"),
    ],
    ids=["policy", "name"],
)
def test_an_engine_that_cannot_be_is_refused(
    make_engine: Callable[..., Engine],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        make_engine(**options)


def test_a_pool_too_large_is_refused_before_anything_is_allocated(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[object] = []
    monkeypatch.setattr(KVPool, "__init__", lambda self, *args: allocated.append(args))
    with pytest.raises(MemoryLimitError, match=r"1000000000000 x \d+ bytes = .* GiB, usable are"):
        make_engine(max_total_tokens=10**12)
    assert not allocated


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelNotFoundError):
        Engine("/no/such/model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "x"}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"logprob_start_len": "a"}, "logprob_start_len must be an integer"),
        ({"logprob_start_len": -7}, "must be an integer from -1 to"),
        ({"logit_bias": {"a": 1}}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": [5]}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {-1: 1}}, "a token id of at least 0, got 1 for -1"),
        ({"logit_bias": {1: float("nan")}}, "adds a finite number"),
    ],
)
def test_numbers_of_the_wrong_kind_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        SamplingParams.of(values).validate()
