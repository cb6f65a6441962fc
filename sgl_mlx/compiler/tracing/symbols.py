"""Symbols: they stand for things that only a run has while a program is traced.

Texts are `graph/values.py`, expressions the language's own; here are states and functions.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sgl_mlx.compiler.graph.values import (
    Argument,
    Concat,
    Element,
    Joined,
    LoopIndex,
    LoopItem,
    Method,
    Texts,
    Value,
    Variable,
)
from sgl_mlx.lang import ir


@dataclass(eq=False)
class State:
    """A stream under its name `s`.

    Attributes:
        bindings: what `s[name]` is now, by name.
        unknown: names that depend on the run; each may have been given again what it fits.
        result: what the nested program of this stream returned.
    """

    stream: int
    bindings: dict[Value, Any] = field(default_factory=dict)
    unknown: frozenset[Value] = frozenset()
    result: Any = None


@dataclass(eq=False)
class Group:
    """The branches of a fork; `fork` is its node's id."""

    fork: int
    source: State
    states: list[State]


@dataclass(frozen=True)
class Context:
    """A `with` on a state: what to record before and after its block."""

    enter: Callable[[], Any]
    leave: Callable[[], None]


@dataclass(frozen=True, eq=False)
class LocalFunction:
    """A function or lambda that the program itself defines; `scope` is where."""

    tree: ast.FunctionDef | ast.Lambda
    scope: Any
    defaults: tuple[Any, ...]
    kw_defaults: dict[str, Any]

    @property
    def name(self) -> str:
        return self.tree.name if isinstance(self.tree, ast.FunctionDef) else "<lambda>"


@dataclass(frozen=True)
class Numbered:
    """`enumerate(argument, start)` of a list argument of unknown length."""

    argument: str
    start: int


@dataclass(frozen=True)
class Decision:
    """The result of `score`."""

    decision: Variable


@dataclass(frozen=True)
class Unreadable:
    """A variable that has no text: reading it ends the trace."""

    reason: str


@dataclass(frozen=True)
class Left:
    """A name after a loop over an argument: its value depends on the number of turns."""

    argument: str


_KINDS = (
    ir.Symbol,
    ir.Expr,
    State,
    Group,
    Context,
    LocalFunction,
    Numbered,
    Decision,
    LoopIndex,
    Texts,
)


def is_text(thing: Any) -> bool:
    """A text that only a run knows."""
    return isinstance(thing, ir.Symbol)


def is_symbolic(thing: Any) -> bool:
    """Something that stands for what only a run has, or builtin containers of such."""
    if isinstance(thing, _KINDS):
        return True
    if type(thing) is dict:
        return any(is_symbolic(k) or is_symbolic(v) for k, v in thing.items())
    return type(thing) in (list, tuple, set, frozenset) and any(map(is_symbolic, thing))


def described(thing: Any) -> str:
    """A thing in words."""
    if isinstance(thing, Variable):
        return f"the variable {thing.name!r}"
    if isinstance(thing, (Argument, Texts)):
        return f"the argument {thing.name if isinstance(thing, Argument) else thing.argument!r}"
    if isinstance(thing, (Element, Joined, LoopItem)):
        return "an argument"
    if isinstance(thing, Method):
        return described(thing.text)
    if isinstance(thing, Concat):
        return described(next(part for part in thing.parts if is_text(part)))
    if type(thing) in (list, tuple, set, dict):
        inner = next((each for each in thing if is_symbolic(each)), None)
        return f"a {type(thing).__name__}" + (f" with {described(inner)}" if inner else "")
    if isinstance(thing, ir.Expr):
        return "an expression"
    words = {State: "a state", Group: "branches"}
    return words.get(type(thing), f"a {type(thing).__name__}")
