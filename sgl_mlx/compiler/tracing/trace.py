"""Tracing: a program and the kinds of its arguments become a graph.

The body is not run. Its syntax tree is walked (`statements`, `expressions`, `calls`) with known
values, and with symbols for values that exist only at run time. Tracing computes with builtin data
only and changes nothing outside the trace. Where the body does something that cannot be traced
correctly, the graph ends in a Break at that line.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

from sgl_mlx import bounds
from sgl_mlx.compiler.graph.graph import Graph, Parameter
from sgl_mlx.compiler.graph.nodes import Break, Line
from sgl_mlx.compiler.graph.values import NONE, Argument, Element, StateOf, Texts, Value
from sgl_mlx.compiler.tracing.breaks import GraphBreak, NeedsLength, needs_run
from sgl_mlx.compiler.tracing.calls import call, evaluate_call
from sgl_mlx.compiler.tracing.comprehensions import COMPREHENSIONS
from sgl_mlx.compiler.tracing.expressions import evaluate
from sgl_mlx.compiler.tracing.functions import run_body
from sgl_mlx.compiler.tracing.plain import as_value, is_json
from sgl_mlx.compiler.tracing.statements import execute
from sgl_mlx.compiler.tracing.symbols import State
from sgl_mlx.compiler.tracing.tracer import Capture, Scope, Tracer
from sgl_mlx.lang.program import Program


@dataclass(frozen=True)
class Trace:
    """A graph, and what it depends on besides the kinds of the arguments.

    Attributes:
        graph: the graph, before any pass.
        captures: values from outside that the body read, such as globals.
        lengths: the list arguments that were traced for one length, each with the reason.
    """

    graph: Graph
    captures: tuple[Capture, ...]
    lengths: Mapping[str, NeedsLength]


def kind_of(value: Any) -> str:
    """Tell how an argument is traced: as "text", as "texts" or as "constant"."""
    if type(value) is str:
        return "text"
    texts = type(value) in (list, tuple) and all(type(item) is str for item in value)
    return "texts" if texts else "constant"


def trace(program: Program, arguments: Mapping[str, Any]) -> Trace:
    """Trace a program for all arguments of the same kinds as `arguments`.

    The trace holds for any text in place of a text argument or of a text in a list argument; each
    other argument is a constant. A program that cannot be traced to its end gives a graph that ends
    in a Break.

    Args:
        arguments: the value of each parameter by name, defaults included.
    """
    lengths: dict[str, NeedsLength] = {}
    while True:
        try:
            return _traced(program, arguments, lengths)
        except NeedsLength as need:
            lengths[need.argument] = need  # ends: each argument gets here at most once


def _traced(
    program: Program, arguments: Mapping[str, Any], lengths: Mapping[str, NeedsLength]
) -> Trace:
    tracer = Tracer(_evaluate, execute, call)
    recorder = tracer.recorder
    symbols = {name: _symbol(name, value, lengths) for name, value in arguments.items()}
    result: Value = NONE
    try:
        result = _result(tracer, program, symbols)
    except (GraphBreak, RecursionError) as stop:
        line, reason = _where(stop, program)
        code = linecache.getline(line.file, line.number).strip()
        recorder.nodes.append(Break(recorder.next_id, 0, code, reason, line=line))
    parameters = tuple(
        _parameter(program, name, value, lengths) for name, value in arguments.items()
    )
    graph = Graph(program.name, parameters, tuple(recorder.nodes), result, tuple(recorder.reads))
    return Trace(graph, tracer.captures, lengths)


def _evaluate(tracer: Tracer, node: ast.expr, scope: Scope) -> Any:
    if isinstance(node, ast.Call):
        return evaluate_call(tracer, node, scope)
    comprehension = COMPREHENSIONS.get(type(node))
    return comprehension(tracer, node, scope) if comprehension else evaluate(tracer, node, scope)


def _result(tracer: Tracer, program: Program, symbols: dict[str, Any]) -> Value:
    if type(program.func) is not FunctionType:
        needs_run(f"{program.name} is no Python function")
    returned = run_body(tracer, program.func, {"s": tracer.recorder.root, **symbols})
    value = _returned(returned)
    if value is None:
        needs_run("returns something that graphs do not have")
    return value


def _returned(thing: Any) -> Value | None:
    return StateOf(thing.stream) if isinstance(thing, State) else as_value(thing)


def _where(stop: Exception, program: Program) -> tuple[Line, str]:
    code = getattr(program.func, "__code__", None)
    whole = Line(program.name, code.co_filename, code.co_firstlineno) if code else Line("", "", 0)
    if isinstance(stop, GraphBreak):
        return stop.line or whole, stop.reason
    return whole, "the program is nested too deeply to be traced"


# -- arguments ----------------------------------------------------------------------------------


def _symbol(name: str, value: Any, lengths: Mapping[str, NeedsLength]) -> Any:
    kind = kind_of(value)
    if kind == "text":
        return Argument(name)
    if kind == "texts" and name in lengths:
        return type(value)(Element(name, i) for i in range(len(value)))
    return Texts(name) if kind == "texts" else value


def _parameter(
    program: Program, name: str, value: Any, lengths: Mapping[str, NeedsLength]
) -> Parameter:
    default = default_of(program, name)
    make = partial(Parameter, name, optional=default is not ..., default=_plain(default))
    kind = kind_of(value)
    if kind == "texts":
        return make("texts", length=len(value) if name in lengths else None)
    if kind == "text":
        return make("text")
    return make("constant", value=_plain(value), opaque=not is_json(value))


def default_of(program: Program, name: str) -> Any:
    """Return the default of an argument; `...` if a run has to pass one."""
    parameter = program.signature.parameters[name]
    if name in program.bind_arguments:
        return program.bind_arguments[name]
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return () if parameter.kind is parameter.VAR_POSITIONAL else {}
    return ... if parameter.default is parameter.empty else parameter.default


def _plain(value: Any) -> Any:
    if value is ...:
        return None
    return value if is_json(value) else bounds.shown(value)
