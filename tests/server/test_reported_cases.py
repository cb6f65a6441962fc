"""Thirty reports about other servers, each held by a test here or by one that `CASES` names."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgl_mlx.runtime.engine import Engine
from tests.server.conftest import events
from tests.server.scripted import CHATML

HERE = Path(__file__).parent
CASES = {
    1: ["test_hardening.py::test_a_client_that_leaves_in_the_middle_frees_its_slots"],
    2: ["openai/test_tools.py::test_a_call_cut_off_by_the_limit_is_text_and_length"],
    3: ["openai/test_tools.py::test_the_sdk_runs_a_call_and_sends_its_result"],
    4: ["test_reported_cases.py::test_a_thinking_chat_is_cached_up_to_the_last_user_turn"],
    5: ["openai/test_tools.py::test_calls_go_with_stop_strings"],
    6: ["test_hardening.py::test_characters_are_never_torn"],
    7: ["openai/test_tools.py::test_calls_are_the_same_streamed_and_whole"],
    8: [
        "anthropic/test_messages.py::test_the_billing_line_does_not_reach_the_prompt",
        "anthropic/test_messages.py::test_a_second_turn_is_cached_up_to_its_last_message",
    ],
    9: ["openai/test_chat.py::test_only_data_urls_are_pictures"],
    10: ["openai/test_chat.py::test_only_data_urls_are_pictures"],
    11: ["test_reported_cases.py::test_a_turn_that_changed_uses_what_did_not"],
    12: ["test_reported_cases.py::test_arguments_as_text_reach_the_template_as_a_mapping"],
    13: ["test_output.py::test_a_call_that_is_cut_off_stays_text"],
    14: ["openai/test_tools.py::test_a_schema_comes_after_the_thoughts"],
    15: ["openai/test_responses.py::test_a_request_of_codex_is_taken"],
    16: ["openai/test_responses.py::test_a_request_of_codex_is_taken"],
    17: ["openai/test_responses.py::test_a_request_of_codex_is_taken"],
    18: ["openai/test_chat.py::test_developer_messages_are_merged_into_one_system_turn"],
    19: ["test_reported_cases.py::test_a_system_message_among_anthropics_is_taken"],
    20: ["openai/test_tools.py::test_a_schema_that_no_grammar_has_is_let_be"],
    21: ["openai/test_tools.py::test_a_call_that_is_asked_for_is_guaranteed"],
    22: ["test_output.py::test_parts_depend_on_the_text_alone"],
    23: ["test_prefix.py::test_one_bos_begins_the_prompt_in_every_api"],
    24: ["openai/test_completions.py::test_echoed_logprobs_are_the_engines_to_the_same_float"],
    25: ["test_reported_cases.py::test_a_prompt_over_the_context_is_400_everywhere"],
    26: ["test_hardening.py::test_comments_flow_while_a_prompt_is_computed"],
    27: ["test_hardening.py::test_a_client_that_leaves_ends_its_request_at_once"],
    28: ["test_reported_cases.py::test_the_chunk_with_the_usage_has_choices"],
    29: ["openai/test_chat.py::test_the_default_limit_is_the_room_left_and_a_large_one_is_clamped"],
    30: [
        "test_prefix.py::test_a_call_that_the_client_writes_anew_is_found",
        "test_prefix.py::test_an_answer_is_found_whatever_tokens_spell_it",
    ],
}
SYSTEM = {"role": "system", "content": "You help with the weather of many cities."}
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""A template that leaves thoughts out of earlier turns, as those of thinking models do."""

Script = Any


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((HERE / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("case", range(1, 31))
def test_every_case_has_its_test(case: int) -> None:
    for name in CASES[case]:
        file, _, test = name.partition("::")
        assert test in names_in(file)


def test_a_thinking_chat_is_cached_up_to_the_last_user_turn(
    toy_engine: Engine, serve: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_engine.tokenizer, "chat_template", THINKS)
    toy_engine.flush_cache()
    url = serve(toy_engine) + "/v1/chat/completions"
    messages: list[Any] = [SYSTEM, {"role": "user", "content": "How is the weather in Rome?"}]
    first = client.post(url, json={"messages": messages, "max_tokens": 8}).json()
    said = {"role": "assistant", "content": "Sunny."}
    messages += [said, {"role": "user", "content": "And in Oslo?"}]
    usage = client.post(url, json={"messages": messages, "max_tokens": 1}).json()["usage"]
    opening = len(toy_engine.tokenizer.encode("<think>\n"))
    kept = first["usage"]["prompt_tokens"] - opening
    assert usage["prompt_tokens_details"]["cached_tokens"] >= kept - 1


def test_a_turn_that_changed_uses_what_did_not(
    toy_engine: Engine, serve: Any, client: httpx.Client
) -> None:
    toy_engine.flush_cache()
    url = serve(toy_engine) + "/v1/chat/completions"
    cached = []
    for question in ("How is Rome?", "Where is Oslo?"):
        messages = [SYSTEM, {"role": "user", "content": question}]
        answer = client.post(url, json={"messages": messages, "max_tokens": 1}).json()
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert cached[1] >= len(SYSTEM["content"])


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}, "", "not JSON"])
def test_arguments_as_text_reach_the_template_as_a_mapping(
    script: Script, client: httpx.Client, arguments: Any
) -> None:
    engine, url = script(
        "Sunny.", chat_template=CHATML.replace("arguments | tojson", "arguments.items() | list")
    )
    call = {"id": "c", "type": "function", "function": {"name": "w", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "25"},
    ]
    answer = client.post(f"{url}/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 200, answer.text
    assert ("Rome" in engine.prompts[0]) == ("Rome" in str(arguments))


def test_a_system_message_among_anthropics_is_taken(script: Script, client: httpx.Client) -> None:
    engine, url = script("ok")
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Well?"},
    ]
    body = {"messages": messages, "max_tokens": 5, "system": "Base"}
    answer = client.post(f"{url}/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    prompt = engine.prompts[0]
    assert prompt.index("Base") < prompt.index("Hi") < prompt.index("Be brief.")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 5000}]}),
        ("/v1/completions", {"prompt": "x" * 5000}),
        ("/v1/responses", {"input": "x" * 5000}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x" * 5000}], "max_tokens": 1}),
        ("/generate", {"text": "x" * 5000}),
        ("/v1/contexts", {"text": "x" * 5000}),
        (
            "/v1/decisions",
            {"input": "x" * 5000, "questions": [{"type": "predicate", "instructions": "?"}]},
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_400_everywhere(
    toy_url: str, client: httpx.Client, path: str, body: dict[str, Any], stream: bool
) -> None:
    answer = client.post(toy_url + path, json={**body, "stream": stream})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.get("code") == "context_length_exceeded" or "too long" in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_chunk_with_the_usage_has_choices(
    script: Script, client: httpx.Client, path: str
) -> None:
    _, url = script("some text")
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": True}
    for options, tells in (({"include_usage": True}, True), ({}, False)):
        chunks = events(client.post(url + path, json={**body, "stream_options": options}))
        assert all("choices" in chunk for chunk in chunks)
        assert (chunks[-1]["choices"] == [] and "usage" in chunks[-1]) == tells
