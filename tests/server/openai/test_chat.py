"""`/v1/chat/completions` by OpenAI's client and by hand."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import openai
import pytest
from PIL import Image as Pillow

from sgl_mlx.core import Image, Text
from tests.server.conftest import Sdk, events
from tests.server.near import near
from tests.server.scripted import ScriptedEngine

Script = Any
HI = [{"role": "user", "content": "Hi"}]


def post(client: httpx.Client, url: str, **body: Any) -> httpx.Response:
    return client.post(f"{url}/v1/chat/completions", json={"messages": HI, **body})


def test_the_sdk_gets_an_answer_and_a_stream(script: Script, sdk: Sdk) -> None:
    engine, url = script("Hello there, friend")
    answer = sdk(url).chat.completions.create(model="scripted", messages=HI)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "Hello there, friend"
    assert answer.choices[0].finish_reason == "stop"
    with sdk(url).chat.completions.stream(model="scripted", messages=HI) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello there, friend"
    assert engine.prompts == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"] * 2


def test_a_stream_names_the_role_once_and_ends_with_a_reason(
    script: Script, client: httpx.Client
) -> None:
    _, url = script("Hello there")
    chunks = events(post(client, url, stream=True, n=2))
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in mine) == "Hello there"
        assert [c["finish_reason"] for c in mine[-2:]] == [None, "stop"]
        assert all("role" not in c["delta"] for c in mine[1:])


def test_the_default_limit_is_the_room_left_and_a_large_one_is_clamped(
    toy_url: str, client: httpx.Client
) -> None:
    for limit in ({}, {"max_tokens": 32_000}, {"max_completion_tokens": 128_000}):
        answer = post(client, toy_url, ignore_eos=True, **limit).json()
        usage = answer["usage"]
        assert answer["choices"][0]["finish_reason"] == "length"
        assert usage["total_tokens"] == 512


def test_logprobs_spell_the_content(toy_url: str, client: httpx.Client) -> None:
    body = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8, "seed": 3}
    [choice] = post(client, toy_url, **body).json()["choices"]
    entries = choice["logprobs"]["content"]
    spelled = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert spelled.decode(errors="replace").removeprefix(" ") == choice["message"]["content"] or (
        choice["finish_reason"] == "length"
    )
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)
    chunks = events(post(client, toy_url, **body, stream=True))
    pieces = [c["choices"][0]["logprobs"] for c in chunks]
    assert near([e for piece in pieces if piece for e in piece["content"]], entries)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept(toy_url: str, client: httpx.Client, stream: bool) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    answer = post(client, toy_url, response_format=form, max_tokens=200, stream=stream)
    if stream:
        deltas = [c["choices"][0]["delta"] for c in events(answer)]
        text = "".join(delta.get("content", "") for delta in deltas)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    assert set(json.loads(text)) == {"ok"}


def test_strict_closes_the_schema_and_json_object_takes_any(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script("{}")
    schema = {"type": "object", "properties": {"a": {}}}
    for strict in (True, False):
        form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": strict}}
        post(client, url, response_format=form)
    post(client, url, response_format={"type": "json_object"})
    given = [json.loads(call.params.json_schema) for call in engine.calls]
    assert given == [{**schema, "additionalProperties": False}, schema, {"type": "object"}]


def test_developer_messages_are_merged_into_one_system_turn(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script()
    said = [("developer", "A"), ("system", "B"), ("developer", "C"), ("user", "Hi")]
    messages = [{"role": role, "content": text} for role, text in said]
    assert post(client, url, messages=messages).status_code == 200
    assert engine.prompts[0].startswith(
        "<|im_start|>system\nA\n\nB\n\nC<|im_end|>\n<|im_start|>user"
    )


def test_a_late_system_message_stays_or_becomes_a_reminder(
    script: Script, client: httpx.Client
) -> None:
    messages = [*HI, {"role": "system", "content": "Be brief"}]
    engine, url = script()
    post(client, url, messages=messages)
    assert "<|im_start|>system\nBe brief<|im_end|>" in engine.prompts[0]
    picky = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('system must come first') }}{% endif %}[{{ m.role }}]{{ m.content }}"
        "{% endfor %}"
    )
    engine, url = script(chat_template=picky)
    assert post(client, url, messages=messages).status_code == 200
    assert engine.prompts[0].endswith("<system-reminder>\nBe brief\n</system-reminder>")


def test_contents_may_be_null_text_or_parts_in_any_role(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": parts},
    ]
    assert post(client, url, messages=messages).status_code == 200
    assert '{"name": "f", "arguments": {"a": 1}}' in engine.prompts[0]
    assert "<|im_start|>tool\none\ntwo<|im_end|>" in engine.prompts[0]


def test_the_last_message_can_be_continued(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    messages = [*HI, {"role": "assistant", "content": "Well, "}]
    post(client, url, messages=messages, continue_final_message=True)
    assert engine.prompts[0].endswith("<|im_start|>assistant\nWell, ")


def test_template_variables_and_ids_reach_the_engine(script: Script, client: httpx.Client) -> None:
    engine, url = script(chat_template="{{ messages[0].content }}{{ mood }}{{ reasoning_effort }}")
    post(client, url, chat_template_kwargs={"mood": "!"}, reasoning_effort="low")
    post(client, url, input_ids=engine.tokenizer.encode("as ids"), rid="mine")
    assert engine.prompts == ["Hi!low", "as ids"]
    assert engine.keywords[1]["rid"] == "mine"


def picture() -> str:
    buffer = io.BytesIO()
    Pillow.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shown(url: str) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]


def test_a_picture_stands_where_the_message_has_it(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    assert post(client, url, messages=shown(picture())).status_code == 200
    before, image, after = engine.calls[0].prompt
    assert before == Text("<|im_start|>user\n")
    assert image == Image(picture())
    assert after.text.startswith("\nWhat is it?")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://example.com/a.png",
        "DATA:nothing",
        "",
    ],
)
def test_only_data_urls_are_pictures(script: Script, client: httpx.Client, url: str) -> None:
    engine, address = script()
    answer = post(client, address, messages=shown(url))
    assert answer.status_code == 400
    assert "data:" in answer.json()["error"]["message"]
    assert engine.calls == []


def test_a_model_of_text_alone_refuses_pictures(toy_url: str, client: httpx.Client) -> None:
    answer = post(client, toy_url, messages=shown(picture()))
    assert answer.status_code == 400
    assert "takes no pictures" in answer.json()["error"]["message"]


def test_errors_are_the_sdks_own(script: Script, toy_url: str, sdk: Sdk) -> None:
    _, url = script(api_keys=["right"])
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        sdk(url).chat.completions.create(model="scripted", messages=HI)  # type: ignore[arg-type]
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk(toy_url).chat.completions.create(model="other", messages=HI)  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"
    long = [{"role": "user", "content": "a" * 600}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as overflow:
            sdk(toy_url).chat.completions.create(model="toy", messages=long, stream=stream)  # type: ignore[call-overload]
        assert overflow.value.code == "context_length_exceeded"


def test_a_model_without_a_template_says_so(script: Script, client: httpx.Client) -> None:
    _, url = script(chat_template=None)
    answer = post(client, url)
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


def test_any_name_is_served_if_asked_for(serve: Any, client: httpx.Client) -> None:
    url = serve(ScriptedEngine("x"), any_model=True)
    assert post(client, url, model="claude-haiku").json()["model"] == "claude-haiku"


@pytest.mark.parametrize(
    "messages",
    [[], [{}], [{"role": 1}], [{"role": "user", "content": 5}], [{"role": "user", "content": [5]}]],
)
def test_broken_messages_are_400(script: Script, client: httpx.Client, messages: Any) -> None:
    _, url = script()
    answer = post(client, url, messages=messages)
    assert answer.status_code == 400
    assert "messages" in answer.json()["error"]["message"]
