"""Compiled programs: a `Program` that runs from its graph, with the same results."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.passes.shared_prefix import order_batch, shared_prefixes
from sgl_mlx.compiler.running.evaluate import RunValues
from sgl_mlx.compiler.running.replay import Ahead, Asked, Following
from sgl_mlx.compiler.running.run import Run
from sgl_mlx.compiler.sglang_names import print_graph
from sgl_mlx.compiler.specialise import Compiled, Fixed, Pass, Source, Traced
from sgl_mlx.compiler.tracing.explain import Explanation
from sgl_mlx.errors import GraphError
from sgl_mlx.lang.batch import Row
from sgl_mlx.lang.program import Program
from sgl_mlx.lang.setting import Setting
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.waits import result_of


class CompiledProgram(Program):
    """A program that runs from its graph, with the same methods and results as `Program`.

    The graph is made by tracing the Python body, which may end early: at a line that depends on the
    run. Then a run first sends the requests in the graph. After this, the whole Python body is
    interpreted, and takes over the answers to these requests (`running/replay.py`).

    The graph is not used at all in a run with `n` other than 1 (variables are lists then), and in a
    streamed run of a program whose trace ended early.
    """

    def __init__(self, program: Program, source: Source) -> None:
        super().__init__(program.func, program.num_api_spec_tokens, program.bind_arguments)
        self._source = source
        _, *parameters = self.signature.parameters.values()
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        by_name = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
        # The names of the parameters; {"*"} if some cannot be passed by name.
        self._names = frozenset(p.name for p in parameters) if by_name else frozenset("*")

    @classmethod
    def of(cls, program: Program, passes: Sequence[Pass] = ()) -> CompiledProgram:
        """Make a compiled program, which is traced for each new kind of arguments (see `Traced`).

        Args:
            passes: rewrites of the graph, applied to every traced graph in this order.
        """
        return cls(program, Traced(program, passes))

    @classmethod
    def from_graph(cls, graph: Graph) -> CompiledProgram:
        """Make a program from a graph alone, such as one read from a file.

        Raises:
            GraphError: the graph covers only a part of its program, so that a run needs the rest of
                the Python body.
        """
        if graph.broken is not None:
            raise GraphError(graph.needs_program)
        return cls(Program(_stand_in(graph)), Fixed(graph))

    def graph(self, **kwargs: Any) -> Graph:
        """Return the graph for these arguments; a missing required argument counts as a text."""
        return self._source.graph(self._sample(kwargs))

    def print_graph(self, **kwargs: Any) -> None:
        """Write the graph for these arguments to standard output, as a tree."""
        print_graph(self.graph(**kwargs))

    def explain(self, **kwargs: Any) -> Explanation:
        """Explain how much of the program the graph covers, and why the rest is interpreted."""
        return self._source.explain(self._sample(kwargs))

    def _sample(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        given = {**self.bind_arguments, **kwargs}
        required = [
            name
            for name, p in self.signature.parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        return self.arguments((), {name: given.get(name, "") for name in required[1:]} | given)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each parameter by name, `s` left out, defaults filled in.

        Raises:
            TypeError: the arguments do not fit the signature.
        """
        given = {**self._defaults, **self.bind_arguments, **kwargs}
        if not args and given.keys() == self._names:
            return {name: given[name] for name in self.arg_names}
        bound = self.signature.bind(None, *args, **{**self.bind_arguments, **kwargs})
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name != "s"}

    def cache(self, backend: Any = None) -> int:
        """Prefill the constant prompt prefixes that all runs share; return their number of tokens.

        Branches and nested programs have prefixes of their own. Arguments have their defaults; an
        argument without a default counts as a text. A graph from a file has the constants that it
        was compiled for. `backend` is as in `run`.
        """
        setting = Setting.of(backend, {})
        with suppress(GraphError):  # a graph from a file may reject the sample arguments
            prompts = shared_prefixes(self.graph(), setting.writer)
            return sum(result_of(f) for f in [setting.backend.prefill(p) for p in prompts])
        return 0

    precaches = True

    def batch_order(self, rows: Sequence[Row]) -> Sequence[int]:
        """Return the indices of a batch's rows in the order in which to start the rows.

        Each row has the arguments of one run. Rows with a common prompt prefix are neighbours.
        """
        return order_batch([self._opening(*row) for row in rows])

    def _opening(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the text with which the prompt of a run begins, up to the first generated text.

        Only the program's own stream counts, without the text of roles. Returns "" if there is no
        graph or if the arguments do not fit.
        """
        try:
            arguments = self.arguments(args, kwargs)
            compiled = self._source.find(arguments)
        except (GraphError, TypeError):  # the run itself will raise the error
            return ""
        if compiled is None:
            return ""
        known = RunValues(arguments)
        return "".join([str(known.value(text)) for text in compiled.opening])

    def _check_arguments(
        self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        if args or kwargs.keys() != self._names:  # otherwise the arguments fit
            super()._check_arguments(state, args, kwargs)

    def body(self, state: ProgramState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the graph, or the Python body if the graph cannot be used; return the result."""
        arguments = self.arguments(args, kwargs)
        stream = state.stream_executor
        compiled = self._source.find(arguments) if stream.defaults.n == 1 else None
        if compiled is None or not (compiled.whole or not stream.streaming):
            return super().body(state, args, kwargs)
        if compiled.whole:
            return Run(compiled.plan(arguments), state, arguments).result()
        _run_ahead(compiled, state, arguments)
        return super().body(state, args, kwargs)


def _run_ahead(compiled: Compiled, state: ProgramState, arguments: Mapping[str, Any]) -> None:
    stream = state.stream_executor
    asked: Asked = {}
    ahead: Any = Ahead(stream.backend, asked)
    writer = stream.transcript.writer
    setting = Setting(ahead, stream.defaults, writer)
    run = Run(compiled.plan(arguments), setting.new_state(), arguments)
    following: Any = Following(stream.backend, asked, run)
    with suppress(Exception):  # the Python body will raise the error again, at its own line
        run.submit()
    stream.backend = following


def _stand_in(graph: Graph) -> Any:
    """Make a function with the graph's parameters, to take the place of the Python body.

    A call of the function raises `GraphError`: a graph alone cannot run with `n` other than 1.
    """

    def body(s: ProgramState, *args: Any, **kwargs: Any) -> Any:
        raise GraphError(
            f"{graph.program}() was made from a graph, without its Python function: it runs with "
            "n=1 only"
        )

    body.__name__ = graph.program
    first = inspect.Parameter("s", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [first, *_parameters(graph)]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return body


def _parameters(graph: Graph) -> Iterator[inspect.Parameter]:
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    optional = False
    for parameter in graph.parameters:
        if optional and not parameter.optional:
            kind = inspect.Parameter.KEYWORD_ONLY  # a required parameter after optional ones
        optional = parameter.optional
        default = parameter.default if optional else inspect.Parameter.empty
        yield inspect.Parameter(parameter.name, kind, default=default)
