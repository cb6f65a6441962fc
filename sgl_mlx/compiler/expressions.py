"""What expressions of Python mean while a program is traced.

Only what is known to be right is computed; every other form ends the trace (`GraphBreak`) before
it does anything.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from sgl_mlx.compiler.breaks import NeedsLength, needs_run
from sgl_mlx.compiler.leaves import add, name_value
from sgl_mlx.compiler.plain import CONTAINERS, ITERATORS, SCALARS, has_fixed_keys, is_plain, is_safe
from sgl_mlx.compiler.symbols import (
    Decision,
    Group,
    Leaves,
    LocalFunction,
    Numbered,
    State,
    described,
    is_symbolic,
    is_text,
)
from sgl_mlx.compiler.texts import as_symbol, formatted, percent
from sgl_mlx.compiler.tracer import Scope, Tracer, attempt, is_module
from sgl_mlx.compiler.values import LoopIndex, Texts, concat
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
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
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
_OBJECTS = (State, Group, Leaves, LocalFunction, ir.Expr)


def evaluate(tracer: Tracer, node: ast.expr, scope: Scope) -> Any:
    """The value of an expression, or a symbol for it."""
    form = _FORMS.get(type(node))
    if form is None:
        needs_run(f"{type(node).__name__} expressions are interpreted")
    return form(tracer, node, scope)


# -- what values can do ------------------------------------------------------------------------


def truth(thing: Any) -> bool:
    """`bool(thing)`, where it is known."""
    if isinstance(thing, Texts):
        raise NeedsLength(thing.argument, "asks whether it is empty")
    if type(thing) in SCALARS or type(thing) in CONTAINERS:
        return bool(thing)
    if isinstance(thing, _OBJECTS) or type(thing) in _ALWAYS_TRUE:
        return True
    return needs_run(f"branches on {described(thing)}")


def iterate(thing: Any) -> Iterator[Any]:
    """`iter(thing)`, where it is known how many items there are."""
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
    """`left op right`."""
    plus = isinstance(op, ast.Add)
    if isinstance(left, (Leaves, ir.Expr)) or isinstance(right, (Leaves, ir.Expr)):
        return add(left, right) if plus else needs_run("an operator on an expression")
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


# -- forms -------------------------------------------------------------------------------------


def _joined_str(t: Tracer, node: ast.JoinedStr, scope: Scope) -> Any:
    parts = [t.evaluate(part, scope) for part in node.values]
    return as_symbol(concat(*parts))


def _formatted_value(t: Tracer, node: ast.FormattedValue, scope: Scope) -> Any:
    thing = t.evaluate(node.value, scope)
    spec = t.evaluate(node.format_spec, scope) if node.format_spec else ""
    if type(spec) is not str:
        needs_run("a format depends on the run")
    conversion = None if node.conversion == -1 else chr(node.conversion)
    return as_symbol(formatted(thing, spec, conversion))


def _bin_op(t: Tracer, node: ast.BinOp, scope: Scope) -> Any:
    left = t.evaluate(node.left, scope)
    return combine(t, node.op, left, t.evaluate(node.right, scope))


def _unary(t: Tracer, node: ast.UnaryOp, scope: Scope) -> Any:
    thing = t.evaluate(node.operand, scope)
    if isinstance(node.op, ast.Not):
        return not truth(thing)
    if not is_plain(thing):
        needs_run(f"computes with {described(thing)}")
    return attempt(_UNARY[type(node.op)], thing)


def _bool_op(t: Tracer, node: ast.BoolOp, scope: Scope) -> Any:
    decides = isinstance(node.op, ast.Or)
    thing: Any = None
    for i, operand in enumerate(node.values):
        thing = t.evaluate(operand, scope)
        if i + 1 < len(node.values) and truth(thing) is decides:
            break
    return thing


def _compare(t: Tracer, node: ast.Compare, scope: Scope) -> Any:
    left, result = t.evaluate(node.left, scope), True
    for op, operand in zip(node.ops, node.comparators, strict=True):
        right = t.evaluate(operand, scope)
        result = _compared(op, left, right)
        if not truth(result):
            break
        left = right
    return result


def _compared(op: ast.cmpop, left: Any, right: Any) -> Any:
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
        return left is right  # nothing that a symbol stands for is None
    if is_text(left) or is_text(right) or type(left) in SCALARS or type(right) in SCALARS:
        if type(left) is bool and type(right) is bool:
            return left is right
        needs_run("asks whether two texts or numbers are the same object")
    return left is right


def _if_exp(t: Tracer, node: ast.IfExp, scope: Scope) -> Any:
    return t.evaluate(node.body if truth(t.evaluate(node.test, scope)) else node.orelse, scope)


def _subscript(t: Tracer, node: ast.Subscript, scope: Scope) -> Any:
    thing, key = t.evaluate(node.value, scope), t.evaluate(node.slice, scope)
    t.recorder.line = scope.line(node)
    return item(t, thing, key)


def item(tracer: Tracer, thing: Any, key: Any) -> Any:
    """`thing[key]`."""
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


def _attribute(t: Tracer, node: ast.Attribute, scope: Scope) -> Any:
    return attribute(t, t.evaluate(node.value, scope), node.attr)


def attribute(tracer: Tracer, thing: Any, name: str) -> Any:
    """`thing.name`."""
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
    """Whether the attribute can only be what lies in the thing's dictionary, whatever its class."""
    kinds = type(thing).__mro__[:-1]  # without object
    own = not any({name, "__getattribute__"} & vars(kind).keys() for kind in kinds)
    return own and name not in vars(object) and hasattr(thing, "__dict__")


def _items(t: Tracer, nodes: list[ast.expr], scope: Scope) -> list[Any]:
    found: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            found.extend(iterate(t.evaluate(node.value, scope)))
        else:
            found.append(t.evaluate(node, scope))
    return found


def _tuple(t: Tracer, node: ast.Tuple, scope: Scope) -> Any:
    return tuple(_items(t, node.elts, scope))


def _list(t: Tracer, node: ast.List, scope: Scope) -> Any:
    return t.own(_items(t, node.elts, scope))


def _set(t: Tracer, node: ast.Set, scope: Scope) -> Any:
    return t.own(set(_hashable(_items(t, node.elts, scope))))


def _hashable(things: list[Any]) -> list[Any]:
    if not is_plain(things):
        needs_run("puts what only a run knows into a set or a key")
    attempt(set, things)
    return things


def _dict(t: Tracer, node: ast.Dict, scope: Scope) -> Any:
    made: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            other = t.evaluate(value, scope)
            fixed = type(other) is dict and has_fixed_keys(other)
            made.update(other if fixed else needs_run("** of no dictionary with known keys"))
        else:
            known = t.evaluate(key, scope)
            made[known if is_text(known) else _hashable([known])[0]] = t.evaluate(value, scope)
    return t.own(made)


def _slice(t: Tracer, node: ast.Slice, scope: Scope) -> Any:
    ends = (node.lower, node.upper, node.step)
    return slice(*(None if end is None else t.evaluate(end, scope) for end in ends))


def _lambda(t: Tracer, node: ast.Lambda, scope: Scope) -> Any:
    return local_function(t, node, scope)


def local_function(
    tracer: Tracer, tree: ast.Lambda | ast.FunctionDef, scope: Scope
) -> LocalFunction:
    """A function that the program defines here."""
    defaults = tuple(tracer.evaluate(node, scope) for node in tree.args.defaults)
    names = [arg.arg for arg in tree.args.kwonlyargs]
    pairs = zip(names, tree.args.kw_defaults, strict=True)
    given = {name: tracer.evaluate(node, scope) for name, node in pairs if node is not None}
    return LocalFunction(tree, scope, defaults, given)


def _named(t: Tracer, node: ast.NamedExpr, scope: Scope) -> Any:
    if scope.comprehension:
        needs_run("assigns inside a comprehension")
    thing = t.evaluate(node.value, scope)
    scope.names[node.target.id] = thing
    return thing


def _name(t: Tracer, node: ast.Name, scope: Scope) -> Any:
    return t.lookup(node.id, scope)


def _constant(t: Tracer, node: ast.Constant, scope: Scope) -> Any:
    return node.value


_FORMS: dict[type[ast.expr], Callable[..., Any]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.JoinedStr: _joined_str,
    ast.FormattedValue: _formatted_value,
    ast.BinOp: _bin_op,
    ast.UnaryOp: _unary,
    ast.BoolOp: _bool_op,
    ast.Compare: _compare,
    ast.IfExp: _if_exp,
    ast.Subscript: _subscript,
    ast.Attribute: _attribute,
    ast.Tuple: _tuple,
    ast.List: _list,
    ast.Set: _set,
    ast.Dict: _dict,
    ast.Slice: _slice,
    ast.Lambda: _lambda,
    ast.NamedExpr: _named,
}
