"""SGLang's names for classes and functions that have other names in this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgl_mlx.compiler.graph.nodes import Fork, GetForkItem
from sgl_mlx.compiler.program import CompiledProgram
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.lang.stream import Stream
from sgl_mlx.program import SglFunction

CompiledFunction = CompiledProgram
SglFork = Fork
SglGetForkItem = GetForkItem
StreamExecutor = Stream


class TracingScope:
    """A stand-in for SGLang's `TracingScope`, without effect: tracing here needs no scope."""

    cur_scope: TracingScope | None = None

    def __init__(self, tracer_state: Any = None) -> None:
        self.tracer_state = tracer_state

    @staticmethod
    def get_current_scope() -> TracingScope | None:
        """Return None: programs are traced from their source, without a scope."""
        return None

    def __enter__(self) -> TracingScope:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def trace_program(program: SglFunction, arguments: Mapping[str, Any], backend: Any = None) -> Any:
    """Trace a program with these arguments, and return its graph.

    Args:
        arguments: values of the program's arguments, by name; see `SglFunction.trace`.
        backend: ignored; SGLang has this parameter.
    """
    return program.trace(backend=backend, **arguments)


def compile_func(function: SglFunction, backend: Any = None) -> CompiledProgram:
    """Compile a program as `function.compile()` does; `backend` is ignored."""
    return function.compile(backend=backend)


def run_program(
    program: SglFunction,
    backend: Any,
    func_args: Sequence[Any] = (),
    func_kwargs: Mapping[str, Any] | None = None,
    default_sampling_para: Any = None,
    stream: bool = False,
    **_: Any,
) -> ProgramState:
    """Run a program once, and return its state.

    Args:
        backend: the backend to run on; None means the default backend.
        func_args, func_kwargs: the arguments of the program.
        default_sampling_para: sampling parameters for every `gen` that does not give its own.
        stream: True returns at once, while the program still runs.
    """
    sampling = _changed(default_sampling_para)
    given = {**(func_kwargs or {}), **sampling}
    return program.run(*func_args, backend=backend, stream=stream, **given)


def run_program_batch(
    program: SglFunction,
    backend: Any,
    batch_arguments: Sequence[Any],
    default_sampling_para: Any = None,
    num_threads: Any = "auto",
    progress_bar: bool = False,
    generator_style: bool = False,
) -> Any:
    """Run a program once for each item of `batch_arguments`; return the states in that order.

    Args:
        backend: the backend to run on; None means the default backend.
        batch_arguments: the arguments of each run, by name in a mapping or in order in a list.
        default_sampling_para: sampling parameters for every `gen` that does not give its own.
        num_threads: the largest number of runs at a time; "auto" means 16 per CPU core, at least
            96.
        progress_bar: show a progress bar.
        generator_style: return an iterator over the states instead of a list.
    """
    return program.run_batch(
        batch_arguments,
        backend=backend,
        num_threads=num_threads,
        progress_bar=progress_bar,
        generator_style=generator_style,
        **_changed(default_sampling_para),
    )


def _changed(params: Any) -> dict[str, Any]:
    """Return the sampling parameters that differ from their defaults, by name; {} for None."""
    if params is None:
        return {}
    defaults = type(params)()
    return {k: v for k, v in vars(params).items() if v != getattr(defaults, k)}
