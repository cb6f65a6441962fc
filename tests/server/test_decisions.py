"""Decisions: OpenAI's own client, all kinds of questions, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sgl_mlx.core import Text
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.server.choosing import METHODS
from tests.server.conftest import Sdk
from tests.server.scripted import CHATML
from tests.server.small import small_model

TICKET = "I was charged twice for the same subscription, and nobody answers my letters."
PREDICATE = {"type": "predicate", "name": "charged", "instructions": "The customer paid twice."}
CHOICE = {
    "type": "choice",
    "instructions": "Classify the ticket.",
    "choices": [
        {"value": "billing and payments"},
        {"value": "technical", "description": "errors and outages"},
        {"value": True},
    ],
}
SCORE = {
    "type": "score",
    "name": "anger",
    "instructions": "How angry is the customer?",
    "levels": [{"label": "calm"}, {"label": "annoyed"}, {"label": "furious", "description": "!"}],
}
Script = Any


def test_the_sdk_gets_an_answer_of_each_kind(script: Script, sdk: Sdk) -> None:
    logprobs = {"Yes": -0.5, "No": -1.5, "billing and payments": -0.1, "furious": [-0.2]}
    engine, url = script(logprobs=logprobs)
    found = sdk(url).decisions.create(
        model="default", input=TICKET, questions=[PREDICATE, CHOICE, SCORE]
    )
    charged, kind, anger = found.answers
    assert (charged.type, charged.name) == ("predicate", "charged")
    assert charged.probability == pytest.approx(1 / (1 + 2.718281828**-1))
    assert (kind.type, kind.name, kind.choice) == ("choice", None, "billing and payments")
    assert [p.value for p in kind.probabilities] == ["billing and payments", "technical", True]
    assert sum(p.probability for p in kind.probabilities) == pytest.approx(1)
    assert [(p.value, p.label) for p in anger.probabilities][2] == (2, "furious")
    assert anger.score == pytest.approx(2, abs=1e-3)
    assert found.usage.input_tokens > 0
    for call in engine.calls:
        assert call.text.startswith(f"<|im_start|>user\n{TICKET}\n\n")
        assert call.text.endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_chooses_as_select_does(
    toy_engine: Engine, serve: Any, client: httpx.Client, method: str
) -> None:
    """Options of several tokens, in one batch with a predicate."""
    url = serve(toy_engine)
    options = ["blue like the sea", "green", "a"]
    question = {
        "type": "choice",
        "instructions": "What colour is the sky?",
        "choices": [{"value": option} for option in options],
    }
    body = {"input": "A small test.", "questions": [question, PREDICATE], "choices_method": method}
    answer = client.post(f"{url}/v1/decisions", json=body).json()["answers"][0]
    prompt = toy_engine.tokenizer.render_chat(
        [
            {
                "role": "user",
                "content": "A small test.\n\nWhat colour is the sky?\nAnswer with one of these:\n"
                + "\n".join(f"- {option}" for option in options),
            }
        ],
        add_generation_prompt=True,
    )
    scores = toy_engine.score((Text(prompt),), options, unconditional=True).result()
    assert answer["choice"] == METHODS[method].of(scores).decision
    assert sum(p["probability"] for p in answer["probabilities"]) == pytest.approx(1)


@pytest.fixture
def roomy() -> Iterator[Engine]:
    with Engine(model=small_model("roomy"), max_total_tokens=4000) as engine:
        yield engine


def test_twenty_questions_compute_the_input_once(
    roomy: Engine, serve: Any, client: httpx.Client
) -> None:
    """At most the input, what each question adds, and 2 % of it."""
    url = serve(roomy)
    text = "The customer wrote again about the parcel that never came to the house. " * 72
    questions = [
        {"type": "predicate", "instructions": f"The parcel was sent {i} times."} for i in range(20)
    ]
    before = roomy.get_server_info()["stats"]["computed_tokens"]
    answer = client.post(f"{url}/v1/decisions", json={"input": text, "questions": questions})
    computed = roomy.get_server_info()["stats"]["computed_tokens"] - before
    usage = answer.json()["usage"]
    length = len(roomy.tokenizer.encode(text))
    assert 1000 <= length <= 1100
    assert computed <= usage["input_tokens"] + 0.02 * length
    assert usage["input_tokens"] <= length + 20 * 45
    again = client.post(f"{url}/v1/decisions", json={"input": text, "questions": questions}).json()
    assert again["usage"]["input_tokens_details"]["cached_tokens"] >= length
    for first, second in zip(answer.json()["answers"], again["answers"], strict=True):
        assert first["probability"] == pytest.approx(second["probability"], rel=1e-3)


def test_input_of_all_kinds_is_read(script: Script, client: httpx.Client) -> None:
    engine, url = script()
    content = [
        {"type": "input_text", "text": "An order:"},
        {"type": "input_json", "data": {"id": 7}},
    ]
    given = [
        {"role": "developer", "content": "Be strict."},
        {"role": "user", "content": content},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sent"},
    ]
    body = {"input": given, "questions": [PREDICATE]}
    assert client.post(f"{url}/v1/decisions", json=body).status_code == 200
    [call] = engine.calls
    for text in ("system\nBe strict.", 'An order:\n{"id":7}', "look", "tool\nsent", "paid twice"):
        assert text in call.text


def test_a_model_without_a_template_is_asked_in_plain_text(
    script: Script, client: httpx.Client
) -> None:
    engine, url = script(chat_template=None)
    body = {"input": TICKET, "questions": [PREDICATE]}
    assert client.post(f"{url}/v1/decisions", json=body).status_code == 200
    assert engine.calls[0].text.endswith("Is this true? Answer Yes or No.\nAnswer:")
    assert engine.calls[0].choices == (" Yes", " No")


def test_thoughts_that_the_template_opens_are_closed(script: Script, client: httpx.Client) -> None:
    thinks = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    engine, url = script(chat_template=thinks)
    client.post(f"{url}/v1/decisions", json={"input": "x", "questions": [PREDICATE]})
    assert engine.calls[0].text.endswith("<think>\n</think>\n\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"questions": [PREDICATE]}, "input"),
        ({"input": "x", "questions": []}, "questions is empty"),
        ({"input": "x", "questions": [PREDICATE] * 401}, "max_questions is 400"),
        (
            {"input": "x", "questions": [{**CHOICE, "choices": [{"value": "a"}]}]},
            "at least 2 options",
        ),
        ({"input": "x", "questions": [{**CHOICE, "choices": [{"value": "a"}] * 2}]}, "differ"),
        ({"input": "x", "questions": [{**SCORE, "levels": [{"label": ""}] * 2}]}, "not empty"),
        ({"input": "x", "questions": [{"type": "essay", "instructions": "?"}]}, "essay"),
        ({"input": "x", "questions": [PREDICATE], "choices_method": "luck"}, "choices_method"),
        ({"input": [5], "questions": [PREDICATE]}, "input[0]"),
        ({"input": "x", "questions": [PREDICATE], "model": "other"}, "not served"),
    ],
)
def test_what_is_wrong_is_told(
    script: Script, client: httpx.Client, body: dict[str, Any], said: str
) -> None:
    _, url = script()
    answer = client.post(f"{url}/v1/decisions", json=body)
    assert answer.status_code in (400, 404)
    assert said in answer.text
