"""The OpenAI backend against a client that records its requests."""

from __future__ import annotations

import sys
import warnings
from ast import literal_eval
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_an_answer_begun_by_the_program_is_the_last_message(client: Client) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("hi") + sgl.assistant("out" + sgl.gen("x", stop="9") + "!")

    with pytest.warns(UserWarning, match="may go on from there or start anew"):
        state = program.run(backend=sgl.OpenAI("gpt-4o-mini", client=client))
    assert state["x"] == "0"  # the answer was "out0": it began anew
    assert client.requests[0]["messages"][-1] == {"role": "assistant", "content": "out"}


def test_select_is_not_yet_for_chat_models(client: Client) -> None:
    @sgl.function
    def program(s: Any, node: Any) -> None:
        s += sgl.user("hi") + sgl.assistant(node)

    backend = sgl.OpenAI("gpt-4o-mini", client=client)
    with pytest.raises(NotYetError, match="select"):
        program.run(sgl.select("x", ["a"]), backend=backend).sync()


IGNORED: list[dict[str, Any]] = [
    {"regex": "a"},
    {"json_schema": {"type": "object"}},
    {"stop_regex": "a"},
    {"stop_token_ids": [3]},
    {"top_k": 4},
    {"min_p": 0.5},
    {"ignore_eos": True},
    {"return_logprob": True},
]


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-3.5-turbo-instruct"])
@pytest.mark.parametrize("sampling", IGNORED)
def test_what_the_api_has_not_is_warned_about(
    client: Client, model: str, sampling: dict[str, Any]
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        if s.stream_executor.backend.is_chat_model:
            s += sgl.user("hi") + sgl.assistant(sgl.gen("x", **sampling))
        else:
            s += "hi" + sgl.gen("x", **sampling)

    (name,) = sampling
    with pytest.warns(UserWarning, match=f"does not take {name}"):
        assert program.run(backend=sgl.OpenAI(model, client=client))["x"] == "out0"
    assert name not in client.requests[0]


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini", "openai/o1", "gpt-5-nano"])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {}, {"frequency_penalty": 1.0}])
def test_reasoning_models_get_their_own_names(
    client: Client, model: str, sampling: dict[str, Any]
) -> None:
    backend = sgl.OpenAI(model, client=client)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        chat.run(backend=backend, max_new_tokens=9, **sampling).sync()
    request = client.requests[0]
    assert request["max_completion_tokens"] == 9
    assert not {"max_tokens", "temperature", "top_p", *sampling} & set(request)
    assert [name for name in sampling if not any(name in str(w.message) for w in seen)] == []


class Refuses(Exception):
    def __init__(self, param: str) -> None:
        super().__init__(f"Unsupported parameter: {param}")
        self.param = param


def test_a_deployment_under_another_name_is_asked_again_without_what_it_refuses() -> None:
    client = Client()
    answer = client.chat.completions.create

    def picky(**request: Any) -> Any:
        for name in ("max_tokens", "temperature"):
            if name in request:
                raise Refuses(name)
        return answer(**request)

    client.chat.completions.create = picky
    with pytest.warns(UserWarning, match="temperature"):
        assert chat.run(backend=sgl.OpenAI("mine", client=client), temperature=0.5)["y"] == "out0"
    assert client.requests[0]["max_completion_tokens"] == 128


def test_another_refusal_is_the_callers(client: Client) -> None:
    def picky(**request: Any) -> Any:
        raise Refuses("messages")

    client.chat.completions.create = picky
    with pytest.raises(Refuses):
        chat.run(backend=sgl.OpenAI("mine", client=client))["x"]


def answers(choices: list[dict[str, Any]] | None, **more: Any) -> Any:
    """A client that answers everything so; fields that are not given are missing."""
    shown = None if choices is None else [SimpleNamespace(**choice) for choice in choices]

    def create(**request: Any) -> Any:
        answer = SimpleNamespace(choices=shown, **more)
        return iter([answer]) if request.get("stream") else answer

    api = SimpleNamespace(create=create)
    return SimpleNamespace(chat=SimpleNamespace(completions=api), completions=api)


def said(text: str | None, reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    message = SimpleNamespace(content=text, **more)
    return {"message": message, "finish_reason": reason}


@pytest.mark.filterwarnings("ignore:text_iter.. gives one piece")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "text", "reason", "refusal"),
    [
        (said("fine"), "fine", "stop", None),
        (said(None, refusal="no"), "", "stop", "no"),
        (said("half", "content_filter"), "half", "abort", None),
        (said("long", "length"), "long", "length", None),
        (said("call", "tool_calls"), "call", "stop", None),
        (said("", None), "", "stop", None),
        (said("seen", reasoning_content="hm"), "seen", "stop", None),
    ],
)
def test_answers_of_every_kind(
    stream: bool, choice: dict[str, Any], text: str, reason: str, refusal: str | None
) -> None:
    backend = sgl.OpenAI("gpt-4o", client=answers([choice]))
    state = chat.run(backend=backend, stream=stream)
    assert "".join(state.text_iter("x")) == text == state["x"]
    meta = state.get_meta_info("x")
    assert meta["finish_reason"]["type"] == reason
    assert meta.get("refusal") == refusal
    assert backend.token_usage.completion_tokens == 0


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (answers([]), "without choices"),
        (answers(None), "without choices"),
        (answers(None, error={"message": "out of credit", "code": 402}), "out of credit"),
        (answers([], error="busy"), "busy"),
    ],
)
def test_answers_without_an_answer_are_errors(client: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        chat.run(backend=sgl.OpenAI("gpt-4o", client=client))["x"]


def test_an_error_in_a_stream_is_an_error() -> None:
    client = answers(None, error={"message": "out of credit"})
    state = chat.run(backend=sgl.OpenAI("gpt-4o", client=client), stream=True)
    with pytest.raises(BackendError, match="out of credit"):
        list(state.text_iter("x"))


def test_errors_of_the_package_are_ours() -> None:
    error = type("RateLimitError", (Exception,), {"__module__": "openai._exceptions"})

    def create(**request: Any) -> Any:
        raise error("slow down")

    api = SimpleNamespace(create=create)
    client = SimpleNamespace(chat=SimpleNamespace(completions=api))
    with pytest.raises(BackendError, match="gpt-4o: slow down"):
        chat.run(backend=sgl.OpenAI("gpt-4o", client=client))["x"]


@given(
    value=st.integers(-999, 999) | st.floats(-99, 99).map(lambda x: round(x, 2)) | st.booleans(),
    before=st.sampled_from(["", " ", "\n", "It is "]),
    after=st.sampled_from(["", "\n", ".", " apples"]),
)
def test_a_typed_value_is_found_in_the_text(value: Any, before: str, after: str) -> None:
    client = answers([{"text": f"{before}{value}{after}", "finish_reason": "stop"}])

    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen("v", dtype=type(value))

    backend = sgl.OpenAI("gpt-3.5-turbo-instruct", client=client)
    for stream in (False, True):
        assert type(value)(literal_eval(program.run(backend=backend, stream=stream)["v"])) == value


@pytest.mark.parametrize("text", ['"Ada"', 'Ada" and so on', " Ada"])
def test_a_text_is_quoted(text: str) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen_string("v")

    client = answers([{"text": text, "finish_reason": "stop"}])
    assert program.run(backend=sgl.OpenAI("davinci-002", client=client))["v"] == '"Ada"'


WORDS = st.text("abc", min_size=1, max_size=5)


@given(choices=st.lists(WORDS, min_size=2, max_size=4, unique=True), data=st.data())
def test_select_on_a_completion_model_takes_what_the_model_writes(
    choices: list[str], data: st.DataObject
) -> None:
    chosen = data.draw(st.sampled_from(choices))

    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.select("c", choices)

    client = answers([{"text": f" {chosen}\n", "finish_reason": "length"}])
    assert program.run(backend=sgl.OpenAI("davinci-002", client=client))["c"] == chosen


def test_select_warns_when_nothing_fits() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.select("c", ["ab", "cd"])

    client = answers([{"text": "7", "finish_reason": "stop"}])
    with pytest.warns(UserWarning, match="begins none of the choices"):
        assert program.run(backend=sgl.OpenAI("davinci-002", client=client))["c"] == "ab"


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BackendError, match=r"pip install 'sgl-mlx\[openai\]'"):
        sgl.OpenAI("gpt-4o-mini")
