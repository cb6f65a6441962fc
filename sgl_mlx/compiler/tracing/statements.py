"""Python statements in a program that is traced."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from sgl_mlx.compiler.graph.values import LoopIndex, LoopItem, Texts
from sgl_mlx.compiler.tracing.breaks import GraphBreak, NeedsLength, attempt, needs_run
from sgl_mlx.compiler.tracing.expressions import local_function
from sgl_mlx.compiler.tracing.function_source import names_assigned
from sgl_mlx.compiler.tracing.functions import Returned
from sgl_mlx.compiler.tracing.operations import combine, item, iterate, truth
from sgl_mlx.compiler.tracing.plain import is_plain
from sgl_mlx.compiler.tracing.states import append, set_variable, spread
from sgl_mlx.compiler.tracing.symbols import Context, Group, Left, Numbered, State
from sgl_mlx.compiler.tracing.tracer import Scope, Tracer


class _Leave(Exception):
    """A `break` statement: an exception that the enclosing loop catches."""


class _Next(Exception):
    """A `continue` statement: an exception that the enclosing loop catches."""


def execute(tracer: Tracer, body: list[ast.stmt], scope: Scope) -> None:
    """Trace statements one after another.

    Raises:
        GraphBreak: a statement depends on the run in a way that graphs cannot express.
        NeedsLength: a statement depends on the length of a list argument.
        Returned: a `return` statement was reached.
    """
    for node in body:
        form = _FORMS.get(type(node))
        try:
            if form is None:
                needs_run(f"{type(node).__name__.lower()} statements are interpreted")
            form(tracer, node, scope)
        except (GraphBreak, NeedsLength) as stop:
            stop.locate(scope.line(node))
            raise


def _assign(t: Tracer, node: ast.Assign, scope: Scope) -> None:
    thing = t.evaluate(node.value, scope)
    for target in node.targets:
        assign(t, target, thing, scope)


def _ann_assign(t: Tracer, node: ast.AnnAssign, scope: Scope) -> None:
    if node.value is not None:
        assign(t, node.target, t.evaluate(node.value, scope), scope)


def assign(tracer: Tracer, target: ast.expr, thing: Any, scope: Scope) -> None:
    """Trace `target = thing`."""
    if isinstance(target, ast.Name):
        scope.names[target.id] = thing
    elif isinstance(target, (ast.Tuple, ast.List)):
        things = list(iterate(thing))
        starred = any(isinstance(each, ast.Starred) for each in target.elts)
        if starred or len(things) != len(target.elts):
            needs_run("unpacks with a star, or into more or fewer names than there are items")
        for each, one in zip(target.elts, things, strict=True):
            assign(tracer, each, one, scope)
    elif isinstance(target, ast.Subscript):
        holder = tracer.evaluate(target.value, scope)
        key = tracer.evaluate(target.slice, scope)
        tracer.recorder.line = scope.line(target)
        _set_item(tracer, holder, key, thing)
    else:
        needs_run(f"assigns to {ast.unparse(target)}")


def _set_item(tracer: Tracer, holder: Any, key: Any, thing: Any) -> None:
    if isinstance(holder, State):
        set_variable(tracer, holder, key, thing)
    elif isinstance(holder, Group):
        if item(tracer, holder, key) is not thing:
            needs_run("replaces a branch")
    elif type(holder) is list and type(key) is int and _is_at(holder, key, thing):
        return  # `branches.states[0] += x` puts the same state back
    else:
        tracer.changing(holder)
        if not is_plain([key, *holder]) and not (type(holder) is list and type(key) is int):
            needs_run("an index depends on the run")
        attempt(holder.__setitem__, key, thing)


def _is_at(holder: list[Any], key: int, thing: Any) -> bool:
    return -len(holder) <= key < len(holder) and holder[key] is thing


def _aug_assign(t: Tracer, node: ast.AugAssign, scope: Scope) -> None:
    if isinstance(node.target, ast.Name):
        thing = _updated(t, node, t.lookup(node.target.id, scope), scope)
        scope.names[node.target.id] = thing
        return
    if not isinstance(node.target, ast.Subscript):
        needs_run(f"assigns to {ast.unparse(node.target)}")
    holder = t.evaluate(node.target.value, scope)
    key = t.evaluate(node.target.slice, scope)
    _set_item(t, holder, key, _updated(t, node, item(t, holder, key), scope))


def _updated(t: Tracer, node: ast.AugAssign, thing: Any, scope: Scope) -> Any:
    other = t.evaluate(node.value, scope)
    t.recorder.line = scope.line(node)
    if isinstance(thing, (State, Group)) and not isinstance(node.op, ast.Add):
        needs_run("an operator on a state")
    if isinstance(thing, State):
        return append(t, thing, other)
    if isinstance(thing, Group):
        return spread(t, thing, other)
    if type(thing) in (list, dict, set):
        t.changing(thing)
        if type(thing) is not list or not isinstance(node.op, ast.Add):
            needs_run("changes a container by an operator")
        thing.extend(list(iterate(other)))
        return thing
    return combine(t, node.op, thing, other)


def _expr(t: Tracer, node: ast.Expr, scope: Scope) -> None:
    t.evaluate(node.value, scope)


def _if(t: Tracer, node: ast.If, scope: Scope) -> None:
    t.execute(node.body if truth(t.evaluate(node.test, scope)) else node.orelse, scope)


def _while(t: Tracer, node: ast.While, scope: Scope) -> None:
    while truth(t.evaluate(node.test, scope)):
        try:
            t.execute(node.body, scope)
        except _Next:
            continue
        except _Leave:
            return
    t.execute(node.orelse, scope)


def _for(t: Tracer, node: ast.For, scope: Scope) -> None:
    things = t.evaluate(node.iter, scope)
    if isinstance(things, (Texts, Numbered)):
        _for_each(t, node, things, scope)
        return
    for thing in iterate(things):
        assign(t, node.target, thing, scope)
        try:
            t.execute(node.body, scope)
        except _Next:
            continue
        except _Leave:
            return
    t.execute(node.orelse, scope)


def _for_each(t: Tracer, node: ast.For, things: Texts | Numbered, scope: Scope) -> None:
    """Trace a loop over a list argument: one iteration stands for all.

    Raises:
        NeedsLength: an iteration depends on another one, or leaves the loop early.
    """
    argument = things.argument
    assigned = names_assigned([*node.body, ast.Expr(node.target)])
    # States keep their values in a loop, since `s += x` assigns the same state to `s` again.
    states = {n: v for n, v in scope.names.items() if isinstance(v, (State, Group))}
    left = {name: Left(argument) for name in assigned - states.keys()}
    scope.names.update(left)
    t.recorder.line = scope.line(node)
    with t.recorder.looping(argument, t.recorder.root) as loop:
        item: Any = LoopItem(loop)
        if isinstance(things, Numbered):
            item = (LoopIndex(loop, things.start), item)
        assign(t, node.target, item, scope)
        try:
            t.execute(node.body, scope)
        except (_Next, _Leave, Returned):
            raise NeedsLength(argument, "leaves the loop over it early") from None
    if any(scope.names.get(name) is not state for name, state in states.items()):
        raise NeedsLength(argument, "the loop over it changes which state a name means")
    scope.names.update(left)
    t.execute(node.orelse, scope)


def _with(t: Tracer, node: ast.With, scope: Scope) -> None:
    with _entered(t, node.items, scope):
        t.execute(node.body, scope)


@contextmanager
def _entered(t: Tracer, items: list[ast.withitem], scope: Scope) -> Iterator[None]:
    if not items:
        yield
        return
    context = t.evaluate(items[0].context_expr, scope)
    if not isinstance(context, Context):
        needs_run("enters a context other than those of a state")
    line = scope.line(items[0].context_expr)
    t.recorder.line = line
    thing = context.enter()
    if items[0].optional_vars is not None:
        assign(t, items[0].optional_vars, thing, scope)
    try:
        with _entered(t, items[1:], scope):
            yield
    except (Returned, _Leave, _Next):
        t.recorder.line = line
        context.leave()
        raise
    t.recorder.line = line
    context.leave()


def _return(t: Tracer, node: ast.Return, scope: Scope) -> None:
    raise Returned(None if node.value is None else t.evaluate(node.value, scope))


def _assert(t: Tracer, node: ast.Assert, scope: Scope) -> None:
    if not truth(t.evaluate(node.test, scope)):
        needs_run("an assertion fails")


def _def(t: Tracer, node: ast.FunctionDef, scope: Scope) -> None:
    inner = {type(each) for each in ast.walk(node)}
    if node.decorator_list or inner & {ast.Yield, ast.YieldFrom, ast.Nonlocal, ast.Global}:
        needs_run(f"defines {node.name}() with decorators, yields or names from outside")
    scope.names[node.name] = local_function(t, node, scope)


def _delete(t: Tracer, node: ast.Delete, scope: Scope) -> None:
    for target in node.targets:
        if not isinstance(target, ast.Name) or target.id not in scope.names:
            needs_run(f"deletes {ast.unparse(target)}")
        del scope.names[target.id]


def _import(t: Tracer, node: ast.Import, scope: Scope) -> None:
    for name in node.names:
        top = name.name.partition(".")[0]
        loaded = _loaded(name.name)
        scope.names[name.asname or top] = loaded if name.asname else _loaded(top)


def _import_from(t: Tracer, node: ast.ImportFrom, scope: Scope) -> None:
    module = _loaded(node.module if node.module and not node.level else "")
    for name in node.names:
        scope.names[name.asname or name.name] = t.attribute(module, name.name)


def _loaded(name: str) -> ModuleType:
    if name not in sys.modules:
        needs_run(f"imports {name or 'a relative module'}")
    return sys.modules[name]


def _break(t: Tracer, node: ast.Break, scope: Scope) -> None:
    raise _Leave


def _continue(t: Tracer, node: ast.Continue, scope: Scope) -> None:
    raise _Next


def _pass(t: Tracer, node: ast.Pass, scope: Scope) -> None:
    return


_FORMS: dict[type[ast.stmt], Callable[..., None]] = {
    ast.Assign: _assign,
    ast.AnnAssign: _ann_assign,
    ast.AugAssign: _aug_assign,
    ast.Expr: _expr,
    ast.If: _if,
    ast.While: _while,
    ast.For: _for,
    ast.With: _with,
    ast.Return: _return,
    ast.Assert: _assert,
    ast.FunctionDef: _def,
    ast.Delete: _delete,
    ast.Import: _import,
    ast.ImportFrom: _import_from,
    ast.Break: _break,
    ast.Continue: _continue,
    ast.Pass: _pass,
}
