"""List, set and dictionary comprehensions in a program that is traced."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from sgl_mlx.compiler.tracing.breaks import needs_run
from sgl_mlx.compiler.tracing.operations import iterate, truth
from sgl_mlx.compiler.tracing.plain import is_plain
from sgl_mlx.compiler.tracing.statements import assign
from sgl_mlx.compiler.tracing.symbols import is_text
from sgl_mlx.compiler.tracing.tracer import Scope, Tracer


def _list(t: Tracer, node: ast.ListComp, scope: Scope) -> Any:
    return t.own([t.evaluate(node.elt, inner) for inner in _turns(t, node, scope)])


def _set(t: Tracer, node: ast.SetComp, scope: Scope) -> Any:
    return t.own({_key(t.evaluate(node.elt, inner)) for inner in _turns(t, node, scope)})


def _dict(t: Tracer, node: ast.DictComp, scope: Scope) -> Any:
    return t.own(
        {
            _dict_key(t.evaluate(node.key, inner)): t.evaluate(node.value, inner)
            for inner in _turns(t, node, scope)
        }
    )


def _key(thing: Any) -> Any:
    if not is_plain(thing):
        needs_run("puts what only a run knows into a set or a key")
    return thing


def _dict_key(thing: Any) -> Any:
    return thing if is_text(thing) else _key(thing)


_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp


def _turns(t: Tracer, node: _Comprehension, scope: Scope) -> Iterator[Scope]:
    # Python evaluates the first iterable in the enclosing scope, the others in the inner one.
    first = iterate(t.evaluate(node.generators[0].iter, scope))
    return _nested(t, node.generators, first, scope.inner())


def _nested(
    t: Tracer, generators: list[ast.comprehension], things: Iterator[Any], scope: Scope
) -> Iterator[Scope]:
    generator, *rest = generators
    for thing in things:
        assign(t, generator.target, thing, scope)
        if not all(truth(t.evaluate(test, scope)) for test in generator.ifs):
            continue
        if rest:
            inner = iterate(t.evaluate(rest[0].iter, scope))
            yield from _nested(t, rest, inner, scope)
        else:
            yield scope


COMPREHENSIONS: dict[type[ast.expr], Callable[..., Any]] = {
    ast.ListComp: _list,
    ast.SetComp: _set,
    ast.DictComp: _dict,
}
