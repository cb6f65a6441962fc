"""Calls in a program that is traced. A call with unknown effects ends the trace."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType
from typing import Any

from sgl_mlx.compiler.graph.values import Joined, Texts
from sgl_mlx.compiler.tracing.breaks import NeedsLength, attempt, needs_run
from sgl_mlx.compiler.tracing.functions import invoke
from sgl_mlx.compiler.tracing.nested_programs import call_program
from sgl_mlx.compiler.tracing.operations import attribute, item, iterate
from sgl_mlx.compiler.tracing.plain import CONTAINERS, ITERATORS, SCALARS, has_fixed_keys, is_plain
from sgl_mlx.compiler.tracing.states import GROUP_METHODS, STATE_METHODS, score
from sgl_mlx.compiler.tracing.symbols import (
    Group,
    LocalFunction,
    Numbered,
    State,
    described,
    is_symbolic,
    is_text,
)
from sgl_mlx.compiler.tracing.texts import as_symbol, format_method, formatted, join, method
from sgl_mlx.compiler.tracing.tracer import Scope, Tracer, is_module
from sgl_mlx.compiler.tracing.words import WORDS, call_word
from sgl_mlx.lang.program import Program
from sgl_mlx.lang.scoring import score as score_word

Args = list[Any]
Kwargs = dict[str, Any]

_PURE: frozenset[Any] = frozenset(
    {abs, all, any, ascii, bin, bool, chr, complex, divmod, float, format, frozenset, hex, int}
    | {isinstance, max, min, oct, ord, pow, range, repr, round, set, slice, sorted, str, sum}
    | {json.dumps, json.loads, re.compile, re.escape, re.sub, re.split, re.findall}
    | {textwrap.dedent, textwrap.fill, textwrap.indent, textwrap.shorten}
    | {thing for thing in vars(math).values() if callable(thing)}
)
"""Functions that have no side effects if all arguments are plain data."""

_STRUCTURAL: frozenset[Any] = frozenset({dict, enumerate, len, list, reversed, tuple, zip})
"""Functions that never look at the items of a container, so that items may be symbols."""

_CHANGES = frozenset({"append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse"})
_MORE_CHANGES = frozenset({"update", "setdefault", "add", "discard", "popitem"})
_LOOKS_AT_NO_ITEM = frozenset(
    {"items", "keys", "values", "copy", "append", "extend", "insert", "pop", "reverse", "clear"}
)


def evaluate_call(tracer: Tracer, node: ast.Call, scope: Scope) -> Any:
    """Return the value of a call expression: trace the function, the arguments, then the call."""
    receiver: Any = None
    bound = isinstance(node.func, ast.Attribute)
    if isinstance(node.func, ast.Attribute):
        receiver = tracer.evaluate(node.func.value, scope)
        bound = not is_module(receiver)
        function = None if bound else attribute(tracer, receiver, node.func.attr)
    else:
        function = tracer.evaluate(node.func, scope)
    args, kwargs = _arguments(tracer, node, scope)
    tracer.recorder.line = scope.line(node)
    if bound:
        assert isinstance(node.func, ast.Attribute)
        return call_method(tracer, receiver, node.func.attr, args, kwargs)
    return tracer.call(function, args, kwargs)


def _arguments(tracer: Tracer, node: ast.Call, scope: Scope) -> tuple[Args, Kwargs]:
    args: Args = []
    for arg in node.args:
        if isinstance(arg, ast.Starred):
            args.extend(iterate(tracer.evaluate(arg.value, scope)))
        elif isinstance(arg, ast.GeneratorExp):
            args.append(iter(_generated(tracer, arg, scope)))
        else:
            args.append(tracer.evaluate(arg, scope))
    kwargs: Kwargs = {}
    for keyword in node.keywords:
        thing = tracer.evaluate(keyword.value, scope)
        if keyword.arg is None:
            if type(thing) is not dict or not all(type(key) is str for key in thing):
                needs_run("takes ** of something that is no dictionary with texts as keys")
            kwargs.update(thing)
        else:
            kwargs[keyword.arg] = thing
    return args, kwargs


def _generated(tracer: Tracer, node: ast.GeneratorExp, scope: Scope) -> list[Any]:
    # Evaluated at once, like a list: while `pure` is set, the items cannot have side effects.
    tracer.recorder.pure += 1
    try:
        made = tracer.evaluate(
            ast.copy_location(ast.ListComp(node.elt, node.generators), node), scope
        )
    finally:
        tracer.recorder.pure -= 1
    assert isinstance(made, list)
    return made


def call(tracer: Tracer, function: Any, args: Args, kwargs: Kwargs) -> Any:
    """Trace the call `function(*args, **kwargs)` and return its result."""
    if isinstance(function, Program):
        return call_program(tracer, function, args, kwargs)
    if isinstance(function, LocalFunction) or inspect.isfunction(function):
        special = _special(tracer, function, args, kwargs)
        return invoke(tracer, function, args, kwargs) if special is None else special[0]
    return _call_builtin(tracer, function, args, kwargs)


def _special(tracer: Tracer, function: Any, args: Args, kwargs: Kwargs) -> tuple[Any] | None:
    """Call a function that has a tracing rule; return (result,), or None if there is no rule."""
    if isinstance(function, LocalFunction):
        return None
    if function in WORDS:
        return (call_word(function, *args, **kwargs),)
    if function is score_word:
        return (_bound(score, tracer, args, kwargs),)
    if function in _PURE:
        return (_pure(tracer, function, args, kwargs),)
    return None


def _bound(function: Callable[..., Any], first: Any, args: Args, kwargs: Kwargs) -> Any:
    try:
        inspect.signature(function).bind(first, *args, **kwargs)
    except TypeError as error:
        needs_run(f"raises TypeError: {error}")
    return function(first, *args, **kwargs)


def _call_builtin(tracer: Tracer, function: Any, args: Args, kwargs: Kwargs) -> Any:
    # Only for these types, `in` a set is sure to run no `__hash__` or `__eq__` of the user.
    known = type(function) in (type, BuiltinFunctionType)
    if not known or not (function in _STRUCTURAL or function in _PURE):
        needs_run(f"calls {_name(function)}, which the compiler does not know")
    if function is str and len(args) == 1 and not kwargs:
        return as_symbol(formatted(args[0]))
    if function in _STRUCTURAL:
        return _structural(tracer, function, args, kwargs)
    return _pure(tracer, function, args, kwargs)


def _structural(tracer: Tracer, function: Any, args: Args, kwargs: Kwargs) -> Any:
    if function is enumerate and args and isinstance(args[0], Texts):
        start = args[1] if len(args) > 1 else kwargs.get("start", 0)
        if type(start) is not int:
            needs_run("calls enumerate() with a start that is no known integer")
        return Numbered(args[0].argument, start)
    if any(isinstance(arg, (Texts, Numbered)) for arg in args):
        argument = next(arg.argument for arg in args if isinstance(arg, (Texts, Numbered)))
        raise NeedsLength(argument, f"calls {function.__name__}() of it")
    things = [arg.states if isinstance(arg, Group) else arg for arg in args]
    keys = function is not dict or all(map(_plain_keys, things))
    sized = function is len and all(type(t) in CONTAINERS and has_fixed_keys(t) for t in things)
    if not (keys and (sized or all(map(_known_type, things)))):
        needs_run(f"calls {function.__name__}() of {_named(things)}")
    return tracer.own(attempt(function, *things, **kwargs))


def _plain_keys(thing: Any) -> bool:
    if type(thing) not in (list, tuple):
        return type(thing) is dict or is_plain(thing)
    return all(type(pair) in (tuple, list) and is_plain(pair[:1]) for pair in thing)


def _known_type(thing: Any) -> bool:
    if (type(thing) in (set, frozenset) and len(thing) > 1) or not has_fixed_keys(thing):
        return False
    return type(thing) in SCALARS or type(thing) in CONTAINERS or type(thing) in ITERATORS


def _pure(tracer: Tracer, function: Any, args: Args, kwargs: Kwargs) -> Any:
    listed = [list(arg) if type(arg) in ITERATORS else arg for arg in args]
    for arg in (*listed, *kwargs.values()):
        if isinstance(arg, Texts):
            raise NeedsLength(arg.argument, f"calls {_name(function)} of it")
        if not (is_plain(arg) or isinstance(arg, type)):
            needs_run(f"calls {_name(function)} of {_named([arg])}")
    if any(type(arg) in (set, frozenset) for arg in listed) and function not in (sorted, bool):
        needs_run("goes through a set, whose order is not fixed")
    return tracer.own(attempt(function, *listed, **kwargs))


def call_method(tracer: Tracer, thing: Any, name: str, args: Args, kwargs: Kwargs) -> Any:
    """Trace the call `thing.name(*args, **kwargs)` and return its result."""
    for kind, methods in ((State, STATE_METHODS), (Group, GROUP_METHODS)):
        if isinstance(thing, kind):
            if name not in methods:
                needs_run(f"reads .{name}() of a state" if kind is State else f"calls .{name}()")
            bound = methods[name]
            return _on_state(bound, tracer, thing, args, kwargs)
    if isinstance(thing, Program):
        return _program_method(tracer, thing, name, args, kwargs)
    if isinstance(thing, Texts):
        raise NeedsLength(thing.argument, f"calls .{name}() of it")
    if is_text(thing):
        return method(thing, name, args, kwargs)
    if type(thing) is str and name == "join" and len(args) == 1:
        return _join(thing, args[0])
    if type(thing) is str and name == "format":
        return format_method(thing, args, kwargs)
    if type(thing) in (list, dict, set):
        return _container_method(tracer, thing, name, args, kwargs)
    if type(thing) in SCALARS or type(thing) in (tuple, frozenset, re.Pattern):
        if name == "format_map" or not is_plain([thing, *args, *kwargs.values()]):
            needs_run(f"calls .{name}() of {_named([thing, *args])}")
        return tracer.own(attempt(getattr(thing, name), *args, **kwargs))
    if not is_symbolic(thing) and isinstance(getattr(thing, "__dict__", None), dict):
        return tracer.call(attribute(tracer, thing, name), args, kwargs)
    return needs_run(f"calls .{name}() of {described(thing)}, which the compiler does not know")


def _on_state(
    bound: Callable[..., Any], tracer: Tracer, thing: Any, args: Args, kwargs: Kwargs
) -> Any:
    try:
        inspect.signature(bound).bind(tracer, thing, *args, **kwargs)
    except TypeError as error:
        needs_run(f"raises TypeError: {error}")
    return bound(tracer, thing, *args, **kwargs)


def _program_method(tracer: Tracer, program: Program, name: str, args: Args, kwargs: Kwargs) -> Any:
    if name == "run":
        return call_program(tracer, program, args, kwargs)
    if name == "bind" and not args and not is_symbolic(kwargs):
        return attempt(program.bind, **kwargs)
    return needs_run(f"calls .{name}() of the program {program.name}()")


def _join(separator: str, things: Any) -> Any:
    if isinstance(things, Texts):
        return Joined(separator, things.argument)
    return join(separator, list(iterate(things)))


def _container_method(tracer: Tracer, thing: Any, name: str, args: Args, kwargs: Kwargs) -> Any:
    if not has_fixed_keys(thing):
        needs_run(f"calls .{name}() of a dictionary whose keys only a run knows")
    if name in _CHANGES or name in _MORE_CHANGES:
        tracer.changing(thing)
        return _change(thing, name, args, kwargs)
    if name == "get" and type(thing) is dict and args and not kwargs:
        (key, *default) = args
        known = is_plain([key, *thing])
        return item(tracer, thing, key) if known and key in thing else _default(known, default)
    if name not in _LOOKS_AT_NO_ITEM and not is_plain([thing, *args, *kwargs.values()]):
        needs_run(f"calls .{name}() of {_named([thing, *args])}")
    return tracer.own(attempt(getattr(thing, name), *args, **kwargs))


def _change(thing: Any, name: str, args: Args, kwargs: Kwargs) -> Any:
    if name == "extend" and len(args) == 1:
        args = [list(iterate(args[0]))]
    structural = type(thing) is list and name in _LOOKS_AT_NO_ITEM
    if not structural and not is_plain([thing, *args, *kwargs.values()]):
        needs_run(f"calls .{name}() of {_named([thing, *args])}")
    return attempt(getattr(thing, name), *args, **kwargs)


def _default(known: bool, default: Sequence[Any]) -> Any:
    if not known:
        needs_run("an index depends on the run")
    return default[0] if default else None


def _named(things: Sequence[Any]) -> str:
    for thing in things:
        if is_symbolic(thing):
            return described(thing)
    return described(things[0]) if things else "nothing"


def _name(function: Any) -> str:
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{module}.{name}()" if module not in (None, "builtins", "__main__") else f"{name}()"
