"""Tools and thoughts over `/v1/chat/completions`: free, forced, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from sgl_mlx.core import SamplingParams
from sgl_mlx.runtime.constraints.grammar import GrammarCompiler
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.tokenizer import Tokenizer
from tests.server.conftest import Sdk, events
from tests.server.scripted import CHATML

Script = Any
ASK = [{"role": "user", "content": "How is the weather in Rome?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather ::= forecast",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def post(client: httpx.Client, url: str, **body: Any) -> httpx.Response:
    sent = {"messages": ASK, "tools": [WEATHER, TIME], **body}
    return client.post(f"{url}/v1/chat/completions", json=sent)


def accumulated(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's deltas add up to, and how it ended."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        [choice] = chunk["choices"]
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", ()):
            assert call["index"] == len(message["tool_calls"])
            message["tool_calls"].append(call)
    message["finish_reason"] = chunks[-1]["choices"][0]["finish_reason"]
    return message


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_calls_are_the_same_streamed_and_whole(
    script: Script, client: httpx.Client, piece: int
) -> None:
    engine, url = script(f"<think>\nhm\n</think>\nLet me look.\n{CALL}\n{CALL}", piece=piece)
    [choice] = post(client, url).json()["choices"]
    message = choice["message"]
    streamed = accumulated(events(post(client, url, stream=True)))
    assert message["content"] == streamed["content"] == "Let me look."
    assert message["reasoning_content"] == streamed["reasoning_content"] == "hm"
    assert choice["finish_reason"] == streamed["finish_reason"] == "tool_calls"
    for calls in (message["tool_calls"], streamed["tool_calls"]):
        assert [json.loads(c["function"]["arguments"]) for c in calls] == [{"city": "Rome"}] * 2
        assert {c["function"]["name"] for c in calls} == {"weather"}
        assert len({c["id"] for c in calls}) == 2
    assert '"name":"weather"' in engine.prompts[0].replace(" ", "")


def test_the_sdk_runs_a_call_and_sends_its_result(script: Script, sdk: Sdk) -> None:
    engine, url = script([CALL, "Sunny."])
    client = sdk(url).chat.completions
    tools: Any = [WEATHER]
    first = client.create(model="scripted", messages=ASK, tools=tools)  # type: ignore[arg-type]
    message = first.choices[0].message
    assert message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    history: Any = [*ASK, message.model_dump(exclude_none=True), result]
    second = client.create(model="scripted", messages=history, tools=tools)
    assert second.choices[0].message.content == "Sunny."
    assert engine.prompts[1].startswith(engine.prompts[0] + CALL)


def test_one_call_is_made_if_no_more_are_wanted(script: Script, client: httpx.Client) -> None:
    _, url = script(f"{CALL}\n{CALL}")
    answer = post(client, url, parallel_tool_calls=False).json()
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1


def test_a_call_cut_off_by_the_limit_is_text_and_length(
    script: Script, client: httpx.Client
) -> None:
    _, url = script(CALL)
    [choice] = post(client, url, max_tokens=3).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith("<tool_call>")


def test_calls_go_with_stop_strings(script: Script, client: httpx.Client) -> None:
    _, url = script(f"{CALL}\nSTOP and more")
    for stream in (False, True):
        answer = post(client, url, stop=["STOP"], stream=stream)
        if stream:
            found = accumulated(events(answer))
            assert (len(found["tool_calls"]), found["finish_reason"]) == (1, "tool_calls")
        else:
            [choice] = answer.json()["choices"]
            assert len(choice["message"]["tool_calls"]) == 1
            assert choice["finish_reason"] == "tool_calls"


def test_without_tools_nothing_is_taken_for_a_call(script: Script, client: httpx.Client) -> None:
    engine, url = script(CALL)
    for more in ({"tools": None}, {"tool_choice": "none"}, {"tools": []}):
        [choice] = post(client, url, **more).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert not any("weather" in prompt.split("Rome")[1] for prompt in engine.prompts)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_asked_for_is_guaranteed(
    smollm2: Engine, serve: Any, client: httpx.Client, choice: Any, stream: bool
) -> None:
    url = serve(smollm2)
    tools = [WEATHER] if choice == "required" else [TIME, WEATHER]
    answer = post(client, url, tools=tools, tool_choice=choice, stream=stream, temperature=0)
    if stream:
        found = accumulated(events(answer))
        calls, reason = found["tool_calls"], found["finish_reason"]
    else:
        [ended] = answer.json()["choices"]
        calls, reason = ended["message"]["tool_calls"], ended["finish_reason"]
    [call] = calls
    assert (call["function"]["name"], reason) == ("weather", "tool_calls")
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Rome", "Oslo")
    assert set(arguments) <= {"city", "days"}


def test_a_schema_that_no_grammar_has_is_let_be(
    smollm2: Engine, serve: Any, client: httpx.Client
) -> None:
    odd = {
        "type": "object",
        "properties": {"city": {"const": "Rome"}},
        "required": ["city"],
        "propertyNames": {"pattern": "^c"},
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "odd", "parameters": odd}}
    url = serve(smollm2)
    answer = post(client, url, tools=[tool], tool_choice="required", temperature=0)
    assert answer.status_code == 200
    [call] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


@pytest.mark.parametrize("special", [False, True])
def test_a_schema_comes_after_the_thoughts(
    script: Script, client: httpx.Client, special: bool
) -> None:
    reply = 'hm</think>\n{"a": true}'
    engine, url = script(reply, chat_template=CHATML + "<think>\n")
    if special:
        engine.tokenizer.backend.add_tokens(["</think>"])
        engine.tokenizer = Tokenizer(engine.tokenizer.backend, chat_template=CHATML + "<think>\n")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    [choice] = post(client, url, response_format=form, tools=None).json()["choices"]
    assert choice["message"]["content"] == '{"a": true}'
    assert choice["message"]["reasoning_content"] == "hm"
    params = engine.calls[0].params
    assert accepts(params, engine.tokenizer, reply)
    for wrong in ('{"a": true}', "hm</think>\nno", 'hm</think>{"b": 1}'):
        assert not accepts(params, engine.tokenizer, wrong)


def test_a_forced_call_may_follow_thoughts(script: Script, client: httpx.Client) -> None:
    engine, url = script(f"hm</think>\n{CALL}", chat_template=CHATML + "<think>\n")
    [choice] = post(client, url, tool_choice="required").json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    params = engine.calls[0].params
    assert accepts(params, engine.tokenizer, f"hm</think>\n{CALL}")
    assert not accepts(params, engine.tokenizer, "hm</think>\nSunny.")


def accepts(params: SamplingParams, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a constraint lets a text be written, and end there."""
    constraint = GrammarCompiler(tokenizer, tokenizer.vocab_size).constraint(params)
    assert constraint is not None
    for token in tokenizer.encode(text):
        if not constraint.allowed()[token // 8] >> token % 8 & 1:
            return False
        constraint.accept(token)
    return bool(constraint.complete)


def test_thoughts_can_be_left_in_the_text(script: Script, client: httpx.Client) -> None:
    _, url = script("<think>hm</think>Yes")
    [choice] = post(client, url, separate_reasoning=False).json()["choices"]
    assert choice["message"]["content"] == "<think>hm</think>Yes"
    answer = post(client, url).json()
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


@pytest.mark.parametrize(
    "body",
    [
        {"tool_choice": "maybe"},
        {"tool_choice": {"type": "function", "function": {"name": "missing"}}},
        {"tools": [{"type": "function", "function": {}}]},
        {"tools": [{"type": "function"}]},
    ],
)
def test_what_is_wrong_with_tools_is_400(
    script: Script, client: httpx.Client, body: dict[str, Any]
) -> None:
    _, url = script()
    answer = post(client, url, **body)
    assert answer.status_code == 400
    assert "tool" in answer.json()["error"]["message"]


def test_tools_that_a_server_would_run_are_left_out(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    assert post(client, url, tools=[{"type": "web_search"}, WEATHER]).status_code == 200
    assert "web_search" not in engine.prompts[0]


def test_a_template_that_knows_no_tools_is_given_a_lesson(
    script: Script, client: httpx.Client
) -> None:
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    engine, url = script([CALL, "Sunny."], chat_template=plain)
    [choice] = post(client, url).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert engine.prompts[0].startswith("[system]You may call functions")
    assert '"weather"' in engine.prompts[0]
    result = {"role": "tool", "content": "25"}
    post(client, url, messages=[*ASK, choice["message"], result])
    said = f"[assistant]{CALL}[user]<tool_response>\n25\n</tool_response>"
    assert engine.prompts[1] == engine.prompts[0] + said
