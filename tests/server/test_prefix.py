"""The prefix survives the client: what was computed for one turn is found by the next."""

from __future__ import annotations

import json
from array import array
from typing import Any

import httpx
import pytest

from sgl_mlx.core import Generated, Text
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server.memory import Answer, Memory
from sgl_mlx.server.output import Form, Piece
from tests.server.openai.test_tools import CALL, WEATHER
from tests.server.scripted import CHATML

Script = Any
SYSTEM = {"role": "system", "content": "You help with the weather of many cities. " * 12}
ASK = {"role": "user", "content": "How is the weather in Rome?"}
THINKS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def post(client: httpx.Client, url: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def share_cached(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The share of all tokens of a first turn that a second one found; its last is never kept."""
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    return float(cached / (first["usage"]["total_tokens"] - 1))


def test_a_call_that_the_client_writes_anew_is_found(
    smollm2: Engine, serve: Any, client: httpx.Client
) -> None:
    url = serve(smollm2)
    body: dict[str, Any] = {"tools": [WEATHER], "temperature": 0, "messages": [SYSTEM, ASK]}
    first = post(client, url, tool_choice="required", **body)
    message = first["choices"][0]["message"]
    function = message["tool_calls"][0]["function"]
    arguments = json.loads(function["arguments"])
    function["arguments"] = json.dumps(arguments, separators=(",", ":"), sort_keys=True)
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "25 °C"}
    body["messages"] += [message, result]
    second = post(client, url, max_tokens=2, **body)
    assert share_cached(first, second) >= 0.99


@pytest.mark.parametrize("seed", range(2))
def test_an_answer_is_found_whatever_tokens_spell_it(
    smollm2: Engine, serve: Any, client: httpx.Client, seed: int
) -> None:
    url = serve(smollm2)
    messages: list[Any] = [SYSTEM, {"role": "user", "content": f"Tell me about number {seed}."}]
    body = {"temperature": 1.5, "max_tokens": 16, "seed": seed}
    first = post(client, url, messages=messages, **body)
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    second = post(client, url, messages=messages, max_tokens=2)
    assert share_cached(first, second) >= 0.99


def test_the_models_own_spelling_of_a_call_is_kept(script: Script, client: httpx.Client) -> None:
    """Also one that is not how the template would write the call."""
    odd = '<tool_call>{"arguments":{"city":"Rome"},"name":"weather"}</tool_call>'
    engine, url = script([odd, "Sunny."])
    body: dict[str, Any] = {"tools": [WEATHER], "messages": [ASK]}
    message = post(client, url, **body)["choices"][0]["message"]
    body["messages"] += [message, {"role": "tool", "content": "25"}]
    post(client, url, **body)
    before, after = engine.prompts
    assert after.startswith(f"{before}{odd}<|im_end|>\n<|im_start|>tool\n25<|im_end|>")
    assert Generated(odd, engine.calls[0].future.result()[0].token_ids) in engine.calls[1].prompt


def test_thoughts_that_come_back_are_the_models_own(script: Script, client: httpx.Client) -> None:
    engine, url = script([f"hm\n</think>\n\nLook.{CALL}", "Sunny."], chat_template=THINKS)
    body: dict[str, Any] = {"tools": [WEATHER], "messages": [ASK]}
    message = post(client, url, **body)["choices"][0]["message"]
    assert message["reasoning_content"] == "hm"
    body["messages"] += [message, {"role": "tool", "content": "25"}]
    post(client, url, **body)
    before, after = engine.prompts
    assert after.startswith(f"{before}hm\n</think>\n\nLook.{CALL}<|im_end|>")


def test_thoughts_that_are_left_out_stay_out(script: Script, client: httpx.Client) -> None:
    """The template, or the client, decides; all before the answer is found."""
    engine, url = script(["<think>hm</think>Yes", "No"])
    message = post(client, url, messages=[ASK])["choices"][0]["message"]
    del message["reasoning_content"]
    post(client, url, messages=[ASK, message, ASK])
    before, after = engine.prompts
    assert after.startswith(f"{before}Yes<|im_end|>")


def test_an_answer_that_the_client_changed_is_taken_as_it_is(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script(["Yes, surely", "No"])
    post(client, url, messages=[ASK])
    said = {"role": "assistant", "content": "No, never"}
    post(client, url, messages=[ASK, said, ASK])
    assert not any(isinstance(part, Generated) for part in engine.calls[1].prompt)
    assert "No, never" in engine.prompts[1]


def test_a_template_that_refuses_marks_is_used_without(
    script: Script, client: httpx.Client
) -> None:
    picky = CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls"
        " %}{{ raise_exception('a result without a call') }}{% endif %}",
    )
    engine, url = script([CALL, "Sunny."], chat_template=picky)
    body: dict[str, Any] = {"tools": [WEATHER], "messages": [ASK]}
    message = post(client, url, **body)["choices"][0]["message"]
    body["messages"] += [message, {"role": "tool", "content": "25"}]
    post(client, url, **body)
    assert engine.prompts[1].startswith(f"{engine.prompts[0]}{CALL}<|im_end|>")


def test_marks_in_a_clients_text_do_no_harm(script: Script, client: httpx.Client) -> None:
    engine, url = script(["Yes", "No"])
    post(client, url, messages=[ASK])
    marked = {"role": "user", "content": "\ue0100\ue011 \ue00f"}
    post(client, url, messages=[ASK, {"role": "assistant", "content": "Yes"}, marked])
    assert engine.prompts[1].endswith("<|im_start|>user\n0 <|im_end|>\n<|im_start|>assistant\n")


def test_the_least_recently_used_answers_are_forgotten() -> None:
    memory = Memory(tokens=10)
    for name in ("a", "b", "a", "c"):
        memory.keep([Piece("text", name)], Answer(name, array("i", [1, 2, 3, 4]), Form()))
        memory.find({"content": "a"})
    found = {name: memory.find({"content": name}) for name in "abc"}
    assert [name for name, answer in found.items() if answer] == ["a", "c"]


def test_one_bos_begins_the_prompt_in_every_api(
    toy_engine: Engine, client: httpx.Client, serve: Any
) -> None:
    template = toy_engine.tokenizer.chat_template
    messages = [{"role": "user", "content": "Hi"}]
    try:
        toy_engine.tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
        url = serve(toy_engine)
        bodies: dict[str, dict[str, Any]] = {
            "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
            "/v1/chat/completions": {"messages": messages, "max_tokens": 1},
            "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
            "/v1/messages": {"messages": messages, "max_tokens": 1},
        }
        usages = [client.post(url + p, json=body).json()["usage"] for p, body in bodies.items()]
    finally:
        toy_engine.tokenizer.chat_template = template
    counts = {
        usage.get("prompt_tokens")
        or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
        for usage in usages
    }
    assert counts == {len(toy_engine.tokenizer.encode("Hi"))}


def test_text_before_an_answer_is_not_taken_for_it() -> None:
    answer = Answer("Yes", array("i", [7]), Form())
    assert answer.spoken("Yes") == (Text(""), Generated("Yes", (7,)))
    assert answer.spoken("Yes!") == (Text("Yes!"),)
