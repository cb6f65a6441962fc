"""The checks of `sglang.test.test_programs` on scripted answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sgl_mlx as sgl
from sgl_mlx.compat import test_programs as programs
from sgl_mlx.lang.config import global_config
from sgl_mlx.testing import ScriptedBackend

Script = Callable[[str], str]


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    before = global_config.default_backend
    yield
    global_config.default_backend = before


def use(script: Any, **options: Any) -> None:
    sgl.set_default_backend(ScriptedBackend(script, **options))


def opposite(prompt: str) -> str:
    word = prompt.rpartition("opposite of ")[2].partition("?")[0]
    return " " + programs._OPPOSITES.get(word, "none")


CHECKS: dict[str, tuple[Any, Any]] = {
    "few_shot_qa": (opposite, " up"),
    "decode_int": ({"22, ": "23", "10, ": "11"}, "7"),
    "decode_json": (
        {'"name": ': '"Oslo"', '"people": ': "7", '"country": ': '"N"', '"area": ': "4"},
        "{",
    ),
    "decode_json_regex": ({'"name": ': '"Oslo"', '"people": ': "7", '"latitude": ': "5.5"}, "x"),
    "expert_answer": (" dentist", " hat"),
    "tool_use": ("257, 983", "257, 984"),
    "parallel_encoding": (" Bob", " Eve"),
    "regex": ("12:30:59", "noon"),
    "dtype_gen": (
        {"dog is ": '"pup"', "legs: ": "4", "five is ": "2.5", "white: ": "True"},
        {"dog is ": '"pup"', "legs: ": "4", "five is ": "2.5", "white: ": "maybe"},
    ),
    "gen_min_new_tokens": ("yes " * 70, "yes"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_right_answers_pass_and_wrong_ones_fail(name: str) -> None:
    check = getattr(programs, f"test_{name}")
    right, wrong = CHECKS[name]
    use(right)
    check()
    use(wrong)
    with pytest.raises((AssertionError, ValueError)):
        check()


@pytest.mark.parametrize(
    "name",
    [
        *("mt_bench", "stream", "parallel_decoding"),
        *("completion_speculative", "chat_completion_speculative"),
    ],
)
def test_checks_of_form_pass_whatever_the_model_writes(name: str) -> None:
    use("some words")
    getattr(programs, f"test_{name}")()


def test_choices_are_judged_only_when_asked() -> None:
    use("", logprobs={" True": -0.1, " False": -9.0})
    programs.test_select(check_answer=False)
    with pytest.raises(AssertionError):
        programs.test_select(check_answer=True)


def test_the_accuracy_of_endings_is_the_share_of_right_ones() -> None:
    right = {endings[0]: -0.1 for _, endings in programs._ENDINGS}
    use("", logprobs=right)
    assert programs.test_hellaswag_select()[0] == 1.0
    wrong = {endings[1]: -0.01 for _, endings in programs._ENDINGS[:2]}
    use("", logprobs={**right, **wrong})
    assert programs.test_hellaswag_select()[0] < 1.0
