"""Branches: forked with their hint, run at the same time, joined by variable or side by side."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.core import Parallel, Shift, Text
from sgl_mlx.errors import ProgramError
from sgl_mlx.lang.setting import Setting
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.testing import ScriptedBackend


def new_state(backend: ScriptedBackend) -> ProgramState:
    return Setting.of(backend, {}).new_state()


def test_the_fork_hint_is_sent_for_text_appended_just_before() -> None:
    backend = ScriptedBackend("x")
    s = new_state(backend)
    s += "shared text"
    s.fork(2)
    assert backend.prefills == ["shared text"]


def test_the_fork_hint_comes_after_what_is_still_generated() -> None:
    backend = ScriptedBackend("one")
    s = new_state(backend)
    s += "a:" + sgl.gen("x")
    s.fork(3)
    assert backend.prefills == ["a:one"]


def test_one_branch_or_no_text_sends_no_hint() -> None:
    backend = ScriptedBackend("x")
    s = new_state(backend)
    s.fork(2)
    s += "text"
    s.fork(1)
    assert backend.prefills == []


def test_branches_run_at_the_same_time() -> None:
    backend = ScriptedBackend(lambda prompt: prompt[-1], manual=True)
    s = new_state(backend)
    forks = s.fork(3)
    forks += lambda i: f"branch {i}" + sgl.gen("x")
    assert backend.prompts == ["branch 0", "branch 1", "branch 2"]
    for call in reversed(backend.pending):
        backend.step(call)
    assert [fork["x"] for fork in forks] == ["0", "1", "2"]


def test_a_group_appends_texts_expressions_lists_and_callables() -> None:
    s = new_state(ScriptedBackend("x"))
    forks = s.fork(2)
    forks += "plain "
    forks += sgl.gen("x") + " "
    forks += ["first ", "second "]
    forks += lambda i: str(i)
    assert [fork.text() for fork in forks] == ["plain x first 0", "plain x second 1"]


def test_a_list_must_have_one_item_for_each_branch() -> None:
    forks = new_state(ScriptedBackend()).fork(2)
    with pytest.raises(ProgramError, match="3 expressions for 2 branches"):
        forks += ["a", "b", "c"]


def test_a_group_has_a_length_and_items_that_append_in_place() -> None:
    forks = new_state(ScriptedBackend()).fork(2)
    forks[1] += "b"
    assert len(forks) == 2
    assert [fork.text() for fork in forks] == ["", "b"]


def test_a_branch_cannot_be_replaced() -> None:
    forks = new_state(ScriptedBackend()).fork(2)
    with pytest.raises(ProgramError, match="cannot be replaced"):
        forks[0] = forks[1]


def test_join_gathers_new_variables_and_their_meta_info_in_order() -> None:
    s = new_state(ScriptedBackend(["old", "one", "two"]))
    s += sgl.gen("old")
    forks = s.fork(2)
    forks += sgl.gen("x")
    forks[0]["only"] = 1
    forks.join()
    assert (s["old"], s["x"], s["only"]) == ("old", ["one", "two"], [1])
    metas = s.get_meta_info("x")
    assert [meta["completion_tokens"] for meta in metas] == [1, 1]
    assert s.text() == "old"


def test_branches_stay_readable_after_join() -> None:
    s = new_state(ScriptedBackend("x"))
    forks = s.fork(2)
    forks += sgl.gen("x")
    forks.join()
    assert forks[1]["x"] == "x"


def test_copy_is_a_branch_joined_at_its_end() -> None:
    s = new_state(ScriptedBackend("one"))
    s += "a"
    with s.copy() as branch:
        branch += sgl.gen("x")
    assert (s["x"], s.text()) == (["one"], "a")


def test_branches_inside_a_role_go_on_in_it() -> None:
    s = new_state(ScriptedBackend("x"))
    s += sgl.user_begin() + "shared "
    forks = s.fork(2)
    forks += lambda i: str(i) + sgl.user_end()
    assert [fork.messages()[0]["content"] for fork in forks] == ["shared 0", "shared 1"]


def concatenated(backend: ScriptedBackend) -> Any:
    s = new_state(backend)
    s += "shared"
    forks = s.fork(2)
    forks += lambda i: f" branch {i}"
    forks.join("concate_and_append")
    s += " after" + sgl.gen("x")
    s.sync()
    assert s.text() == "shared branch 0 branch 1 afterx"
    return backend.calls[-1].prompt


def test_concatenating_join_keeps_branches_side_by_side() -> None:
    prompt = concatenated(ScriptedBackend("x"))
    sides = Parallel(((Text(" branch 0"),), (Text(" branch 1"),)))
    assert prompt == (Text("shared"), sides, Text(" after"))


def test_concatenating_join_is_text_where_the_backend_has_no_parallel() -> None:
    prompt = concatenated(ScriptedBackend("x", supports_parallel=False))
    assert prompt == (Text("shared branch 0 branch 1 after"),)


def test_parallel_encoding_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgl.global_config, "enable_parallel_encoding", False)
    prompt = concatenated(ScriptedBackend("x"))
    assert prompt == (Text("shared branch 0 branch 1 after"),)


def test_position_offsets_shift_the_branches() -> None:
    backend = ScriptedBackend("x")
    s = new_state(backend)
    s += "shared"
    forks = s.fork(2, position_ids_offset=[0, 16])
    forks += " text" + sgl.gen("x")
    forks.join()
    prompts = [call.prompt for call in backend.calls if call.kind == "submit"]
    assert prompts == [
        (Text("shared text"),),
        (Text("shared"), Shift(16), Text(" text")),
    ]


@pytest.mark.parametrize(("size", "offsets"), [(0, None), (2, [1])])
def test_impossible_forks_are_refused(size: int, offsets: Any) -> None:
    with pytest.raises(ProgramError, match=r"branches|size from 1 to"):
        new_state(ScriptedBackend()).fork(size, offsets)


def test_an_unknown_join_mode_is_refused() -> None:
    forks = new_state(ScriptedBackend()).fork(2)
    with pytest.raises(ProgramError, match=r"unknown join mode 'merge'.*gather_variable"):
        forks.join("merge")  # type: ignore[arg-type]


def test_an_error_in_a_branch_raises_at_join_and_leaves_the_others() -> None:
    s = new_state(ScriptedBackend([ValueError("boom"), "two"]))
    forks = s.fork(2)
    forks += sgl.gen("x")
    with pytest.raises(ValueError, match="boom"):
        forks.join()
    assert forks[1]["x"] == "two"
