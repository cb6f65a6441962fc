"""`sgl.score`: the log-probabilities of choices, without appending one."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.errors import ProgramError
from sgl_mlx.testing import ScriptedBackend


@sgl.function
def greeting(s: Any) -> None:
    s += "Say" + sgl.gen("x")


def backend() -> ScriptedBackend:
    return ScriptedBackend(" something", logprobs={"hi": -0.5, "oh no": [-1.0, -2.0]})


def test_choices_are_scored_after_the_text_so_far() -> None:
    model = backend()
    decision = sgl.score(greeting.run(backend=model), ["hi", "oh no"])
    assert model.calls[-1].text == "Say something"
    assert decision.decision == "hi"
    assert decision.meta_info["normalized_prompt_logprobs"] == [-0.5, -1.5]
    assert decision.meta_info["prompt_tokens"] == 2


def test_scoring_leaves_the_state_as_it_was() -> None:
    state = greeting.run(backend=backend())
    sgl.score(state, ["hi", "oh no"])
    assert state.text() == "Say something"
    assert set(state.stream_executor.bindings) == {"x"}


def test_it_decides_what_select_decides() -> None:
    @sgl.function
    def program(s: Any) -> Any:
        s += sgl.user("Hello") + sgl.assistant_begin()
        scored = sgl.score(s, ["oh no", "hi"], sgl.greedy_token_selection)
        s += sgl.select("y", ["oh no", "hi"], choices_method=sgl.greedy_token_selection)
        return scored

    model = backend()
    state = program.run(backend=model)
    assert (state["y"], state.get_meta_info("y")) == (
        state.ret_value.decision,
        state.ret_value.meta_info,
    )
    first, second = (call for call in model.calls if call.kind == "score")
    assert first.prompt == second.prompt


@pytest.mark.parametrize("choices", [[], None, "abc", ["a", ""]])
def test_choices_that_are_none_are_refused(choices: Any) -> None:
    with pytest.raises(ProgramError, match=r"score\(\)"):
        sgl.score(greeting.run(backend=backend()), choices)


def test_what_went_wrong_before_is_raised() -> None:
    state = greeting.run(backend=ScriptedBackend([ValueError("boom")]))
    with pytest.raises(ValueError, match="boom"):
        sgl.score(state, ["a"])
