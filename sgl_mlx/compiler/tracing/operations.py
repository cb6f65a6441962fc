"""Operators on known values and symbols in a program that is traced."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from sgl_mlx.compiler.graph.values import LoopIndex, Texts, concat
from sgl_mlx.compiler.tracing.breaks import NeedsLength, attempt, needs_run
from sgl_mlx.compiler.tracing.plain import (
    CONTAINERS,
    ITERATORS,
    SCALARS,
    has_fixed_keys,
    is_plain,
    is_safe,
)
from sgl_mlx.compiler.tracing.symbols import (
    Decision,
    Group,
    LocalFunction,
    Numbered,
    State,
    described,
    is_symbolic,
    is_text,
)
from sgl_mlx.compiler.tracing.texts import percent
from sgl_mlx.compiler.tracing.tracer import Tracer, is_module
from sgl_mlx.compiler.tracing.words import expression, name_value
from sgl_mlx.lang import ir

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_ALWAYS_TRUE = (FunctionType, BuiltinFunctionType, ModuleType, type)
_OBJECTS = (State, Group, LocalFunction, ir.Expr)


def truth(thing: Any) -> bool:
    """Return `bool(thing)`.

    Raises:
        GraphBreak: the result depends on the run.
        NeedsLength: the thing is a list argument.
    """
    if isinstance(thing, Texts):
        raise NeedsLength(thing.argument, "asks whether it is empty")
    if type(thing) in SCALARS or type(thing) in CONTAINERS:
        return bool(thing)
    if isinstance(thing, _OBJECTS) or type(thing) in _ALWAYS_TRUE:
        return True
    return needs_run(f"branches on {described(thing)}")


def iterate(thing: Any) -> Iterator[Any]:
    """Return `iter(thing)`.

    Raises:
        GraphBreak: the items or their order depend on the run.
        NeedsLength: the thing is a list argument.
    """
    if isinstance(thing, (Texts, Numbered)):
        raise NeedsLength(thing.argument, "takes its items apart")
    if isinstance(thing, Group):
        return iter(thing.states)
    if not has_fixed_keys(thing):
        needs_run("goes through a dictionary whose keys only a run knows")
    if type(thing) in (set, frozenset) and len(thing) > 1:
        needs_run("goes through a set, whose order is not fixed")
    if type(thing) in (*CONTAINERS, *ITERATORS, str, bytes, range):
        return iter(thing)
    return needs_run(f"goes through {described(thing)}")


def combine(tracer: Tracer, op: ast.operator, left: Any, right: Any) -> Any:
    """Return `left op right` for an arithmetic or text operator; a symbol if a side is symbolic.

    Raises:
        GraphBreak: graphs cannot express the result.
    """
    plus = isinstance(op, ast.Add)
    if isinstance(left, ir.Expr) or isinstance(right, ir.Expr):
        if not plus:
            needs_run("an operator on an expression")
        return ir.ExprList.of(expression(left), expression(right))
    if isinstance(op, ast.Mod) and type(left) is str and not is_plain(right):
        return percent(left, right)
    if is_text(left) or is_text(right):
        return _combine_texts(plus, left, right)
    if isinstance(left, LoopIndex) and plus and type(right) is int:
        return LoopIndex(left.loop, left.start + right)
    lists = type(left) in (list, tuple) and (
        (plus and type(right) is type(left)) or (isinstance(op, ast.Mult) and type(right) is int)
    )
    if not lists and not (is_plain(left) and is_plain(right)):
        needs_run(f"computes with {described(left if is_symbolic(left) else right)}")
    if type(op) not in _BINARY:
        needs_run("this operator is interpreted")
    return tracer.own(attempt(_BINARY[type(op)], left, right))


def _combine_texts(plus: bool, left: Any, right: Any) -> Any:
    for side in (left, right):
        if not plus or not (is_text(side) or type(side) is str):
            needs_run(f"computes with {described(left if is_text(left) else right)}")
    return concat(left, right)


def compared(op: ast.cmpop, left: Any, right: Any) -> Any:
    """Return `left op right` for a comparison.

    Raises:
        GraphBreak: the result depends on the run.
    """
    if isinstance(op, (ast.Is, ast.IsNot)):
        return _same(left, right) is isinstance(op, ast.Is)
    keys = isinstance(op, (ast.In, ast.NotIn)) and type(right) is dict
    if not is_plain(left) or not (all(map(is_plain, right)) if keys else is_plain(right)):
        needs_run(f"compares {described(left if is_symbolic(left) else right)}")
    if type(left) in ITERATORS or type(right) in ITERATORS:
        needs_run("compares an iterator")
    return attempt(_COMPARE[type(op)], left, right)


def _same(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right  # no symbol stands for None
    if is_text(left) or is_text(right) or type(left) in SCALARS or type(right) in SCALARS:
        if type(left) is bool and type(right) is bool:
            return left is right
        needs_run("asks whether two texts or numbers are the same object")
    return left is right


def item(tracer: Tracer, thing: Any, key: Any) -> Any:
    """Return `thing[key]`; for a state, this is the value of a variable.

    Raises:
        GraphBreak: the result depends on the run.
        NeedsLength: the thing is a list argument.
    """
    if isinstance(thing, State):
        return tracer.recorder.read(thing, name_value(key))
    if isinstance(thing, Texts):
        raise NeedsLength(thing.argument, "takes an item of it")
    things = thing.states if isinstance(thing, Group) else thing
    if not is_safe(things) or type(things) in ITERATORS:
        needs_run(f"takes a part of {described(thing)}")
    if not is_plain(key) or not has_fixed_keys(things):
        needs_run("an index depends on the run")
    found = attempt(operator.getitem, things, key)
    return tracer.own(found) if type(key) is slice else found


def attribute(tracer: Tracer, thing: Any, name: str) -> Any:
    """Return `thing.name`.

    Raises:
        GraphBreak: the result depends on the run, or reading it could run code.
    """
    if isinstance(thing, Group) and name == "states":
        return thing.states
    if isinstance(thing, Group) and name == "src_state":
        return thing.source
    if isinstance(thing, State) and name == "ret_value" and thing.stream:
        return thing.result
    if isinstance(thing, Decision) and name == "decision":
        return thing.decision
    if is_symbolic(thing) or not (is_module(thing) or _is_own_attribute(thing, name)):
        needs_run(f"reads .{name} of {described(thing)}")
    return tracer.attribute(thing, name)


def _is_own_attribute(thing: Any, name: str) -> bool:
    """Tell whether an attribute can only be in the thing's own dictionary, not in its class."""
    kinds = type(thing).__mro__[:-1]  # without object
    own = not any({name, "__getattribute__"} & vars(kind).keys() for kind in kinds)
    return own and name not in vars(object) and hasattr(thing, "__dict__")
