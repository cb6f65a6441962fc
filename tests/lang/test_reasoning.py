"""Separation of reasoning from the answer."""

from __future__ import annotations

import pytest

from sgl_mlx.lang.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>because</think>\n\n42", ("because", "42")),
        ("because</think>42", ("because", "42")),
        ("<think>because", ("because", "")),
        ("42", ("", "42")),
        ("Well. <think>hm</think> 42", ("hm", "Well. 42")),
    ],
)
def test_marks_enclose_the_reasoning(text: str, expected: tuple[str, str]) -> None:
    assert split_reasoning(text) == expected


def test_some_models_have_marks_of_their_own() -> None:
    assert split_reasoning("◁think▷because◁/think▷42", "kimi") == ("because", "42")
