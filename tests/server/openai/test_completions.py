"""`/v1/completions` against the toy, whose answers are the engine's own."""

from __future__ import annotations

import re
from typing import Any

import httpx
import openai
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.engine import Engine
from tests.server.conftest import Sdk, events
from tests.server.near import near

Script = Any
BODY = {"prompt": "ab", "max_tokens": 5, "temperature": 0}


def test_text_equals_the_engines(toy_url: str, toy_engine: Engine, client: httpx.Client) -> None:
    answer = client.post(f"{toy_url}/v1/completions", json=BODY).json()
    expected = toy_engine.generate("ab", {"max_new_tokens": 5, "temperature": 0})
    [choice] = answer["choices"]
    assert (choice["text"], choice["index"]) == (expected["text"], 0)
    assert choice["finish_reason"] == expected["meta_info"]["finish_reason"]["type"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == expected["meta_info"]["prompt_tokens"]
    assert usage["completion_tokens"] == 5
    assert answer["model"] == "toy"


def test_a_repeated_prompt_is_told_as_cached(toy_url: str, client: httpx.Client) -> None:
    body = {**BODY, "prompt": "said twice, cached once"}
    first, second = (client.post(f"{toy_url}/v1/completions", json=body).json() for _ in "ab")
    assert first["choices"] == second["choices"]
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == second["usage"]["prompt_tokens"] - 1


def test_choices_are_prompt_major(toy_url: str, client: httpx.Client) -> None:
    body = {**BODY, "prompt": ["ab", "ba"], "n": 2, "temperature": 1, "seed": 5}
    answer = client.post(f"{toy_url}/v1/completions", json=body).json()
    streamed = events(client.post(f"{toy_url}/v1/completions", json={**body, "stream": True}))
    texts = dict.fromkeys(range(4), "")
    for chunk in streamed:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert [c["text"] for c in answer["choices"]] == list(texts.values())
    assert answer["usage"]["completion_tokens"] == 20


def test_a_stream_tells_its_usage_last_and_only_if_asked(
    toy_url: str, client: httpx.Client
) -> None:
    body = {**BODY, "stream": True}
    plain = events(client.post(f"{toy_url}/v1/completions", json=body))
    assert all("usage" not in chunk for chunk in plain)
    asked = {**body, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post(f"{toy_url}/v1/completions", json=asked))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5


def test_echoed_logprobs_are_the_engines_to_the_same_float(
    toy_url: str, toy_engine: Engine, client: httpx.Client
) -> None:
    """The request of lm-eval's `local-completions`."""
    ids = [1, 40, 41, 42, 60, 5]
    body = {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    answer = client.post(f"{toy_url}/v1/completions", json={**body, "seed": 1234}).json()
    scored = answer["choices"][0]["logprobs"]
    wanted = SamplingParams(
        max_new_tokens=1,
        temperature=0,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=1,
    )
    [expected] = toy_engine.submit(ids, wanted).result()
    assert expected.logprobs is not None
    given = [*expected.logprobs.input, *expected.logprobs.output]
    assert scored["token_logprobs"] == [t.logprob for t in given]
    assert scored["token_logprobs"][0] is None
    assert scored["top_logprobs"][0] is None
    assert len(scored["tokens"]) == len(scored["text_offset"]) == len(ids) + 1
    tops = [*expected.logprobs.input_top, *expected.logprobs.output_top]
    for i in range(1, len(given)):
        is_greedy = given[i].token_id == tops[i][0].token_id
        best = max(scored["top_logprobs"][i].values())
        assert (scored["token_logprobs"][i] == best) == is_greedy


def test_an_echo_without_output_scores_the_prompt_alone(toy_url: str, client: httpx.Client) -> None:
    body = {"prompt": "abc", "max_tokens": 0, "logprobs": 0, "echo": True}
    [choice] = client.post(f"{toy_url}/v1/completions", json=body).json()["choices"]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"][-1] < 3


def test_streamed_pieces_add_up_to_the_whole(toy_url: str, client: httpx.Client) -> None:
    body = {**BODY, "max_tokens": 20, "echo": True, "logprobs": 2, "n": 2, "seed": 1}
    whole = client.post(f"{toy_url}/v1/completions", json=body).json()
    streamed = events(client.post(f"{toy_url}/v1/completions", json={**body, "stream": True}))
    for choice in whole["choices"]:
        mine = [c for e in streamed for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        for name, expected in choice["logprobs"].items():
            assert near([x for c in mine for x in c["logprobs"][name]], expected)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


def test_the_sdk_streams(toy_url: str, sdk: Sdk) -> None:
    with sdk(toy_url).completions.create(
        model="toy", prompt="ab", max_tokens=5, temperature=0, stream=True
    ) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)
    whole = sdk(toy_url).completions.create(model="toy", prompt="ab", max_tokens=5, temperature=0)
    assert text == whole.choices[0].text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prompt": []}, "empty list"),
        ({"prompt": [1, "a"]}, "prompt must be"),
        ({"prompt": [[]]}, "prompt must be"),
        ({"prompt": [[1, 9999]]}, "not in the vocabulary"),
        ({"prompt": [True]}, "prompt must be"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n must"),
        ({"logprobs": 1000}, "top_logprobs_num"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 1_000_000}, "1,000,000 stops"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"regex": "a", "json_schema": "{}"}, "2 constraints"),
        ({"regex": "("}, "regex"),
        ({"response_format": {"type": "poem"}}, "response_format"),
        ({"suffix": "end"}, "suffix"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
def test_a_bad_value_is_400_and_says_which(
    toy_url: str, client: httpx.Client, more: dict[str, Any], said: str
) -> None:
    for stream in (False, True):
        body = {**BODY, **more, "stream": stream}
        answer = client.post(f"{toy_url}/v1/completions", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert said in error["message"]


def test_a_prompt_over_the_context_is_told_by_its_code(toy_url: str, sdk: Sdk) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sdk(toy_url).completions.create(model="toy", prompt="a" * 600)
    assert raised.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"regex": "[0-9]{3}"}, r"[0-9]{3}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, r"yes|no"),
        ({"guided_regex": "a+b"}, r"a+b"),
        ({"ebnf": 'root ::= "left" | "right"'}, r"left|right"),
    ],
)
def test_a_constraint_holds_under_every_name(
    toy_url: str, client: httpx.Client, given: dict[str, Any], form: str
) -> None:
    answer = client.post(f"{toy_url}/v1/completions", json={**BODY, "max_tokens": 40, **given})
    [choice] = answer.json()["choices"]
    assert choice["finish_reason"] == "length" or re.fullmatch(form, choice["text"])


def test_stop_strings_end_the_text(script: Script, client: httpx.Client) -> None:
    _, url = script("one two three")
    body = {"prompt": "count", "stop": " three", "max_tokens": 50}
    [choice] = client.post(f"{url}/v1/completions", json=body).json()["choices"]
    assert (choice["text"], choice["matched_stop"]) == ("one two", " three")
