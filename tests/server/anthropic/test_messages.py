"""`/v1/messages` by Anthropic's client and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest

from sgl_mlx.core import Image
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server import Limits
from tests.server.openai.test_chat import picture
from tests.server.openai.test_tools import CALL

Script = Any
Claude = Callable[..., anthropic.Anthropic]
HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "weather",
    "description": "",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Rome"]}}},
}


@pytest.fixture
def claude() -> Iterator[Claude]:
    """`claude(url)` returns Anthropic's client of a server."""
    made: list[anthropic.Anthropic] = []

    def _claude(url: str, key: str = "none") -> anthropic.Anthropic:
        made.append(anthropic.Anthropic(base_url=url, api_key=key, max_retries=0))
        return made[-1]

    yield _claude
    for client in made:
        client.close()


def post(client: httpx.Client, url: str, **body: Any) -> httpx.Response:
    return client.post(f"{url}/v1/messages", json={"max_tokens": 99, "messages": HI, **body})


def named_events(response: httpx.Response) -> list[dict[str, Any]]:
    """The data of a stream's events, each of which has the name that its data says."""
    found = []
    for part in response.text.strip().split("\n\n"):
        if part.startswith(":"):
            continue
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_the_sdk_gets_a_message_and_a_stream(script: Script, claude: Claude) -> None:
    engine, url = script("Hello there, friend")
    asked: Any = {"model": "scripted", "max_tokens": 99, "messages": HI, "system": "Be kind"}
    answer = claude(url).messages.create(**asked)
    assert [block.text for block in answer.content] == ["Hello there, friend"]  # type: ignore[union-attr]
    assert answer.stop_reason == "end_turn"
    with claude(url).messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "Hello there, friend"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage) == ("end_turn", answer.usage)
    system = "<|im_start|>system\nBe kind<|im_end|>\n"
    expected = f"{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert engine.prompts == [expected] * 2


def test_the_events_come_in_their_order(script: Script, client: httpx.Client) -> None:
    _, url = script(f"<think>\nhm\n</think>\nLook.\n{CALL}\n{CALL}", piece=5)
    found = named_events(post(client, url, stream=True, tools=[WEATHER]))
    names = [event["type"] for event in found]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    starts = [e["content_block"]["type"] for e in found if e["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    opened: int | None = None
    for event in found:
        match event["type"]:
            case "content_block_start":
                assert opened is None
                opened = event["index"]
            case "content_block_delta":
                assert event["index"] == opened
            case "content_block_stop":
                assert event["index"] == opened
                opened = None
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("piece", [1, 1000])
def test_the_sdk_reads_the_same_blocks_streamed_and_whole(
    script: Script, claude: Claude, piece: int
) -> None:
    _, url = script(f"<think>\nhm\n</think>\nLook.\n{CALL}", piece=piece)
    asked: Any = {"model": "scripted", "max_tokens": 99, "messages": HI, "tools": [WEATHER]}
    whole = claude(url).messages.create(**asked)
    with claude(url).messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        thinking, text, call = message.content
        assert (thinking.type, text.type, call.type) == ("thinking", "text", "tool_use")
        assert (thinking.thinking, text.text) == ("hm", "Look.")  # type: ignore[union-attr]
        assert call.input == {"city": "Rome"}  # type: ignore[union-attr]
        assert message.stop_reason == "tool_use"


def test_results_of_tools_and_thoughts_come_back(script: Script, client: httpx.Client) -> None:
    engine, url = script("Sunny.")
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "25"}],
    }
    messages = [
        *HI,
        {
            "role": "assistant",
            "content": [thought, {"type": "redacted_thinking", "data": "x"}, use],
        },
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
        {"role": "system", "content": "Be brief"},
    ]
    assert post(client, url, messages=messages, tools=[WEATHER]).status_code == 200
    assert (
        "<|im_start|>assistant\n<think>hm</think><tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n25<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n"
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>assistant\n"
    ) in engine.prompts[0]


def test_the_billing_line_does_not_reach_the_prompt(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    for mark in ("a1", "b2"):
        billing = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={mark};"}
        rules = {"type": "text", "text": "Rules", "cache_control": {"type": "ephemeral"}}
        post(client, url, system=[billing, rules])
    assert engine.prompts[0] == engine.prompts[1]
    assert engine.prompts[0].startswith("<|im_start|>system\nRules<|im_end|>")


def test_a_second_turn_is_cached_up_to_its_last_message(
    smollm2: Engine, serve: Any, client: httpx.Client
) -> None:
    url = serve(smollm2)
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
        {"type": "text", "text": "You help with the weather of many cities. " * 12},
    ]
    first = post(client, url, system=system, max_tokens=12, temperature=0).json()
    said = {"role": "assistant", "content": first["content"]}
    messages = [*HI, said, {"role": "user", "content": "And?"}]
    system[0] = {"type": "text", "text": "x-anthropic-billing-header: cch=2;"}
    usage = post(client, url, system=system, messages=messages, max_tokens=4).json()["usage"]
    before = first["usage"]["input_tokens"] + first["usage"]["cache_read_input_tokens"]
    assert usage["cache_read_input_tokens"] >= 0.99 * (before + first["usage"]["output_tokens"] - 1)


def test_a_demanded_call_is_guaranteed(smollm2: Engine, serve: Any, client: httpx.Client) -> None:
    url = serve(smollm2)
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        answer = post(client, url, tools=[WEATHER], tool_choice=choice, temperature=0).json()
        [call] = answer["content"]
        assert (call["type"], call["name"], answer["stop_reason"]) == (
            "tool_use",
            "weather",
            "tool_use",
        )


def test_stops_and_limits_have_their_reasons(script: Script, client: httpx.Client) -> None:
    _, url = script("one two three four")
    stopped = post(client, url, stop_sequences=[" three"]).json()
    assert stopped["stop_reason"] == "stop_sequence"
    assert stopped["stop_sequence"] == " three"
    assert post(client, url, max_tokens=2).json()["stop_reason"] == "max_tokens"


def test_thinking_is_a_switch_of_the_template(script: Script, client: httpx.Client) -> None:
    engine, url = script(chat_template="{{ enable_thinking }}{{ messages[0].content }}")
    for given in (
        {"type": "adaptive"},
        {"type": "enabled", "budget_tokens": 9},
        {"type": "disabled"},
    ):
        post(client, url, thinking=given)
    assert engine.prompts == ["TrueHi", "TrueHi", "FalseHi"]


def test_a_schema_is_kept(toy_url: str, client: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    [block] = post(client, toy_url, output_config=form).json()["content"]
    assert set(json.loads(block["text"])) == {"ok"}


def test_tokens_are_counted_as_they_are_computed(
    toy_url: str, claude: Claude, client: httpx.Client
) -> None:
    counted = claude(toy_url).messages.count_tokens(model="toy", messages=HI, system="Hm")
    usage = post(client, toy_url, system="Hm").json()["usage"]
    assert counted.input_tokens == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_pictures_are_data_and_urls_are_refused(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    kind, data = picture().split(";base64,")
    source = {"type": "base64", "media_type": kind.removeprefix("data:"), "data": data}
    shown = {"role": "user", "content": [{"type": "image", "source": source}]}
    assert post(client, url, messages=[shown]).status_code == 200
    assert engine.calls[0].prompt[1] == Image(picture())
    shown["content"][0]["source"] = {"type": "url", "url": "http://169.254.169.254/"}  # type: ignore[index]
    assert post(client, url, messages=[shown]).status_code == 400


def test_a_long_prompt_is_told_in_the_words_that_claude_code_reads(
    toy_url: str, claude: Claude
) -> None:
    long: Any = [{"role": "user", "content": "a" * 600}]
    with pytest.raises(anthropic.BadRequestError) as raised:
        claude(toy_url).messages.create(model="toy", max_tokens=9, messages=long)
    error: Any = raised.value.body
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    words = error["error"]["message"].split()
    assert " ".join(words[:4]) == "prompt is too long:"
    assert int(words[4]) > 600
    assert words[5:] == ["tokens", ">", "512", "maximum"]


def test_errors_are_the_sdks_own(script: Script, claude: Claude) -> None:
    _, url = script(api_keys=["right"])
    asked: Any = {"model": "scripted", "max_tokens": 9, "messages": HI}
    with pytest.raises(anthropic.AuthenticationError):
        claude(url, "wrong").messages.create(**asked)
    assert claude(url, "right").messages.create(**asked).content
    with pytest.raises(anthropic.NotFoundError):
        claude(url, "right").messages.create(**{**asked, "model": "other"})


def test_overload_has_anthropics_status(script: Script, client: httpx.Client) -> None:
    engine, url = script("x", manual=True, limits=Limits(max_requests=1, comment_seconds=0.05))
    body = {"max_tokens": 9, "messages": HI, "stream": True}
    with client.stream("POST", f"{url}/v1/messages", json=body) as first:
        lines = first.iter_lines()
        next(lines)
        refused = post(client, url)
        assert refused.status_code == 529
        assert refused.json()["error"]["type"] == "overloaded_error"
        engine.run_all()
        assert "event: message_stop" in list(lines)


def test_an_error_in_a_stream_is_an_event(script: Script, client: httpx.Client) -> None:
    engine, url = script([RuntimeError("broke")], manual=True, limits=Limits(comment_seconds=0.05))
    body = {"max_tokens": 9, "messages": HI, "stream": True}
    with client.stream("POST", f"{url}/v1/messages", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.run_all()
        rest = list(lines)
    assert "event: error" in rest
    assert any('"type":"api_error"' in line for line in rest)


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 0},
        {"max_tokens": None},
        {"messages": []},
        {"messages": ["Hi"]},
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        {"tools": [{"name": ""}]},
        {"tools": [WEATHER], "tool_choice": {"type": "maybe"}},
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}},
        {"output_config": {"format": {"type": "poem"}}},
        {"stop_sequences": ["x"] * 1_000_000},
        {"temperature": "hot"},
    ],
)
def test_what_is_wrong_is_400_in_anthropics_shape(
    script: Script, client: httpx.Client, body: dict[str, Any]
) -> None:
    _, url = script()
    answer = post(client, url, **body)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_betas_versions_and_server_tools_are_no_obstacle(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script()
    headers = {"anthropic-version": "2099-01-01", "anthropic-beta": "anything-2030"}
    body = {
        "max_tokens": 32_000,
        "messages": HI,
        "tools": [{"type": "web_search_20250305", "name": "web_search"}, WEATHER],
        "metadata": {"user_id": "u"},
        "context_management": {"edits": []},
    }
    answer = client.post(f"{url}/v1/messages?beta=true", json=body, headers=headers)
    assert answer.status_code == 200
    assert client.head(url).status_code == 200
    assert "web_search" not in engine.prompts[0]
