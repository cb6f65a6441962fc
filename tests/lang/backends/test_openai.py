"""The OpenAI backend against a client that records its requests."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.errors import BackendError, NotYetError, ProgramError
from sgl_mlx.lang.backend import Backend


class Client:
    """Answers "out0", "out1" … and counts 10 prompt tokens and 2 for each answer."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._chat))
        self.completions = SimpleNamespace(create=self._complete)

    def _chat(self, **request: Any) -> Any:
        return self._answer(request, lambda text: {"message": SimpleNamespace(content=text)})

    def _complete(self, **request: Any) -> Any:
        return self._answer(request, lambda text: {"text": text})

    def _answer(self, request: dict[str, Any], shape: Any) -> Any:
        self.requests.append(request)
        if request.get("stream"):
            return self._events()
        n = request["n"]
        usage = SimpleNamespace(prompt_tokens=10, completion_tokens=2 * n)
        choices = [SimpleNamespace(finish_reason="stop", **shape(f"out{i}")) for i in range(n)]
        return SimpleNamespace(choices=choices, usage=usage)

    def _events(self) -> Any:
        for text in ("Hel", "lo", None):
            piece = SimpleNamespace(delta=SimpleNamespace(content=text), finish_reason=None)
            yield SimpleNamespace(choices=[piece], usage=None)
        usage = SimpleNamespace(prompt_tokens=10, completion_tokens=2)
        yield SimpleNamespace(choices=[], usage=usage)


@pytest.fixture
def client() -> Client:
    return Client()


@sgl.function
def chat(s: Any) -> None:
    s += sgl.system("Be brief") + sgl.user("hi") + sgl.assistant(sgl.gen("x"))
    s += sgl.user("more") + sgl.assistant(sgl.gen("y"))


@sgl.function
def complete(s: Any) -> None:
    s += "2+2=" + sgl.gen("x", stop="\n", max_tokens=4)


def test_a_chat_model_is_sent_messages(client: Client) -> None:
    backend = sgl.OpenAI("gpt-4o-mini", client=client)
    assert isinstance(backend, Backend)
    state = chat.run(backend=backend, temperature=0)
    assert (state["x"], state["y"]) == ("out0", "out0")
    assert client.requests[0]["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "hi"},
    ]
    assert client.requests[1]["messages"][2:] == [
        {"role": "assistant", "content": "out0"},
        {"role": "user", "content": "more"},
    ]
    assert client.requests[0]["temperature"] == 0
    assert "stop" not in client.requests[0]


def test_tokens_are_counted_and_the_count_can_be_reset(client: Client) -> None:
    backend = sgl.OpenAI("gpt-4o-mini", client=client)
    state = chat.run(backend=backend)
    state.sync()
    usage = backend.token_usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (20, 4)
    assert state.get_meta_info("x")["completion_tokens"] == 2
    usage.reset()
    assert (usage.prompt_tokens, usage.completion_tokens) == (0, 0)


def test_a_completion_model_is_sent_text(client: Client) -> None:
    backend = sgl.OpenAI("gpt-3.5-turbo-instruct", client=client)
    assert complete.run(backend=backend).text() == "2+2=out0"
    request = client.requests[0]
    assert (request["prompt"], request["stop"], request["max_tokens"]) == ("2+2=", ["\n"], 4)


def test_several_samples_come_as_a_list(client: Client) -> None:
    backend = sgl.OpenAI("gpt-3.5-turbo-instruct", client=client)
    assert complete.run(backend=backend, n=2)["x"] == ["out0", "out1"]


def test_streamed_events_become_pieces(client: Client) -> None:
    backend = sgl.OpenAI("gpt-4o-mini", client=client)
    state = chat.run(backend=backend, stream=True)
    assert "".join(state.text_iter("x")) == "Hello"
    assert state["y"] == "Hello"
    assert backend.token_usage.completion_tokens == 4


def test_text_outside_turns_is_refused_for_chat_models(client: Client) -> None:
    state = complete.run(backend=sgl.OpenAI("gpt-4o-mini", client=client))
    with pytest.raises(ProgramError, match="a chat model takes turns"):
        state["x"]


def test_an_answer_begun_by_the_program_is_refused_for_chat_models(client: Client) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("hi") + sgl.assistant("Well, " + sgl.gen("x"))

    state = program.run(backend=sgl.OpenAI("gpt-4o-mini", client=client))
    with pytest.raises(ProgramError, match="first in an assistant turn"):
        state["x"]


def test_select_and_constraints_are_not_yet(client: Client) -> None:
    @sgl.function
    def program(s: Any, node: Any) -> None:
        s += sgl.user("hi") + sgl.assistant(node)

    backend = sgl.OpenAI("gpt-4o-mini", client=client)
    for node, match in ((sgl.select("x", ["a"]), "select"), (sgl.gen("x", regex="a"), "regex")):
        with pytest.raises(NotYetError, match=match):
            program.run(node, backend=backend).sync()


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BackendError, match=r"pip install 'sgl-mlx\[openai\]'"):
        sgl.OpenAI("gpt-4o-mini")
