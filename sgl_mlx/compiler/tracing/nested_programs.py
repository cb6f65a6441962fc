"""Calls of a program by a program: each call is a stream of its own in the same graph."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from sgl_mlx.compiler.graph.nodes import Return
from sgl_mlx.compiler.tracing.breaks import attempt, needs_run
from sgl_mlx.compiler.tracing.functions import invoke
from sgl_mlx.compiler.tracing.plain import as_value, is_plain
from sgl_mlx.compiler.tracing.symbols import State
from sgl_mlx.compiler.tracing.tracer import Tracer
from sgl_mlx.compiler.tracing.words import sampling_of
from sgl_mlx.core import SamplingParams
from sgl_mlx.lang.program import Program

_OWN_OPTIONS = ("stream", "backend", "use_thread")


def call_program(
    tracer: Tracer, program: Program, args: list[Any], kwargs: dict[str, Any]
) -> State:
    """Trace `program.run(*args, **kwargs)` on the default backend; return the state of its stream.

    Raises:
        GraphBreak: graphs cannot express an option, such as `backend`, `stream` or `n`, or the
            value that the program returns.
    """
    line = tracer.recorder.line
    given = dict(kwargs)
    for option, usual in zip(_OWN_OPTIONS, (False, None, True), strict=True):
        if option not in program.arg_names and given.pop(option, usual) is not usual:
            needs_run(f"calls {program.name}() with {option}=")
    sampling, arguments = attempt(program.split, given)
    if not is_plain(sampling):
        needs_run(f"a sampling parameter of {program.name}() depends on the run")
    params = attempt(lambda: SamplingParams().override(**sampling).validate())
    if params.n != 1:
        needs_run(f"calls {program.name}() with n={params.n}")
    if not isinstance(program.func, FunctionType):
        needs_run(f"{program.name} is no Python function")
    state = tracer.recorder.call(program.name, sampling_of(sampling))
    result = invoke(tracer, program.func, [state, *args], {**program.bind_arguments, **arguments})
    _keep(tracer, state, result)
    tracer.recorder.line = line
    return state


def _keep(tracer: Tracer, state: State, result: Any) -> None:
    value = as_value(result)
    state.result = result
    if value is None and result is not None:
        needs_run("a called program returns something that graphs do not have")
    if result is not None and value is not None:
        tracer.recorder.add(Return(-1, -1, value), state)
