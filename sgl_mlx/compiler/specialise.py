"""Sources of compiled graphs: they find the graph for the arguments of a run.

`Traced` traces a Python program on demand; `Fixed` has one graph, such as one from a file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sgl_mlx.bounds import shown
from sgl_mlx.compiler.graph.graph import ROOT, Graph, Parameter
from sgl_mlx.compiler.passes.opening import opening, texts_of
from sgl_mlx.compiler.running.steps import Plan, plan_of, speculative
from sgl_mlx.compiler.running.unroll import unroll
from sgl_mlx.compiler.tracing.breaks import NeedsLength
from sgl_mlx.compiler.tracing.explain import Explanation, explanation
from sgl_mlx.compiler.tracing.plain import key_of
from sgl_mlx.compiler.tracing.trace import Trace, kind_of, trace
from sgl_mlx.errors import GraphError
from sgl_mlx.lang.program import Program

Pass = Callable[[Graph], Graph]
Arguments = Mapping[str, Any]
_MOST_TRACES = 64
_MOST_PLANS = 64


class Compiled:
    """A graph, and a plan for each combination of lengths of the graph's list arguments.

    Attributes:
        graph: the graph after all passes.
        whole: True if the graph covers the whole program, without a Break.
        opening: the texts with which stream 0 begins, up to the first generated text.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.whole = graph.broken is None
        self._lists = [p.name for p in graph.parameters if p.kind == "texts"]
        self._plans: dict[tuple[int, ...], Plan] = {}
        self.opening = tuple(texts_of(opening(graph, ROOT)))

    def plan(self, arguments: Arguments) -> Plan:
        """Return the plan (the steps of a run) for arguments that fit the graph."""
        lengths = tuple([len(arguments[name]) for name in self._lists])
        plan = self._plans.get(lengths)
        if plan is None:
            flat = unroll(self.graph, dict(zip(self._lists, lengths, strict=True)))
            plan = plan_of(flat if self.whole else speculative(flat))
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[lengths] = plan
        return plan


class Source(Protocol):
    """A protocol for objects that find the compiled graph of a run."""

    def find(self, arguments: Arguments) -> Compiled | None:
        """Return the compiled graph for these arguments; None if the run has to be interpreted.

        Raises:
            GraphError: the arguments do not fit, and there is no Python body to interpret.
        """
        ...

    def graph(self, arguments: Arguments) -> Graph:
        """Return the graph for these arguments, after all passes."""
        ...

    def explain(self, arguments: Arguments) -> Explanation:
        """Explain how much of the program the graph covers, and why the rest is interpreted."""
        ...


@dataclass(frozen=True, eq=False)
class _Entry:
    trace: Trace
    compiled: Compiled


class Traced:
    """A source that traces a program for each kind of arguments when that kind first occurs.

    Text arguments share one trace whatever their content. So do lists of texts, unless the program
    depends on their length. Each other value gets a trace of its own. A trace is made again when a
    global or other outside value that it read has changed. After `_MOST_TRACES` traces, `find`
    returns None for new kinds of arguments.
    """

    def __init__(self, program: Program, passes: Sequence[Pass]) -> None:
        self._program = program
        self._passes = tuple(passes)
        self._entries: dict[Hashable, _Entry] = {}
        self._lengths: set[str] = set()
        self._lock = threading.Lock()

    def find(self, arguments: Arguments) -> Compiled | None:
        entry = self._entry(arguments)
        return entry.compiled if entry else None

    def explain(self, arguments: Arguments) -> Explanation:
        return explanation(*self._show(arguments))

    def graph(self, arguments: Arguments) -> Graph:
        return self._show(arguments)[0]

    def _show(self, arguments: Arguments) -> tuple[Graph, Mapping[str, NeedsLength]]:
        entry = self._entry(arguments)
        if entry is not None:
            return entry.compiled.graph, entry.trace.lengths
        made = trace(self._program, arguments)
        return self._passed(made), made.lengths

    def _entry(self, arguments: Arguments) -> _Entry | None:
        key = self._key(arguments)
        entry = self._entries.get(key)
        if entry is not None and all(capture.holds() for capture in entry.trace.captures):
            return entry
        with self._lock:
            if entry is None and len(self._entries) >= _MOST_TRACES:
                return None
            return self._make(arguments)

    def _make(self, arguments: Arguments) -> _Entry:
        made = trace(self._program, arguments)
        self._lengths.update(made.lengths)
        entry = _Entry(made, Compiled(self._passed(made)))
        self._entries[self._key(arguments)] = entry
        return entry

    def _passed(self, made: Trace) -> Graph:
        graph = made.graph
        for each in self._passes:
            graph = each(graph)
        return graph

    def _key(self, arguments: Arguments) -> Hashable:
        return tuple([self._part(name, value) for name, value in arguments.items()])

    def _part(self, name: str, value: Any) -> Hashable:
        kind = kind_of(value)
        if kind == "text":
            return kind
        if kind == "texts":
            return type(value), len(value) if name in self._lengths else None
        return key_of(value)


class Fixed:
    """A source with one graph for all arguments; `find` raises `GraphError` if they do not fit."""

    def __init__(self, graph: Graph) -> None:
        self._compiled = Compiled(graph)

    def find(self, arguments: Arguments) -> Compiled:
        for parameter in self._compiled.graph.parameters:
            _check(self._compiled.graph, parameter, arguments[parameter.name])
        return self._compiled

    def graph(self, arguments: Arguments) -> Graph:
        return self._compiled.graph

    def explain(self, arguments: Arguments) -> Explanation:
        return explanation(self._compiled.graph, {})


def _check(graph: Graph, parameter: Parameter, value: Any) -> None:
    where = f"argument {parameter.name!r} of compiled program {graph.program}()"
    if parameter.kind == "constant":
        if key_of(value) != key_of(parameter.value):
            raise GraphError(
                f"{where} was {parameter.value!r} when it was compiled, and is {shown(value)}; "
                "compile it again for that"
            )
    elif parameter.kind == "text" and type(value) is not str:
        raise GraphError(f"{where} must be a text, got {shown(value)}")
    elif parameter.kind == "texts":
        if kind_of(value) != "texts":
            raise GraphError(f"{where} must be a list of texts, got {shown(value)}")
        if parameter.length not in (None, len(value)):
            raise GraphError(
                f"{where} had {parameter.length} texts when it was compiled, and has {len(value)}; "
                "compile it again for that"
            )
