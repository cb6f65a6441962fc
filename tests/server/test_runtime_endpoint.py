"""Programs of the language run against the server as they do in process."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow

import sgl_mlx as sgl
from sgl_mlx.core import Generated, Image, SamplingParams, Shift, StreamEvent, Text
from sgl_mlx.runtime.engine import Engine
from tests.server.scripted import ScriptedEngine

Script = Any
BLUE = (0, 0, 255)


@pytest.fixture
def remote(script: Script) -> Iterator[Any]:
    """`remote(replies, **options)` returns a scripted engine, and the endpoint of its server."""
    made: list[sgl.RuntimeEndpoint] = []

    def _remote(*args: Any, **options: Any) -> tuple[ScriptedEngine, sgl.RuntimeEndpoint]:
        engine, url = script(*args, **options)
        made.append(sgl.RuntimeEndpoint(url, chat_template_name="chatml"))
        return engine, made[-1]

    yield _remote
    for endpoint in made:
        endpoint.shutdown()


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all requests that endpoints send, in order."""
    sent: list[str] = []
    opened = sgl.RuntimeEndpoint._open

    def noted(self: Any, path: str, *args: Any, **keywords: Any) -> Any:
        sent.append(path)
        return opened(self, path, *args, **keywords)

    monkeypatch.setattr(sgl.RuntimeEndpoint, "_open", noted)
    return sent


@sgl.function
def tips(s: Any, n: int) -> None:
    s += "Some tips. "
    forks = s.fork(n)
    forks += lambda i: f"Tip {i}: " + sgl.gen("tip", max_tokens=8)
    forks.join()
    s += "Which? " + sgl.select("best", ["the first", "the second"])


def test_select_is_one_round_trip_and_a_fork_none(remote: Any, posts: list[str]) -> None:
    engine, endpoint = remote("wash hands", logprobs={"the second": -0.1})
    state = tips.run(3, backend=endpoint)
    assert state["best"] == "the second"
    assert state["tip"] == ["wash hands"] * 3
    work = [path for path in posts if path.startswith("/v1/contexts/")]
    prefill = 1  # the fork prefills what its branches have in common
    assert sorted(work) == [
        *["/v1/contexts/new/generate"] * (prefill + 3),
        "/v1/contexts/new/score",
    ]
    assert {call.kind for call in engine.calls} == {"submit", "score"}


@pytest.mark.parametrize(
    "method",
    [
        sgl.token_length_normalized,
        sgl.greedy_token_selection,
        sgl.unconditional_likelihood_normalized,
    ],
)
def test_select_decides_as_in_process(toy_engine: Engine, toy_url: str, method: Any) -> None:
    @sgl.function
    def choose(s: Any) -> None:
        s += "The sky is " + sgl.select("x", ["blue", "green as grass", "a"], choices_method=method)

    endpoint = sgl.RuntimeEndpoint(toy_url, chat_template_name="chatml")
    here, there = choose.run(backend=toy_engine), choose.run(backend=endpoint)
    assert here["x"] == there["x"]
    ours, theirs = (s.get_meta_info("x")["input_token_logprobs"] for s in (here, there))
    for left, right in zip(ours, theirs, strict=True):
        assert [entry[1] for entry in left] == [entry[1] for entry in right]
        assert [entry[0] for entry in left] == pytest.approx([e[0] for e in right], abs=1e-4)
    endpoint.shutdown()


def test_prompt_logprobs_equal_the_engines(toy_engine: Engine, toy_url: str) -> None:
    @sgl.function
    def scored(s: Any) -> None:
        s += "Once upon a time" + sgl.gen(
            "x",
            max_tokens=2,
            temperature=0,
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=2,
        )

    endpoint = sgl.RuntimeEndpoint(toy_url, chat_template_name="chatml")
    here, there = (
        scored.run(backend=backend).get_meta_info("x") for backend in (toy_engine, endpoint)
    )
    for name in ("input_token_logprobs", "output_token_logprobs", "input_top_logprobs"):
        assert len(here[name]) == len(there[name]) > 0
    assert here["input_token_logprobs"][0][0] is None
    assert [e[1] for e in here["input_token_logprobs"]] == [
        e[1] for e in there["input_token_logprobs"]
    ]
    endpoint.shutdown()


def test_fork_offsets_and_generated_tokens_reach_the_engine(remote: Any) -> None:
    engine, endpoint = remote("ab cd")

    @sgl.function
    def shifted(s: Any) -> None:
        s += "A" + sgl.gen("a")
        forks = s.fork(2, position_ids_offset=[4, 9])
        forks += "B" + sgl.gen("x")
        forks.join("concate_and_append")
        s += "C" + sgl.gen("end")

    assert shifted.run(backend=endpoint)["end"] == "ab cd"
    *_, one, two, last = [call.prompt for call in engine.calls]
    assert {p.gap for prompt in (one, two) for p in prompt if isinstance(p, Shift)} == {4, 9}
    assert any(isinstance(part, Generated) and part.token_ids for part in last)
    assert any(type(part).__name__ == "Parallel" for part in last)


def test_grammars_and_healing_reach_the_engine(remote: Any) -> None:
    engine, endpoint = remote(["yes", "so"])

    @sgl.function
    def constrained(s: Any) -> None:
        s += "Is it? " + sgl.gen("x", grammar='start: "yes" | "no"')
        s += " And" + sgl.gen("y")

    state = constrained.run(backend=endpoint, logit_bias={5: 1.5})
    assert (state["x"], state["y"]) == ("yes", "so")
    params, later = (call.params for call in engine.calls)
    assert params is not None
    assert later is not None
    assert params.grammar == 'start: "yes" | "no"'
    assert params.logit_bias == ((5, 1.5),)
    assert later.token_healing


def test_pictures_can_be_chosen_about(remote: Any) -> None:
    engine, endpoint = remote("x", logprobs={"blue": -0.1})

    @sgl.function
    def look(s: Any, picture: Any) -> None:
        s += sgl.user(sgl.image(picture) + "Which colour?")
        s += sgl.assistant(sgl.select("x", ["red", "blue"]))

    picture = Pillow.new("RGB", (4, 4), BLUE)
    assert look.run(picture, backend=endpoint)["x"] == "blue"
    [part] = [part for part in engine.calls[-1].prompt if isinstance(part, Image)]
    content = base64.b64decode(part.source.partition(",")[2])
    with Pillow.open(BytesIO(content)) as seen:
        assert seen.getpixel((0, 0)) == BLUE


def test_streams_come_in_pieces(remote: Any) -> None:
    _, endpoint = remote("several words of text")

    told: list[StreamEvent] = []
    [answer] = endpoint.submit((Text("x"),), SamplingParams(), told.append).result()
    assert "".join(event.text for event in told) == answer.text == "several words of text"
    assert len(told) > 2
    assert answer.token_ids


def test_chats_are_written_by_the_models_own_template(toy_engine: Engine, toy_url: str) -> None:
    @sgl.function
    def chat(s: Any) -> None:
        s += sgl.system("Be brief.") + sgl.user("Hi")
        s += sgl.assistant(sgl.gen("x", max_tokens=3, temperature=0))

    endpoint = sgl.RuntimeEndpoint(toy_url)
    here, there = (chat.run(backend=backend) for backend in (toy_engine, endpoint))
    assert here.text() == there.text()
    assert here.text().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    endpoint.shutdown()


def test_a_template_that_the_model_lacks_is_an_error_of_the_tokenizer(script: Script) -> None:
    _, url = script("x", chat_template=None)
    endpoint = sgl.RuntimeEndpoint(url)
    with pytest.raises(sgl.errors.TokenizerError, match="chat template"):
        endpoint.render_chat([{"role": "user", "content": "x"}])
    assert endpoint.chat_template.name == "default"
    endpoint.shutdown()


def test_the_servers_refusal_is_told(remote: Any) -> None:
    _, endpoint = remote("x")

    @sgl.function
    def wrong(s: Any) -> None:
        s += "x" + sgl.gen("x", regex="(")

    with pytest.raises((sgl.errors.BackendError, sgl.errors.InvalidParamsError)):
        wrong.run(backend=endpoint)["x"]


def test_a_key_is_sent(script: Script, client: httpx.Client) -> None:
    _, url = script("x", api_keys=["secret"])
    endpoint = sgl.RuntimeEndpoint(url, api_key="secret")
    assert endpoint.supports_parallel
    assert endpoint.submit((Text("x"),), SamplingParams()).result()[0].text == "x"
    endpoint.shutdown()
