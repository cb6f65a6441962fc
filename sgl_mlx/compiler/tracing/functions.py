"""Calls of Python functions: the body is traced at the place of the call."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import Any

from sgl_mlx.compiler.tracing.breaks import needs_run
from sgl_mlx.compiler.tracing.function_source import names_assigned, source_of
from sgl_mlx.compiler.tracing.symbols import LocalFunction
from sgl_mlx.compiler.tracing.tracer import Scope, Tracer

_Parameter = inspect.Parameter


class Returned(Exception):
    """A `return` statement: the exception carries the value out of the traced function."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing


def invoke(
    tracer: Tracer, function: FunctionType | LocalFunction, args: list[Any], kwargs: dict[str, Any]
) -> Any:
    """Trace a function's body in place of its call, and return what the function returns."""
    if isinstance(function, LocalFunction):
        signature = _signature(function)
    else:
        signature = inspect.signature(function, follow_wrapped=False)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        needs_run(f"raises TypeError: {error}")
    bound.apply_defaults()
    return run_body(tracer, function, bound.arguments)


def run_body(
    tracer: Tracer, function: FunctionType | LocalFunction, arguments: Mapping[str, Any]
) -> Any:
    """Trace the body of a function, given the value of each parameter; return its return value."""
    if isinstance(function, LocalFunction):
        scope, tree = _local(function)
    else:
        scope, tree = _global(tracer, function)
    scope.names.update(arguments)
    if isinstance(tree, ast.Lambda):
        return tracer.evaluate(tree.body, scope)
    try:
        tracer.execute(tree.body, scope)
    except Returned as returned:
        return returned.thing
    return None


def _global(tracer: Tracer, function: FunctionType) -> tuple[Scope, ast.FunctionDef]:
    read = partial(_parts, function)
    tracer.capture((id(function), "parts"), read, function.__name__, function)
    code = function.__code__
    source = source_of(code)
    own = frozenset(code.co_varnames + code.co_cellvars)
    return Scope(code.co_name, source.file, function, own), source.tree


def _parts(function: FunctionType) -> Any:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _local(function: LocalFunction) -> tuple[Scope, ast.FunctionDef | ast.Lambda]:
    outer, tree = function.scope, function.tree
    arguments = {arg.arg for arg in ast.walk(tree.args) if isinstance(arg, ast.arg)}
    own = arguments | names_assigned(tree)
    return Scope(function.name, outer.file, outer, frozenset(own)), tree


def _signature(function: LocalFunction) -> inspect.Signature:
    args = function.tree.args
    positional: list[tuple[str, Any]] = []
    positional += [(a.arg, _Parameter.POSITIONAL_ONLY) for a in args.posonlyargs]
    positional += [(a.arg, _Parameter.POSITIONAL_OR_KEYWORD) for a in args.args]
    required = len(positional) - len(function.defaults)
    parameters = [
        _Parameter(name, kind, default=function.defaults[i - required])
        if i >= required
        else _Parameter(name, kind)
        for i, (name, kind) in enumerate(positional)
    ]
    if args.vararg:
        parameters.append(_Parameter(args.vararg.arg, _Parameter.VAR_POSITIONAL))
    for arg in args.kwonlyargs:
        default = function.kw_defaults.get(arg.arg, _Parameter.empty)
        parameters.append(_Parameter(arg.arg, _Parameter.KEYWORD_ONLY, default=default))
    if args.kwarg:
        parameters.append(_Parameter(args.kwarg.arg, _Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)
