"""`/v1/responses` by OpenAI's client, and with bodies in Codex's form."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import openai
import pytest

from sgl_mlx.server import Limits
from tests.server.conftest import Sdk
from tests.server.openai.test_tools import CALL

Script = Any
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
NAMESPACE: Any = {"type": "namespace", "name": "mcp__sky", "tools": [WEATHER]}
PATCH: Any = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Change files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}


def post(client: httpx.Client, url: str, **body: Any) -> httpx.Response:
    return client.post(f"{url}/v1/responses", json={"input": "Hi", **body})


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names and numbers must be right."""
    found = []
    for part in response.text.strip().split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == len(found) - 1
    return found


@pytest.mark.parametrize("piece", [1, 1000])
def test_the_sdk_reads_the_same_items_streamed_and_whole(
    script: Script, sdk: Sdk, piece: int
) -> None:
    _, url = script(f"<think>\nhm\n</think>\nLook.\n{CALL}\n{CALL}", piece=piece)
    asked: Any = {"model": "scripted", "input": "Hi", "tools": [WEATHER]}
    whole = sdk(url).responses.create(**asked)
    with sdk(url).responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[0].type == "response.created"
    for answer in (whole, final):
        assert answer.status == "completed"
        assert answer.output_text == "Look."
        kinds = [item.type for item in answer.output]
        assert kinds == ["reasoning", "message", "function_call", "function_call"]
        call: Any = answer.output[2]
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    assert final.usage == whole.usage
    assert whole.usage.output_tokens_details.reasoning_tokens == len("hm")


def test_the_events_add_up_to_the_finished_items(script: Script, client: httpx.Client) -> None:
    """Each delta goes to a part that an earlier event began, as OpenAI's Node client demands."""
    _, url = script(f"<think>\nhm, hm\n</think>\nLook here.\n{CALL}", piece=3)
    items: list[Any] = []
    for event in streamed(post(client, url, stream=True, tools=[WEATHER])):
        part = (event.get("output_index"), event.get("content_index"))
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert part[0] == len(items)
                items.append(event["item"])
            case "content_part.added":
                assert part[1] == len(items[part[0]]["content"])
                items[part[0]]["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                items[part[0]]["content"][part[1]]["text"] += event["delta"]
            case "function_call_arguments.delta":
                items[part[0]]["arguments"] += event["delta"]
            case "output_item.done":
                assert {**items[part[0]], "status": "completed"} == event["item"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call"]


def test_events_come_in_their_order(script: Script, client: httpx.Client) -> None:
    _, url = script(f"Look.\n{CALL}", piece=100)
    found = streamed(post(client, url, stream=True, tools=[WEATHER]))
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]
    for event in found:
        if "item_id" in event:
            assert event["item_id"] == done[event["output_index"]]["id"]


def test_a_request_of_codex_is_taken(script: Script, client: httpx.Client) -> None:
    """Developer messages, namespaces, server's tools, keys of caches, calls, lists of parts."""
    engine, url = script([CALL, "Done."])
    body: dict[str, Any] = {
        "model": "scripted",
        "store": False,
        "stream": True,
        "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
        "tools": [NAMESPACE, {"type": "web_search"}, PATCH],
        "input": [
            {"type": "message", "role": "developer", "content": text("A")},
            {"type": "message", "role": "developer", "content": text("B")},
            {"type": "message", "role": "user", "content": text("Weather?")},
        ],
    }
    first = streamed(post(client, url, **body))
    [call] = first[-1]["response"]["output"]
    assert (call["type"], call["namespace"], call["name"]) == (
        "function_call",
        "mcp__sky",
        "weather",
    )
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": text("25")}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    body["input"] += [thought, call, output]
    second = streamed(post(client, url, **body))
    assert second[-1]["response"]["status"] == "completed"
    before, after = engine.prompts
    assert "<|im_start|>system\nA\n\nB<|im_end|>" in before
    assert "web_search" not in before
    assert after.startswith(before.removesuffix("<|im_start|>assistant\n"))
    assert f"<think>hm</think>{CALL}" in after
    assert "<|im_start|>tool\n25<|im_end|>" in after


def text(said: str) -> list[dict[str, str]]:
    return [{"type": "input_text", "text": said}]


def test_a_tool_of_free_text_is_called_with_its_text(script: Script, client: httpx.Client) -> None:
    call = '<tool_call>\n{"name": "apply_patch", "arguments": {"input": "*** Begin"}}\n</tool_call>'
    engine, url = script([call, "Done."])
    found = streamed(post(client, url, stream=True, tools=[PATCH]))
    [item] = found[-1]["response"]["output"]
    assert (item["type"], item["name"], item["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** Begin",
    )
    assert "lark grammar" in engine.prompts[0]
    output = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "ok"}
    said = [{"role": "user", "content": "Hi"}, item, output]
    assert post(client, url, input=said, tools=[PATCH]).status_code == 200
    assert call in engine.prompts[1]


@pytest.mark.parametrize("name", [None, "", 5, ["x"]])
@pytest.mark.parametrize("tool", [PATCH, WEATHER])
def test_a_tool_without_a_name_is_refused(
    script: Script, client: httpx.Client, tool: Any, name: Any
) -> None:
    _, url = script("x")
    answer = post(client, url, tools=[{**tool, "name": name}])
    assert answer.status_code == 400
    assert "name must be a text" in answer.json()["error"]["message"]


LINES = """start: "*** Begin Patch\\n" line line? "*** End Patch"
line: /[+-][a-z]{0,3}\\n/"""


@pytest.mark.parametrize(
    ("syntax", "definition", "fits"),
    [
        ("lark", LINES, r"\*\*\* Begin Patch\n([+-][a-z]{0,3}\n){1,2}\*\*\* End Patch"),
        ("regex", "[0-9]{2}/[0-9]{2}", "[0-9]{2}/[0-9]{2}"),
    ],
)
@pytest.mark.parametrize("choice", ["required", {"type": "custom", "name": "apply_patch"}])
def test_a_demanded_call_of_free_text_obeys_its_grammar(
    toy_url: str, client: httpx.Client, syntax: str, definition: str, fits: str, choice: Any
) -> None:
    tool = {
        "type": "custom",
        "name": "apply_patch",
        "format": {"type": "grammar", "syntax": syntax, "definition": definition},
    }
    answer = post(client, toy_url, tools=[tool], tool_choice=choice).json()
    [call] = answer["output"]
    assert (call["type"], call["name"]) == ("custom_tool_call", "apply_patch")
    assert re.fullmatch(fits, call["input"])


def test_tools_of_the_same_name_are_told_apart(script: Script, client: httpx.Client) -> None:
    call = '<tool_call>{"name": "mcp__sky.weather", "arguments": {}}</tool_call>'
    _, url = script(call)
    [item] = post(client, url, tools=[WEATHER, NAMESPACE]).json()["output"]
    assert (item["namespace"], item["name"]) == ("mcp__sky", "weather")


def test_a_limit_makes_an_answer_incomplete(script: Script, client: httpx.Client) -> None:
    _, url = script("one two three")
    answer = post(client, url, max_output_tokens=2).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert streamed(post(client, url, max_output_tokens=2, stream=True))[-1]["type"] == (
        "response.incomplete"
    )


def test_a_schema_is_kept(toy_url: str, client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}
    answer = post(client, toy_url, text=form).json()
    assert set(json.loads(answer["output"][0]["content"][0]["text"])) == {"ok"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_prompt_is_told_by_its_code(toy_url: str, sdk: Sdk, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sdk(toy_url).responses.create(model="toy", input="a" * 600, stream=stream)
    assert raised.value.code == "context_length_exceeded"


def test_an_error_in_a_stream_is_a_failed_response(script: Script, client: httpx.Client) -> None:
    engine, url = script([RuntimeError("broke")], manual=True, limits=Limits(comment_seconds=0.05))
    body = {"input": "Hi", "stream": True}
    with client.stream("POST", f"{url}/v1/responses", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.run_all()
        rest = list(lines)
    assert "event: response.failed" in rest
    assert any('"message":"internal error: RuntimeError: broke"' in line for line in rest)


@pytest.mark.parametrize(
    "body",
    [
        {"input": []},
        {"input": ["Hi"]},
        {"input": 5},
        {"previous_response_id": "resp_1"},
        {"text": {"format": {"type": "poem"}}},
        {"tools": [WEATHER], "tool_choice": "maybe"},
        {"tools": [{"type": "function"}]},
        {"temperature": -1},
    ],
)
def test_what_is_wrong_is_400(script: Script, client: httpx.Client, body: dict[str, Any]) -> None:
    _, url = script()
    answer = post(client, url, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
