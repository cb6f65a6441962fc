"""Python expressions in a program that is traced.

Only forms with known effects are evaluated. Any other form ends the trace (`GraphBreak`) before it
has an effect.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from sgl_mlx.compiler.graph.values import concat
from sgl_mlx.compiler.tracing.breaks import attempt, needs_run
from sgl_mlx.compiler.tracing.operations import attribute, combine, compared, item, iterate, truth
from sgl_mlx.compiler.tracing.plain import has_fixed_keys, is_plain
from sgl_mlx.compiler.tracing.symbols import LocalFunction, described, is_text
from sgl_mlx.compiler.tracing.texts import as_symbol, formatted
from sgl_mlx.compiler.tracing.tracer import Scope, Tracer

_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}


def evaluate(tracer: Tracer, node: ast.expr, scope: Scope) -> Any:
    """Return the value of an expression, or a symbol if the value is computed at run time.

    Raises:
        GraphBreak: the expression depends on the run in a way that graphs cannot express.
        NeedsLength: the expression depends on the length of a list argument.
    """
    form = _FORMS.get(type(node))
    if form is None:
        needs_run(f"{type(node).__name__} expressions are interpreted")
    return form(tracer, node, scope)


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
        result = compared(op, left, right)
        if not truth(result):
            break
        left = right
    return result


def _if_exp(t: Tracer, node: ast.IfExp, scope: Scope) -> Any:
    return t.evaluate(node.body if truth(t.evaluate(node.test, scope)) else node.orelse, scope)


def _subscript(t: Tracer, node: ast.Subscript, scope: Scope) -> Any:
    thing, key = t.evaluate(node.value, scope), t.evaluate(node.slice, scope)
    t.recorder.line = scope.line(node)
    return item(t, thing, key)


def _attribute(t: Tracer, node: ast.Attribute, scope: Scope) -> Any:
    return attribute(t, t.evaluate(node.value, scope), node.attr)


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
            if not fixed:
                needs_run("takes ** of something that is no dictionary with known keys")
            made.update(other)
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
    """Return the function for a `def` or lambda inside the program; evaluate its defaults."""
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
