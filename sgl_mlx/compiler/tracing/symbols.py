"""Symbols: stand-ins, in a trace, for objects that exist only when the program runs.

This module has the symbols for states, branches and functions. Symbols for texts are in
`graph/values.py`.
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
    """The symbol for a program state `s`.

    Attributes:
        stream: the number of its stream.
        bindings: the current meaning of `s[name]`, by name.
        unknown: the symbolic names under which variables were set. In a run, a symbolic name may
            equal another name, and the variable of that name is then replaced.
        result: the return value of the nested program of this stream.
    """

    stream: int
    bindings: dict[Value, Any] = field(default_factory=dict)
    unknown: frozenset[Value] = frozenset()
    result: Any = None


@dataclass(eq=False)
class Group:
    """The symbol for the branches of a fork.

    Attributes:
        fork: the id of the Fork node.
        source: the state that was forked.
        states: the states of the branches.
    """

    fork: int
    source: State
    states: list[State]


@dataclass(frozen=True)
class Context:
    """A `with` block on a state: functions that record its beginning and its end."""

    enter: Callable[[], Any]
    leave: Callable[[], None]


@dataclass(frozen=True, eq=False)
class LocalFunction:
    """A function or lambda defined inside the program, with the scope of its definition."""

    tree: ast.FunctionDef | ast.Lambda
    scope: Any
    defaults: tuple[Any, ...]
    kw_defaults: dict[str, Any]

    @property
    def name(self) -> str:
        return self.tree.name if isinstance(self.tree, ast.FunctionDef) else "<lambda>"


@dataclass(frozen=True)
class Numbered:
    """The symbol for `enumerate(argument, start)` of a list argument of unknown length."""

    argument: str
    start: int


@dataclass(frozen=True)
class Decision:
    """The symbol for the result of `score`; its attribute `decision` is the chosen text."""

    decision: Variable


@dataclass(frozen=True)
class Unreadable:
    """A variable whose text the trace cannot know, for `reason`: reading it ends the trace."""

    reason: str


@dataclass(frozen=True)
class Left:
    """The value that a loop over a list argument leaves in a name; it depends on the length."""

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
    """Tell whether a value is the symbol for a text that is computed at run time."""
    return isinstance(thing, ir.Symbol)


def is_symbolic(thing: Any) -> bool:
    """Tell whether a value is a symbol, or a builtin container with a symbol inside."""
    if isinstance(thing, _KINDS):
        return True
    if type(thing) is dict:
        return any(is_symbolic(k) or is_symbolic(v) for k, v in thing.items())
    return type(thing) in (list, tuple, set, frozenset) and any(map(is_symbolic, thing))


def described(thing: Any) -> str:
    """Describe a value in words for an explanation, such as "the argument 'topic'"."""
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
