"""`/generate` and SGLang's other routes: by hand, and by `RuntimeEndpoint`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import httpx
import pytest

import sgl_mlx as sgl
from sgl_mlx.core import SamplingParams, Text, TokenLogprob
from sgl_mlx.runtime.engine import Engine
from tests.patience import PATIENCE, eventually
from tests.server.conftest import events
from tests.server.openai.test_chat import picture

Script = Any
GREEDY = {"max_new_tokens": 6, "temperature": 0}
OF_CACHE = ("id", "cached_tokens", "drafted_tokens", "accepted_tokens")
"""Parts of `meta_info` that are random, or depend on what was asked before."""


def without_cache(answer: Any) -> Any:
    """An answer, or several, without what depends on the cache or is random."""
    if isinstance(answer, list):
        return [without_cache(one) for one in answer]
    meta = {k: v for k, v in answer["meta_info"].items() if k not in OF_CACHE}
    return {**answer, "meta_info": meta}


@pytest.fixture
def endpoint(toy_url: str) -> Iterator[sgl.RuntimeEndpoint]:
    made = sgl.RuntimeEndpoint(toy_url, chat_template_name="chatml")
    yield made
    made.shutdown()


@pytest.mark.parametrize(
    "body",
    [
        {"text": "ab"},
        {"text": ["ab", "ba"]},
        {"input_ids": [1, 40, 41]},
        {"input_ids": [[1, 40, 41], [1, 50]]},
        {"text": "ab", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
        {"text": "ab", "return_logprob": True, "return_text_in_logprobs": True},
    ],
)
def test_the_answer_is_the_engines(
    toy_url: str, toy_engine: Engine, client: httpx.Client, body: dict[str, Any]
) -> None:
    answer = client.post(f"{toy_url}/generate", json={**body, "sampling_params": GREEDY})
    given = {("prompt" if k == "text" else k): v for k, v in body.items()}
    expected = toy_engine.generate(sampling_params=GREEDY, **given)
    expected = json.loads(json.dumps(expected))
    assert without_cache(answer.json()) == without_cache(expected)


def test_lists_give_each_prompt_its_own(toy_url: str, client: httpx.Client) -> None:
    body = {
        "text": ["ab", "ba"],
        "sampling_params": [{**GREEDY, "max_new_tokens": 2}, {**GREEDY, "n": 2}],
        "return_logprob": [True, False],
        "rid": ["one", "two"],
    }
    answers = client.post(f"{toy_url}/generate", json=body).json()
    assert [a["meta_info"]["id"] for a in answers] == ["one", "two-0", "two-1"]
    assert [len(a["output_ids"]) for a in answers] == [2, 6, 6]
    assert ["output_token_logprobs" in a["meta_info"] for a in answers] == [True, False, False]


@pytest.mark.parametrize("text", ["ab", ["ab", "ba"]])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_holds_all_text_so_far(
    toy_url: str, client: httpx.Client, text: Any, n: int
) -> None:
    body = {"text": text, "sampling_params": {**GREEDY, "n": n}}
    whole = client.post(f"{toy_url}/generate", json=body).json()
    answers = whole if isinstance(whole, list) else [whole]
    chunks = events(client.post(f"{toy_url}/generate", json={**body, "stream": True}))
    for i, answer in enumerate(answers):
        mine = [chunk for chunk in chunks if chunk.get("index", 0) == i]
        assert all(b["text"].startswith(a["text"]) for a, b in pairwise(mine))
        assert mine[-1]["text"] == answer["text"]
        assert mine[-1]["meta_info"]["finish_reason"] == answer["meta_info"]["finish_reason"]
        assert mine[0]["meta_info"]["finish_reason"] is None


def test_pictures_stand_where_the_text_has_them(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    body = {"text": "<image> what?", "image_data": picture()}
    assert client.post(f"{url}/generate", json=body).status_code == 200
    assert engine.calls[0].prompt[1] == Text(" what?")
    for wrong in ({"text": "no mark"}, {"image_data": "/etc/passwd"}, {"image_data": "http://a/b"}):
        assert client.post(f"{url}/generate", json={**body, **wrong}).status_code == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "text or input_ids"),
        ({"text": "a", "input_ids": [1]}, "text or input_ids"),
        ({"text": "a", "sampling_params": {"heat": 1}}, "heat"),
        ({"text": "a", "sampling_params": {"temperature": "hot"}}, "temperature"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": ["a", "b"], "image_data": ["x"]}, "image_data"),
        ({"input_ids": ["a"]}, "input_ids"),
        ({"input_ids": [[99_999]]}, "vocabulary"),
        ({"text": "a", "token_ids_logprob": ["x"]}, "token_ids_logprob"),
        ({"text": "a", "token_ids_logprob": [99_999]}, "token"),
        ({"text": "a", "sampling_params": {"stop": ["x"] * 1_000_000}}, "stops"),
        ({"text": "a", "model": "other"}, "other"),
        ({"text": "a" * 600}, "tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_400_or_404_and_said(
    toy_url: str, client: httpx.Client, body: dict[str, Any], said: str, stream: bool
) -> None:
    answer = client.post(f"{toy_url}/generate", json={**body, "stream": stream})
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]["message"]


def test_the_same_request_fields_that_a_router_adds_are_ignored(
    toy_url: str, client: httpx.Client
) -> None:
    added = {"model": None, "log_metrics": True, "background": False, "return_bytes": False}
    body = {"text": "ab", "sampling_params": GREEDY, **added}
    assert client.post(f"{toy_url}/generate", json=body).status_code == 200


def test_an_abort_ends_requests_by_the_beginning_of_their_id(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script("x", manual=True)
    with httpx.Client(timeout=PATIENCE) as other:
        body = {"text": "x", "rid": "job-7", "stream": True}
        with other.stream("POST", f"{url}/generate", json=body):
            eventually(lambda: len(engine.calls) == 1, "the request is under way")
            busy = client.post(f"{url}/flush_cache")
            assert busy.status_code == 400
            assert client.post(f"{url}/abort_request", json={"rid": "other"}).status_code == 200
            assert not engine.calls[0].future.cancelled()
            client.post(f"{url}/abort_request", json={"rid": "job"})
            eventually(engine.calls[0].future.cancelled, "the request is given up")
    flush = f"{url}/flush_cache"
    eventually(lambda: client.post(flush).status_code == 200, "nothing runs any more")


def test_information_has_old_and_new_names(toy_url: str, client: httpx.Client) -> None:
    for path in ("/model_info", "/get_model_info"):
        assert client.get(toy_url + path).json()["is_generation"] is True
    for path in ("/server_info", "/get_server_info"):
        info = client.get(toy_url + path).json()
        assert (info["served_model_name"], info["max_total_num_tokens"]) == ("toy", 4000)
    [load] = client.get(f"{toy_url}/v1/loads").json()["loads"]
    assert (load["num_total_reqs"], load["max_total_num_tokens"]) == (0, 4000)
    assert client.get(f"{toy_url}/health_generate").status_code == 200
    assert client.get(f"{toy_url}/version").status_code == 404


def test_tokens_and_text_go_both_ways(
    toy_url: str, toy_engine: Engine, client: httpx.Client
) -> None:
    told = client.post(f"{toy_url}/tokenize", json={"prompt": "ab é"}).json()
    assert told["tokens"] == toy_engine.tokenizer.encode("ab é")
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 512)
    back = client.post(f"{toy_url}/v1/detokenize", json={"tokens": told["tokens"]}).json()
    assert back["text"] == "ab é"
    several = client.post(f"{toy_url}/tokenize", json={"prompt": ["a", "bb"]}).json()
    assert len(several["tokens"]) == len(several["count"]) == 2
    messages = [{"role": "user", "content": "Hi"}]
    chat = client.post(f"{toy_url}/tokenize", json={"messages": messages}).json()
    asked = {"messages": messages, "max_tokens": 1}
    usage = client.post(f"{toy_url}/v1/chat/completions", json=asked).json()["usage"]
    assert chat["count"] == usage["prompt_tokens"]


def test_the_end_token_is_told(script: Script, client: httpx.Client) -> None:
    _, url = script()
    assert client.get(f"{url}/tokenizer_info").json()["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("body", [{"tokens": [-1]}, {"tokens": ["a"]}, {"tokens": [10**6]}, {}])
def test_tokens_that_are_none_are_400(
    toy_url: str, client: httpx.Client, body: dict[str, Any]
) -> None:
    assert client.post(f"{toy_url}/detokenize", json=body).status_code == 400


# -- the language over HTTP -----------------------------------------------------------------------


def test_a_program_gets_what_it_gets_in_process(
    toy_engine: Engine, endpoint: sgl.RuntimeEndpoint
) -> None:
    params = {"temperature": 0, "regex": "[a-z]{4}", "token_healing": False}

    @sgl.function
    def program(s: Any, word: str) -> None:
        s += word + " is " + sgl.gen("what", **params)
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            fork += f" {i}:" + sgl.gen("more", **params)
        s += forks[0]["more"] + forks[1]["more"]
        s += " so " + sgl.select("so", ["yes", "no", "maybe so"], temperature=0)

    there, here = (program.run(word="tea", backend=b) for b in (endpoint, toy_engine))
    assert there.text() == here.text()
    assert there.get_meta_info("what")["completion_tokens"] > 0
    assert there["so"] == here["so"]


@pytest.mark.parametrize("prompt", ["Is it?", "The answer is", "a b a", "no ", "x\n\n"])
@pytest.mark.parametrize("unconditional", [False, True])
def test_scores_equal_the_engines(
    toy_engine: Engine, endpoint: sgl.RuntimeEndpoint, prompt: str, unconditional: bool
) -> None:
    choices = [" yes", "b", "\nno", "ab"]
    here, there = (
        backend.score((Text(prompt),), choices, unconditional).result()
        for backend in (toy_engine, endpoint)
    )
    for expected, scored in zip(here.choices, there.choices, strict=True):
        assert_same(scored.tokens, expected.tokens)
        assert_same(scored.unconditional or (), expected.unconditional or ())


def assert_same(given: Sequence[TokenLogprob], expected: Sequence[TokenLogprob]) -> None:
    """Other batches round differently; a first token has no logprob."""
    assert [t.token_id for t in given] == [t.token_id for t in expected]
    logprobs = [t.logprob or 0 for t in expected]
    assert [t.logprob or 0 for t in given] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_logprobs_reach_the_endpoint(
    toy_engine: Engine, endpoint: sgl.RuntimeEndpoint, stream: bool
) -> None:
    params = SamplingParams(
        max_new_tokens=3,
        temperature=0,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
    )
    told: list[Any] = []
    on_event = told.append if stream else None
    [here] = toy_engine.submit((Text("some prompt"),), params).result()
    [there] = endpoint.submit((Text("some prompt"),), params, on_event).result()
    assert here.logprobs is not None
    assert there.logprobs == here.logprobs
    assert len(here.logprobs.input) == here.prompt_tokens


def test_the_endpoint_flushes_and_knows_the_model(
    toy_engine: Engine, endpoint: sgl.RuntimeEndpoint
) -> None:
    endpoint.cache_prefix("a prefix to keep")
    assert endpoint.flush_cache() is True
    assert endpoint.model_name == toy_engine.model_name
    assert endpoint.get_server_info()["max_total_num_tokens"] == 4000
