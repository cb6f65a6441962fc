"""Bodies drawn at random and many clients at once: no 5xx, no hang, no leak.

`SGL_MLX_FUZZED_REQUESTS=2000` draws that many bodies.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sgl_mlx.runtime.engine import Engine
from tests.patience import eventually

PATHS = (
    *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate"),
    *("/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/abort_request"),
    *("/v1/decisions", "/v1/contexts", "/v1/contexts/new/generate", "/v1/contexts/new/select"),
    "/apply-template",
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([2**31, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308])
    | st.sampled_from(["", "a", "\x00", "\ud7ff", "é🎉", "<image>", "auto", "required", "{}", "("])
)
parts = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["text", "image_url", "tool_use", "tool_result", "function_call", "message", "image"]
        ),
        "text": scalars,
        "content": scalars,
        "image_url": scalars,
        "source": st.dictionaries(st.sampled_from(["type", "data", "url"]), scalars),
        "input": scalars | st.dictionaries(st.text(max_size=3), scalars),
        "name": scalars,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]) | scalars,
        "content": scalars | st.lists(parts | scalars, max_size=2),
        "tool_calls": scalars | st.lists(parts | scalars, max_size=2),
        "type": scalars,
    },
)
tools = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["function", "custom", "namespace", "web_search"]) | scalars,
        "name": scalars,
        "function": scalars
        | st.fixed_dictionaries({"name": scalars}, optional={"parameters": scalars}),
        "tools": scalars,
        "input_schema": scalars,
    },
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=3), scalars)
NAMES = (
    *("n", "temperature", "top_p", "top_k", "min_p", "stop", "stop_regex", "logit_bias"),
    *("logprobs", "top_logprobs", "echo", "stream", "stream_options", "response_format", "seed"),
    *("regex", "ebnf", "json_schema", "structured_outputs", "guided_choice", "tool_choice"),
    *("sampling_params", "return_logprob", "logprob_start_len", "image_data", "thinking"),
    *("input_ids", "system", "output_config", "text", "reasoning", "chat_template_kwargs"),
    *("continue_final_message", "add_generation_prompt", "priority", "tokens", "instructions"),
    *("presence_penalty", "stop_token_ids", "ignore_eos", "top_logprobs_num", "prompt"),
)
VALID: dict[str, Any] = {
    "prompt": "ab",
    "text": "ab",
    "input": "ab",
    "tokens": [1],
    "messages": [{"role": "user", "content": "ab"}],
    "max_tokens": 3,
    "max_output_tokens": 3,
    "questions": [{"type": "predicate", "instructions": "ab"}],
    "choices": ["a", "b"],
}
FITS: dict[str, dict[str, Any]] = {"/v1/responses": {"text": None}, "/generate": {"prompt": None}}
likely = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "echo": st.booleans(),
        "logprobs": st.sampled_from([None, True, False, 0, 1, 3]),
        "prompt": st.sampled_from(["é🎉", "", ["a", "b"], [[1, 2], [3]], [5, 6], "\x00"]),
        "n": st.integers(1, 3),
        "stop": st.sampled_from(["a", ["a", "\ufffd"], []]),
        "temperature": st.sampled_from([0, 0.5, 2, 1e300]),
        "logit_bias": st.dictionaries(st.sampled_from(["1", "40", "99999"]), st.integers(-9, 9)),
        "json_schema": st.sampled_from([{}, {"type": "string"}, "{}", {"$ref": "#/x"}]),
        "continue_final_message": st.booleans(),
        "return_logprob": st.booleans(),
        "logprob_start_len": st.integers(-2, 5),
    },
)
bodies = st.builds(
    lambda some, odd, said, shown: {**VALID, **some, **odd, **said, **shown},
    likely,
    st.dictionaries(st.sampled_from(NAMES), values, max_size=1),
    st.just({}) | st.fixed_dictionaries({"messages": st.lists(messages, max_size=3)}),
    st.just({}) | st.fixed_dictionaries({"tools": st.lists(tools, max_size=2)}),
)


@settings(
    max_examples=int(os.environ.get("SGL_MLX_FUZZED_REQUESTS", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(path=st.sampled_from(PATHS), body=bodies)
def test_no_body_is_the_servers_fault(
    toy_url: str, client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    body = {**body, **FITS.get(path, {})}
    if path.startswith("/v1/contexts"):
        body.pop(random.Random(str(body)).choice(["text", "messages"]), None)
    if path.endswith("/generate") and "sampling_params" not in body:
        body["sampling_params"] = {"max_new_tokens": 3}
    answer = client.post(toy_url + path, json=body)
    event("answered" if answer.status_code < 400 else "refused")
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]
    else:
        assert '"internal_error"' not in answer.text
        assert "internal error" not in answer.text


async def visit(client: httpx.AsyncClient, url: str, seed: int) -> bool:
    """Stream an answer, or leave in the middle; True if it was read to its end."""
    draw = random.Random(seed)
    leaves = draw.random() < 0.3
    body = {
        "prompt": f"{seed} " * draw.randint(1, 40),
        "max_tokens": 40,
        "ignore_eos": True,
        "stream": True,
        "n": draw.randint(1, 2),
    }
    async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        count = 0
        async for line in answer.aiter_lines():
            count += 1
            if leaves and count > draw.randint(1, 20):
                return False
            if line == "data: [DONE]":
                return True
    return False


def test_many_clients_stream_and_some_leave_and_nothing_leaks(
    toy_engine: Engine, serve: Any
) -> None:
    url = serve(toy_engine)

    async def all_visits() -> list[bool]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            return await asyncio.gather(*(visit(client, url, i) for i in range(64)))

    ended = asyncio.run(all_visits())
    assert 20 < sum(ended) < 64

    def stats() -> dict[str, Any]:
        return dict(toy_engine.get_server_info()["stats"])

    eventually(lambda: stats()["running"] == stats()["waiting"] == 0, "nothing is left to do")
    assert stats()["free_slots"] + stats()["cached_slots"] == 4000
    answer = httpx.post(f"{url}/flush_cache")
    assert answer.status_code == 200
    assert stats()["free_slots"] == 4000


@pytest.fixture(scope="module")
def client() -> Any:
    with httpx.Client(timeout=60) as made:
        yield made
