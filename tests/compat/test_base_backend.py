"""Backends that programs bring themselves, in SGLang's shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sgl_mlx as sgl
from sgl_mlx.compat.base_backend import BaseBackend
from sgl_mlx.lang.backend import Backend
from sgl_mlx.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from sgl_mlx.lang.templates.chat_template import chat_template_registry, get_chat_template


class Echo(BaseBackend):
    """Answers with the prompt it saw, and remembers the calls."""

    def __init__(self, template: Any = None) -> None:
        self.seen: list[Any] = []
        self.asked: list[Any] = []
        self.chat_template = template

    def generate(self, s: Any, sampling_params: Any) -> tuple[Any, Any]:
        self.seen.append(s)
        self.asked.append(sampling_params)
        text = f"[{len(s.text_)}]"
        return (text if sampling_params.n == 1 else [text] * sampling_params.n), {"mine": 1}

    def select(
        self, s: Any, choices: list[str], temperature: float, choices_method: Any = None
    ) -> ChoicesDecision:
        return ChoicesDecision(choices[-1], {"method": choices_method, "prompt": s.text_})


@sgl.function
def simple(s: Any, **sampling: Any) -> None:
    s += "xy" + sgl.gen("a", **sampling)


def test_the_base_can_be_made_and_says_what_is_missing() -> None:
    assert isinstance(BaseBackend(), Backend)
    with pytest.raises(NotImplementedError, match="does not implement generate"):
        simple.run(backend=BaseBackend())["a"]


class Smallest(BaseBackend):
    def get_chat_template(self) -> None:
        return None

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        return "answer", {}


def test_a_subclass_needs_generate_alone() -> None:
    sgl.set_default_backend(None)
    state = simple.run(backend=Smallest())
    assert (state["a"], state.text()) == ("answer", "xyanswer")
    assert "".join(simple.run(backend=Smallest(), stream=True).text_iter("a")) == "answer"
    assert [s["a"] for s in simple.run_batch([{}, {}], backend=Smallest())] == ["answer"] * 2


def test_sampling_parameters_and_meta_information_pass() -> None:
    backend = Echo()
    state = simple.run(backend=backend, temperature=0.5, n=2, stop="!")
    assert state["a"] == ["[2]", "[2]"]
    assert state.get_meta_info("a")[0]["mine"] == 1
    params = backend.asked[0]
    assert (params.temperature, params.stop, params.max_new_tokens) == (0.5, ("!",), 128)
    for convert in ("openai", "anthropic", "litellm", "vertexai", "srt"):
        given_by = getattr(params, f"to_{convert}_kwargs")()
        assert given_by["temperature"] == 0.5


class Streams(Echo):
    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, Any]]:
        for piece in ("a", "", "b"):
            yield piece, {"last": piece}


def test_a_stream_of_its_own_is_used() -> None:
    state = simple.run(backend=Streams(), stream=True)
    assert "".join(state.text_iter("a")) == "ab"
    assert state.get_meta_info("a")["last"] == "b"


class Last(ChoicesSamplingMethod):
    def __call__(self, *, choices: Any, **_: Any) -> ChoicesDecision:  # type: ignore[override]
        return ChoicesDecision(choices[-1])


@pytest.mark.parametrize("method", [sgl.greedy_token_selection, Last()])
def test_select_is_its_own(method: Any) -> None:
    @sgl.function
    def choose(s: Any) -> None:
        s += "xy" + sgl.select("c", ["p", "q"], choices_method=method) + "!"

    state = choose.run(backend=Echo())
    assert state.text() == "xyq!"
    assert state.get_meta_info("c") == {"method": method, "prompt": "xy"}


TEMPLATES = sorted(chat_template_registry)
CONTENTS = st.text("ab \n:.", min_size=1, max_size=8).map(lambda text: f"x{text}x")


@given(
    name=st.sampled_from(TEMPLATES),
    system=st.none() | CONTENTS,
    turns=st.lists(st.tuples(CONTENTS, CONTENTS), max_size=2),
    question=CONTENTS,
)
def test_turns_are_read_back_from_every_template(
    name: str, system: str | None, turns: list[tuple[str, str]], question: str
) -> None:
    @sgl.function
    def chat(s: Any) -> None:
        if system is not None:
            s += sgl.system(system)
        for asked, answered in turns:
            s += sgl.user(asked) + sgl.assistant(answered)
        s += sgl.user(question) + sgl.assistant(sgl.gen("a"))

    template = get_chat_template(name)
    backend = Echo(template)
    chat.run(backend=backend).sync()
    expected = [] if system is None else [{"role": "system", "content": system}]
    for asked, answered in turns:
        expected.append({"role": "user", "content": asked})
        expected.append({"role": "assistant", "content": answered})
    expected.append({"role": "user", "content": question})
    found = backend.seen[0].messages_
    if system is None and template.default_system_prompt:
        found = found[1:]
    if all(prefix for prefix, _ in template.role_prefix_and_suffix.values()):
        assert found == expected
    else:  # a role without a mark of its own cannot be told from the text before it
        assert found in ([], expected) or "".join(m["content"] for m in found)


def test_plain_text_has_no_turns() -> None:
    backend = Echo(get_chat_template("chatml"))
    simple.run(backend=backend).sync()
    assert backend.seen[0].messages_ == []


def test_pictures_stand_beside_the_text(tmp_path: Any) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (2, 2)).save(path)

    @sgl.function
    def look(s: Any) -> None:
        s += sgl.user(sgl.image(str(path)) + "what?") + sgl.assistant(sgl.gen("a"))

    backend = Echo(get_chat_template("chatml"))
    look.run(backend=backend).sync()
    (view,) = backend.seen
    assert [item["type"] for item in view.messages_[0]["content"]] == ["text", "image_url"]
    assert view.images_[0][0].startswith("data:image/png;base64,")
    assert view.cur_images == view.images_
