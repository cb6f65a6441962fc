"""One call to an API answers several `gen`s, and a wrong guess costs one call and no variable."""

from __future__ import annotations

import random
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.lang.backends.openai import OpenAI


class Writer:
    """A client whose model writes a text that it knows by heart, from where the prompt ends.

    Args:
        text: what the model would write after any prompt that it has not begun yet.
        token_length: characters of each token.
    """

    def __init__(self, text: str, token_length: int = 1) -> None:
        self.text = text
        self.token_length = token_length
        self.calls: list[dict[str, Any]] = []
        self.completions = SimpleNamespace(create=self._complete)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._chat))

    def _complete(self, **request: Any) -> Any:
        text, reason = self._go_on(request, request["prompt"])
        return self._answer([SimpleNamespace(finish_reason=reason, text=text)], text)

    def _chat(self, **request: Any) -> Any:
        message = request["messages"][-1]
        begun = message["content"] if message["role"] == "assistant" else ""
        text, reason = self._go_on(request, begun)
        content = SimpleNamespace(content=begun + text)
        return self._answer([SimpleNamespace(finish_reason=reason, message=content)], text)

    def _go_on(self, request: dict[str, Any], before: str) -> tuple[str, str]:
        self.calls.append(request)
        known = max(
            (n for n in range(len(self.text) + 1) if before.endswith(self.text[:n])), default=0
        )
        text = self.text[known:]
        limit = request.get("max_tokens") or request.get("max_completion_tokens")
        reason = "stop"
        stops = request.get("stop") or ()
        ends = [text.find(x) for x in ([stops] if isinstance(stops, str) else stops) if x in text]
        if ends:
            text = text[: min(ends)]
        if limit is not None and len(text) > limit * self.token_length:
            text, reason = text[: limit * self.token_length], "length"
        return text, reason

    def _answer(self, choices: list[Any], text: str) -> Any:
        usage = SimpleNamespace(
            prompt_tokens=10, completion_tokens=max(-(-len(text) // self.token_length), 1)
        )
        return SimpleNamespace(choices=choices, usage=usage)


def character(tokens: int | None) -> Any:
    """The paper's example: three fields of a character, each ended by a line's end."""

    @sgl.function(num_api_spec_tokens=tokens)
    def program(s: Any) -> None:
        s += "Name: Steve Jobs.\nJob: Apple CEO.\n\nPlease write a new one.\n"
        s += "Name:" + sgl.gen("name", stop="\n") + "\nBirthday:" + sgl.gen("birthday", stop="\n")
        s += "\nJob:" + sgl.gen("job", stop="\n") + "\n"

    return program


FIELDS = "Name: Ada Lovelace\nBirthday: 10 December 1815\nJob: mathematician\n"


def run(program: Any, client: Writer, model: str = "gpt-3.5-turbo-instruct", **options: Any) -> Any:
    with_client = OpenAI(model, client=client)
    state = program.run(backend=with_client, **options)
    state.sync()
    return state


@pytest.mark.parametrize(("tokens", "calls"), [(100, 1), (None, 3), (30, 3), (50, 2)])
def test_three_fields_take_one_call_if_it_asks_for_enough(tokens: int | None, calls: int) -> None:
    client = Writer(FIELDS)
    state = run(character(tokens), client, max_new_tokens=30)
    assert [state[x] for x in ("name", "birthday", "job")] == [
        " Ada Lovelace",
        " 10 December 1815",
        " mathematician",
    ]
    assert len(client.calls) <= calls
    ended = state.get_meta_info("job")["finish_reason"]
    assert ended["type"] == "stop"


@pytest.mark.filterwarnings("ignore:the program begins the answer")
def test_chat_models_too_write_all_fields_of_a_turn_in_one_call() -> None:
    client = Writer(FIELDS)

    @sgl.function(num_api_spec_tokens=256)
    def program(s: Any) -> None:
        s += sgl.system("You are brief.") + sgl.user("A character, please.")
        s += sgl.assistant(
            "Name:"
            + sgl.gen("name", stop="\n")
            + "\nBirthday:"
            + sgl.gen("birthday", stop="\n")
            + "\nJob:"
            + sgl.gen("job", stop="\n")
        )

    state = run(program, client, "gpt-4-turbo")
    assert state["name"] == " Ada Lovelace"
    assert state["job"] == " mathematician"
    assert len(client.calls) == 1


def test_text_that_the_model_did_not_foresee_costs_one_more_call() -> None:
    client = Writer(FIELDS)

    @sgl.function(num_api_spec_tokens=100)
    def program(s: Any) -> None:
        s += "Write.\nName:" + sgl.gen("name", stop="\n")
        s += "\nAge: 36\nJob:" + sgl.gen("job", stop="\n")

    client.text = "Name: Ada\nBirthday: 1815\n"
    state = run(program, client)
    assert state["name"] == " Ada"
    assert len(client.calls) == 2
    assert client.calls[1]["prompt"].endswith("\nAge: 36\nJob:")


def test_a_stop_near_the_token_limit_still_ends_the_text() -> None:
    client = Writer("abcdefghijklmnopqrst\nand much more text", token_length=2)

    @sgl.function(num_api_spec_tokens=4)
    def program(s: Any) -> None:
        s += "Say:" + sgl.gen("x", stop="\n", max_tokens=11)

    assert run(program, client)["x"] == "abcdefghijklmnopqrst"


def test_branches_that_ask_the_same_get_calls_of_their_own() -> None:
    client = Writer("A: one\nB: two\n")

    @sgl.function(num_api_spec_tokens=100)
    def program(s: Any) -> None:
        s += "A:" + sgl.gen("a", stop="\n")
        forks = s.fork(3)
        forks += "\nB:" + sgl.gen("b", stop="\n")
        forks.join()

    state = run(program, client)
    assert state["b"] == [" two"] * 3
    assert len(client.calls) == 3  # the first call serves one branch


def test_other_parameters_are_another_question() -> None:
    client = Writer(FIELDS)

    @sgl.function(num_api_spec_tokens=100)
    def program(s: Any) -> None:
        s += "Name:" + sgl.gen("name", stop="\n", temperature=0)
        s += "\nBirthday:" + sgl.gen("birthday", stop="\n", temperature=1)

    run(program, client)
    assert [call["temperature"] for call in client.calls] == [0, 1]


def test_streams_and_several_samples_are_passed_on() -> None:
    client = Writer(FIELDS)

    @sgl.function(num_api_spec_tokens=100)
    def program(s: Any) -> None:
        s += "Name:" + sgl.gen("name", stop="\n", n=2)

    run(program, client)
    assert client.calls[0]["n"] == 2
    assert client.calls[0]["stop"]


def test_an_error_of_the_api_arrives_at_the_variable() -> None:
    client = Writer(FIELDS)
    client.completions = SimpleNamespace(create=lambda **_: 1 / 0)
    state = character(100).run(backend=OpenAI("gpt-3.5-turbo-instruct", client=client))
    with pytest.raises(ZeroDivisionError):
        state["name"]


@given(st.integers(0, 10_000))
def test_variables_are_those_of_separate_calls_for_any_text_and_program(seed: int) -> None:
    r = random.Random(seed)
    words = ["a", "bc", "d\n", ":", " ", "\nX:", "é", "end\n"]
    text = "".join(r.choice(words) for _ in range(r.randint(1, 40)))
    fixed = [r.choice([text[i : i + 4] for i in range(0, len(text), 4)] + words) for _ in range(4)]
    stops = [r.choice(["\n", ":", "é", "zz"]) for _ in range(4)]
    limits = [r.choice([3, 20, 200]) for _ in range(4)]

    def body(s: Any) -> None:
        for i in range(4):
            s += fixed[i] + sgl.gen(f"v{i}", stop=stops[i], max_tokens=limits[i])

    found = {}
    calls = {}
    for tokens in (None, r.choice([5, 50, 500])):
        client = Writer(text, token_length=1 + seed % 3)

        @sgl.function(num_api_spec_tokens=tokens)
        def program(s: Any) -> None:
            body(s)

        state = run(program, client)
        found[tokens] = [state[f"v{i}"] for i in range(4)]
        calls[tokens] = len(client.calls)
    assert len(set(map(tuple, found.values()))) == 1
    plain, ahead = calls.values()
    assert ahead <= 2 * plain


def test_cancelling_a_gen_cancels_its_call() -> None:
    calls: list[Future[Any]] = []

    class Pending(OpenAI):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            calls.append(Future())
            return calls[-1]

    backend = Pending("gpt-3.5-turbo-instruct", client=Writer(""))
    state = character(100).run(backend=backend)
    state.stream_executor.abort()
    assert calls[0].cancelled()
