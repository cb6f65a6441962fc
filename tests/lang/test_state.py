"""The surface of `s`: appending, roles, scopes, reading."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Generated, Text
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.ir import VarScopeEnd
from sgl_mlx.lang.setting import Setting
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.testing import ScriptedBackend


def new_state(script: Any = (), streaming: bool = False, **options: Any) -> ProgramState:
    return Setting.of(ScriptedBackend(script, **options), {}, streaming).new_state()


def calls(s: ProgramState) -> Any:
    return s.stream_executor.backend.calls  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_only_text_and_expressions_can_be_appended(value: object) -> None:
    s = new_state()
    with pytest.raises(ProgramError, match="append"):
        s += value


def test_prompts_tell_text_from_what_the_model_wrote() -> None:
    s = new_state(["one", "two"])
    s += "a" + ("b" + sgl.gen("x")) + "c" + "d" + sgl.gen("y")
    prompt = calls(s)[1].prompt
    assert [type(part) for part in prompt] == [Text, Generated, Text]
    assert prompt[0] == Text("ab")
    assert prompt[1].text == "one"
    assert prompt[1].token_ids
    assert prompt[2] == Text("cd")


def test_stop_strings_are_trimmed_and_the_text_goes_on_without_them() -> None:
    s = new_state(["one\ntwo"])
    s += sgl.gen("x", stop="\n") + "|"
    assert s.text() == "one|"


def test_the_method_forms_of_the_paper_work() -> None:
    s = new_state(["one"], logprobs={"b": -0.1})
    s.extend("a:")
    s.gen("x", stop="\n")
    s.select("c", ["a", "b"])
    assert (s["x"], s["c"], s.text()) == ("one", "b", "a:oneb")


def test_adding_the_result_of_a_role_call_does_not_append_twice() -> None:
    s = new_state(["one"])
    s += s.user("hi")
    s += s.assistant(sgl.gen("x"))
    assert s.text() == "USER:hi\nASSISTANT:one\n"


def test_roles_are_calls_and_context_managers_alike() -> None:
    called, enclosed = new_state(["one"]), new_state(["one"])
    called.system("be brief")
    called.user("hi")
    called.assistant(sgl.gen("x"))
    with enclosed.system():
        enclosed += "be brief"
    with enclosed.user():
        enclosed += "hi"
    with enclosed.assistant():
        enclosed += sgl.gen("x")
    assert called.text() == enclosed.text()
    assert called.messages() == enclosed.messages()


def test_messages_hold_the_closed_turns() -> None:
    s = new_state([" one"])
    s += sgl.system("be brief") + sgl.user("hi") + sgl.assistant(sgl.gen("x"))
    s += sgl.user_begin() + "open"
    assert s.messages() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "one"},
    ]


def test_nested_roles_are_refused_where_they_are_written() -> None:
    s = new_state()
    with pytest.raises(ProgramError, match=r"user\(\) begins inside system\(\)"):
        s += sgl.system(sgl.user("hi"))
    with s.assistant(), pytest.raises(ProgramError, match="Nested roles are not allowed"):
        s.user("hi")
    assert s.text() == "ASSISTANT:\n"


def test_separate_reasoning_keeps_the_text_before_it() -> None:
    s = new_state(["<think>2 and 2</think>\n\n4"])
    s += sgl.user("2+2?")
    with s.assistant():
        s += "Answer: " + sgl.separate_reasoning(sgl.gen("x"), model_type="qwen3")
    assert s["x"] == "4"
    assert s["x_reasoning_content"] == "2 and 2"
    assert s.text() == "USER:2+2?\nASSISTANT:Answer: 4\n"
    assert s.messages()[-1]["content"] == "Answer: 4"


def test_separate_reasoning_leaves_plain_answers_alone() -> None:
    s = new_state(["4"])
    s += sgl.separate_reasoning("2+2=" + sgl.gen("x"))
    assert (s["x"], s["x_reasoning_content"], s.text()) == ("4", "", "2+2=4")


def test_var_scope_keeps_the_text_inside() -> None:
    s = new_state(["one"])
    s += "a"
    with s.var_scope("scope"):
        s += "b" + sgl.gen("x")
    s += "c"
    assert s["scope"] == "bone"


def test_an_unnamed_gen_is_kept_under_none() -> None:
    s = new_state(["one"])
    s += sgl.gen()
    assert s.get_var(None) == "one"  # type: ignore[arg-type]


def test_several_samples_are_a_list_and_the_first_goes_on() -> None:
    s = new_state(["one", "two"])
    s += "a " + sgl.gen("x", n=2)
    assert s["x"] == ["one", "two"]
    assert s.text() == "a one"
    assert len(s.get_meta_info("x")) == 2


def test_set_variables_can_be_read() -> None:
    s = new_state()
    s["x"] = 3
    assert "x" in s
    assert s["x"] == 3


def test_a_name_given_again_holds_the_later_value() -> None:
    s = new_state(["one", "two"])
    s += sgl.gen("x")
    s += sgl.gen("x")
    assert s["x"] == "two"


def test_meta_info_has_sglangs_fields_and_is_none_for_unknown_names() -> None:
    s = new_state(["one two"])
    s += "a" + sgl.gen("x", max_tokens=1)
    meta = s.get_meta_info("x")
    assert meta["completion_tokens"] == 1
    assert meta["finish_reason"] == {"type": "length", "length": 1}
    assert {"id", "prompt_tokens", "cached_tokens"} <= set(meta)
    assert s.get_meta_info("nobody") is None


def test_select_takes_the_likeliest_and_reports_why() -> None:
    s = new_state(logprobs={"yes": -2.0, "no": -0.5})
    s += "Is it? " + sgl.select("x", ["yes", "no"])
    assert (s["x"], s.text()) == ("no", "Is it? no")
    meta = s.get_meta_info("x")
    assert meta["normalized_prompt_logprobs"] == [-2.0, -0.5]
    assert [row[0][0] for row in meta["input_token_logprobs"]] == [-2.0, -0.5]
    assert meta["output_token_logprobs"] == [[], []]
    assert meta["prompt_tokens"] == 3


def test_an_unnamed_select_appends_its_text() -> None:
    s = new_state(logprobs={"b": -0.5})
    s += sgl.select(choices=["a", "b"])
    assert s.text() == "b"


def test_repr_is_the_text_as_programs_expect() -> None:
    s = new_state(["one"])
    s += "a" + sgl.gen("x")
    assert str(s)[len("ProgramState(") : -1] == "aone"


def test_without_streaming_the_text_comes_at_once() -> None:
    s = new_state(["one two three"])
    s += "a " + sgl.gen("x")
    with pytest.warns(UserWarning, match="one piece; for pieces, run .* stream=True"):
        assert list(s.text_iter()) == ["a one two three"]
    with pytest.warns(UserWarning, match="one piece"):
        assert list(s.text_iter("x")) == ["one two three"]


def test_streaming_an_unknown_variable_yields_nothing_but_an_end_and_warns() -> None:
    s = new_state(["one"], streaming=True)
    s += sgl.gen("x")
    s.stream_executor.close()
    with pytest.warns(UserWarning, match="no variable 'nobody'.*'x'"):
        assert list(s.text_iter("nobody")) == [""]


def test_streamed_pieces_join_to_the_text() -> None:
    s = new_state(["one two three"], streaming=True)
    s += "a " + sgl.gen("x")
    s.stream_executor.close()
    assert "".join(s.text_iter()) == "a one two three"


def test_async_iteration_yields_the_text_with_the_meta_info_so_far() -> None:
    s = new_state(["one two three"], streaming=True, manual=True)
    s += sgl.gen("x")
    s.stream_executor.close()
    backend: Any = s.stream_executor.backend

    async def collect() -> list[tuple[str, dict[str, Any]]]:
        asyncio.get_running_loop().run_in_executor(None, backend.step)
        return [item async for item in s.text_async_iter("x", return_meta_data=True)]

    pieces = asyncio.run(collect())
    assert "".join(piece for piece, _ in pieces) == "one two three"
    assert pieces[-1][1]["completion_tokens"] == 3
    assert all("prompt_tokens" in meta for _, meta in pieces)


def test_a_state_is_an_async_iterator_of_its_text() -> None:
    s = new_state(["one"], streaming=True)
    s += "a " + sgl.gen("x")

    async def collect() -> str:
        return "".join([piece async for piece in s])

    assert asyncio.run(collect()) == "a one"


def test_a_scope_that_ends_without_beginning_is_an_error() -> None:
    s = new_state()
    s += VarScopeEnd("x")
    with pytest.raises(ProgramError, match="never began"):
        s.sync()
