"""A graph made ready to run: what every run shares is computed once.

Text between two questions to the model is put together beforehand, as far as arguments and
variables allow, and nodes that only submit are handed to their stream in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from sgl_mlx.compiler.graph import (
    Break,
    Call,
    Gen,
    GetForkItem,
    Graph,
    Image,
    Join,
    Line,
    Node,
    Prefetch,
    Return,
    RoleBegin,
    RoleEnd,
    Select,
    SeparateReasoning,
    Text,
    VarScopeBegin,
    VarScopeEnd,
    sources_of,
)
from sgl_mlx.compiler.leaves import CHOICES_METHODS
from sgl_mlx.compiler.values import Constant, Value, Variable, concat, parts_of
from sgl_mlx.core import SamplingParams
from sgl_mlx.lang import interpreter, ir
from sgl_mlx.lang.site import Site

SUBMITS = (Text, Gen, Select, Image, RoleBegin, RoleEnd, VarScopeBegin, VarScopeEnd)
"""What only submits; everything else does something when its turn comes."""


@dataclass(frozen=True, eq=False)
class Part:
    """Something to submit: a node of the language, or text or names to put together first.

    Attributes:
        id: of the graph's node, under which its variables are found.
        ready: the node of the language, when every run has the same.
        make: else makes it, of names and choices that the run knows.
        text: else this text is the node.
        sources: the nodes whose variables the text needs.
        variables: how many variables the node gives values to.
        asks: the interpreter has to be asked for the node's sampling parameters.
    """

    id: int
    site: Site
    ready: ir.Expr | None = None
    make: Callable[[Callable[[Value], Any]], ir.Expr] | None = None
    text: Value | None = None
    sources: tuple[Variable, ...] = ()
    variables: int = 0
    asks: bool = False


@dataclass(frozen=True, eq=False)
class Submission:
    """Parts for one stream, without anything in between that waits."""

    stream: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Hint:
    """Parts whose prompt will be asked for soon."""

    parts: tuple[Part, ...]


Step = Submission | Hint | Node


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run does, step by step; `reads` and `result` are those of the graph."""

    steps: tuple[Step, ...]
    returns: tuple[Return, ...]
    reads: tuple[int, ...]
    result: Value
    _params: dict[SamplingParams, dict[int, SamplingParams]] = field(default_factory=dict)

    def params(self, part: Part, node: ir.Expr, defaults: SamplingParams) -> SamplingParams:
        """The sampling parameters of a part, found out once for the same `run()` parameters."""
        known = self._params.setdefault(defaults, {})
        if part.id not in known:
            known[part.id] = interpreter.params_of(node, defaults)
        return known[part.id]


def plan_of(graph: Graph) -> Plan:
    """The plan of a graph without loops (see `unroll`)."""
    nodes = [node for node in graph if not isinstance(node, (Return, Break))]
    returns = tuple(node for node in graph if isinstance(node, Return))
    return Plan(tuple(_steps(nodes)), returns, graph.reads, graph.result)


def speculative(graph: Graph) -> Graph:
    """Of a graph that ends in a Break, what may run ahead of its Python body.

    Nested programs are left out, for they would run twice, and with them all that needs them.
    """
    kept: list[Node] = []
    lost: set[int] = set()
    streams: dict[int, set[int]] = {}
    have: set[int] = set()
    for node in graph:
        if isinstance(node, GetForkItem):
            streams.setdefault(node.fork, set()).add(node.stream)
        missing = isinstance(node, (Call, Break)) or not have.issuperset(sources_of(node))
        if isinstance(node, GetForkItem):
            missing |= node.fork not in have
        if isinstance(node, Join):
            missing |= not lost.isdisjoint(streams.get(node.fork, ())) or node.fork not in have
        if missing or node.stream in lost:
            lost.add(node.stream)
        else:
            kept.append(node)
            have.add(node.id)
    return replace(graph, nodes=tuple(kept), reads=())


def _steps(nodes: list[Node]) -> Iterator[Step]:
    def run(node: Node) -> tuple[bool, int]:
        return isinstance(node, SUBMITS), node.stream

    for (submits, stream), group in groupby(nodes, run):
        if submits:
            yield Submission(stream, tuple(map(_part, _merged(group))))
        else:
            for node in group:
                yield _hint(node) if isinstance(node, Prefetch) else node


def _hint(node: Prefetch) -> Hint:
    return Hint(tuple(map(_part, _merged(iter(node.body)))))


def _merged(nodes: Iterator[Node]) -> Iterator[Node]:
    """Neighbouring texts as one."""
    last: Node | None = None
    for node in nodes:
        if isinstance(node, Text) and isinstance(last, Text):
            last = replace(last, text=concat(last.text, node.text))
            continue
        if last is not None:
            yield last
        last = node
    if last is not None:
        yield last


def _part(node: Node) -> Part:
    site = site_of(node.line)
    if isinstance(node, Text):
        return _text_part(node, site)
    make, variables = _MAKERS[type(node)]
    asks = isinstance(node, (Gen, Image))
    values = [node.name] if isinstance(node, _NAMED) else []
    if isinstance(node, Image):
        values = [node.source]
    if isinstance(node, Select):
        values += node.choices
        variables = 0 if node.name == Constant(None) else 1
    if all(isinstance(value, Constant) for value in values):
        ready = make(node, _constant)
        return Part(node.id, site, ready=ready, variables=variables, asks=asks)
    return Part(node.id, site, make=lambda known: make(node, known), variables=variables, asks=asks)


def _text_part(node: Text, site: Site) -> Part:
    if isinstance(node.text, Constant):
        return Part(node.id, site, ready=ir.ConstantText(str(node.text.value)))
    return Part(node.id, site, text=node.text, sources=tuple(variables_in(node.text)))


def variables_in(value: Value) -> Iterator[Variable]:
    """The variables that a text needs."""
    for part in parts_of(value):
        inner = getattr(part, "text", None)
        if isinstance(part, Variable):
            yield part
        elif isinstance(inner, Value):
            yield from variables_in(inner)


def _constant(value: Value) -> Any:
    assert isinstance(value, Constant)
    return value.value


def site_of(line: Line | None) -> Site:
    """Where the program says so, for the notes of errors."""
    return Site(line.function, line.file, line.number) if line else Site("graph", "", 0)


Known = Callable[[Value], Any]


def _gen(node: Gen, known: Known) -> ir.Expr:
    return ir.Gen(known(node.name), node.sampling)


def _reasoning(node: SeparateReasoning, known: Known) -> ir.Expr:
    return ir.SeparateReasoning(ir.Gen(known(node.name), node.sampling), node.model_type)


def _select(node: Select, known: Known) -> ir.Expr:
    choices = tuple(map(known, node.choices))
    return ir.Select(known(node.name), choices, CHOICES_METHODS[node.method], node.temperature)


_NAMED = (Gen, Select, VarScopeBegin, VarScopeEnd)
_MAKERS: Mapping[type[Node], tuple[Callable[[Any, Known], ir.Expr], int]] = {
    Gen: (_gen, 1),
    SeparateReasoning: (_reasoning, 2),
    Select: (_select, 1),
    RoleBegin: (lambda node, known: ir.RoleBegin(node.role), 0),
    RoleEnd: (lambda node, known: ir.RoleEnd(node.role), 0),
    Image: (lambda node, known: ir.Image(known(node.source)), 0),
    VarScopeBegin: (lambda node, known: ir.VarScopeBegin(known(node.name)), 1),
    VarScopeEnd: (lambda node, known: ir.VarScopeEnd(known(node.name)), 0),
}
