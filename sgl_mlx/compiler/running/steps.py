"""A graph made ready to run: what every run shares is computed once.

Text between two questions to the model is put together beforehand, as far as arguments and
variables allow, and nodes that only submit are handed to their stream in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.graph import (
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
    values_of,
)
from sgl_mlx.compiler.graph.values import NONE, Constant, Value, Variable, concat, parts_of
from sgl_mlx.core import SamplingParams
from sgl_mlx.lang import interpreter, ir
from sgl_mlx.lang.site import Site

SUBMITS = (Text, Gen, Select, Image, RoleBegin, RoleEnd, VarScopeBegin, VarScopeEnd)
"""What only submits; everything else does something when its turn comes."""


Known = Callable[[Value], Any]
"""Gives values their meaning in a run."""


def _not_needed(known: Known) -> ir.Expr:
    raise AssertionError("this part is ready")


@dataclass(frozen=True, eq=False)
class Part:
    """Something to submit in one step.

    Attributes:
        id: of the graph's node, under which its variables are found.
        ready: the node of the language, when every run has the same.
        make: else makes it, of what the run knows.
        sources: variables that have to be known before that; only `text` has any.
        text: what has `sources`.
        variables: how many variables the node gives values to.
        asks: the interpreter has to be asked for the node's sampling parameters.
    """

    id: int
    site: Site
    ready: ir.Expr | None = None
    make: Callable[[Known], ir.Expr] = _not_needed
    sources: tuple[Variable, ...] = ()
    text: Value = NONE
    variables: int = 0
    asks: bool = False


@dataclass(frozen=True, eq=False)
class Submission:
    """Parts for one stream, without anything in between that waits."""

    stream: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Hint:
    """Parts of a prompt that will be asked for soon."""

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
            yield Submission(stream, tuple(_parts(group)))
        else:
            for node in group:
                yield Hint(tuple(_parts(node.body))) if isinstance(node, Prefetch) else node


def _parts(nodes: Iterable[Node]) -> Iterator[Part]:
    def kind(node: Node) -> int:
        # Neighbours of one kind are one step; nodes that ask, or wait, are steps of their own.
        if isinstance(node, (RoleBegin, RoleEnd)):
            return 0
        return node.id + 1 if not isinstance(node, Text) or any(variables_in(node.text)) else 0

    for alone, group in groupby(nodes, kind):
        together = list(group)
        yield _part(together[0]) if alone else _written(together)


def _written(nodes: list[Node]) -> Part:
    """Text and roles that need nothing but the arguments, as one step."""
    site = site_of(nodes[0].line)
    pieces: list[Value | ir.Expr] = []
    for node in nodes:
        if not isinstance(node, Text):
            pieces.append(_plain_node(node))
        elif pieces and isinstance(pieces[-1], Value):
            pieces[-1] = concat(pieces[-1], node.text)
        else:
            pieces.append(node.text)
    if any(isinstance(piece, Value) and not isinstance(piece, Constant) for piece in pieces):
        return Part(nodes[0].id, site, make=partial(_put_together, tuple(pieces)))
    return Part(nodes[0].id, site, ready=_put_together(tuple(pieces), _constant))


def _plain_node(node: Node) -> ir.Expr:
    make, _ = _MAKERS[type(node)]
    return make(node, _constant)


def _put_together(pieces: tuple[Value | ir.Expr, ...], known: Known) -> ir.Expr:
    made = [ir.ConstantText(known(p)) if isinstance(p, Value) else p for p in pieces]
    return made[0] if len(made) == 1 else ir.ExprList(tuple(made))


def _part(node: Node) -> Part:
    site = site_of(node.line)
    if isinstance(node, Text):
        sources = tuple(variables_in(node.text))
        return Part(node.id, site, None, partial(_late, node.text), sources, node.text)
    make, variables = _MAKERS[type(node)]
    asks = isinstance(node, (Gen, Image))
    if isinstance(node, Select) and node.name == NONE:
        variables = 0
    if all(isinstance(value, Constant) for value in values_of(node)):
        return Part(node.id, site, make(node, _constant), variables=variables, asks=asks)
    return Part(node.id, site, make=partial(make, node), variables=variables, asks=asks)


def _late(text: Value, known: Known) -> ir.Expr:
    return ir.ConstantText(known(text))


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


def _gen(node: Gen, known: Known) -> ir.Expr:
    return ir.Gen(known(node.name), node.sampling)


def _reasoning(node: SeparateReasoning, known: Known) -> ir.Expr:
    return ir.SeparateReasoning(ir.Gen(known(node.name), node.sampling), node.model_type)


def _select(node: Select, known: Known) -> ir.Expr:
    choices = tuple(map(known, node.choices))
    return ir.Select(known(node.name), choices, CHOICES_METHODS[node.method], node.temperature)


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
