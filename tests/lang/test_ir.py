"""Expressions: how they join and how they read."""

from __future__ import annotations

import pytest

from sgl_mlx.errors import ProgramError
from sgl_mlx.lang import ir
from sgl_mlx.lang.choices import token_length_normalized
from sgl_mlx.lang.words import gen, separate_reasoning, user


def test_text_and_expressions_join_from_both_sides() -> None:
    joined = "a" + gen("x") + "b"
    assert repr(joined) == "ExprList([Constant('a'), Gen('x'), Constant('b')])"


def test_lists_join_flat() -> None:
    assert len((user("a") + user("b")).items) == 6


@pytest.mark.parametrize("value", [3, 2.5, ["a"], object()])
def test_joining_a_foreign_object_says_what_is_allowed(value: object) -> None:
    with pytest.raises(ProgramError, match=r"takes strings and expressions such as gen\(\)"):
        _ = gen("x") + value
    with pytest.raises(ProgramError, match=r"write str\(...\)"):
        _ = value + gen("x")


def test_joining_none_says_so() -> None:
    with pytest.raises(ProgramError, match="Tried to append None"):
        _ = gen("x") + None


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (ir.Gen("x"), "Gen('x')"),
        (ir.Text("a\n"), "Constant('a\\n')"),
        (ir.RoleBegin("user"), "RoleBegin(user)"),
        (ir.RoleEnd("user"), "RoleEnd(user)"),
        (ir.VarScopeBegin("v"), "VarScopeBegin(v)"),
        (ir.VarScopeEnd("v"), "VarScopeEnd(v)"),
        (ir.CommitLazy(), "CommitLazy()"),
        (ir.Image("cat.png"), "SglImage(cat.png)"),
        (ir.Video("cat.mp4", 8), "SglVideo(cat.mp4, 8)"),
        (ir.Variable("t1", "s"), "Variable('t1', source='s')"),
        (
            ir.Select("c", ("a", "b"), token_length_normalized),
            "Select(c, choices=['a', 'b'], choices_method=TokenLengthNormalized)",
        ),
        (
            separate_reasoning(gen("x"), "qwen3").items[0],
            "SeparateReasoning(model_type=qwen3, name=x_reasoning_content)",
        ),
    ],
)
def test_nodes_read_as_in_sglang(node: ir.Expr, expected: str) -> None:
    assert repr(node) == expected


def test_nodes_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ir.Text("a").value = "b"  # type: ignore[misc]


@pytest.mark.parametrize("node", [gen("a"), user("a"), "b" + gen("a"), ir.Text("a")])
def test_a_node_in_an_f_string_is_an_error_instead_of_its_name(node: ir.Expr) -> None:
    with pytest.raises(ProgramError, match="f-string"):
        f"{node}"
    with pytest.raises(ProgramError, match="f-string"):
        f"{node:>9}"
    assert f"{node!r}" == repr(node)
