"""Plans: graphs prepared to run. All that is equal in every run is computed once, in the plan.

The text between two requests to the model is put together beforehand, as far as arguments and
variables allow. Nodes that only submit are handed to their stream in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

from sgl_mlx.compiler.graph.graph import Graph
from sgl_mlx.compiler.graph.nodes import (
    Append,
    Break,
    Call,
    GetForkItem,
    Join,
    Line,
    Node,
    Prefetch,
    Return,
    appends,
    map_values,
    sources_of,
    text_of,
    values_of,
)
from sgl_mlx.compiler.graph.values import NONE, Value, Variable, concat, parts_of, plain, valued
from sgl_mlx.core import SamplingParams
from sgl_mlx.lang import interpreter, ir
from sgl_mlx.lang.site import Site

_ROLES = (ir.RoleBegin, ir.RoleEnd)

Known = Callable[[Value], Any]
"""A function that returns the Python value of a symbolic value in a run."""


def _not_needed(known: Known) -> ir.Expr:
    raise AssertionError("a part that is complete was asked to wait")


@dataclass(frozen=True, eq=False)
class Part:
    """One step of a stream, either ready or to be made in each run.

    Attributes:
        id: the id of the graph's node, under which its variables are stored.
        site: the place in the program that errors name.
        ready: the expression, if it is the same in every run.
        make: makes the expression from the run's values, if `ready` is None.
        sources: the variables that `make` needs; only parts with a `text` have any.
        text: the symbolic text, for a part that may have to wait for variables.
        variables: the number of variables that the node sets.
        asks: True if the backend has to answer, so that sampling parameters are needed.
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
    """Parts of one stream that are submitted in one call, since nothing between them waits."""

    stream: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Hint:
    """Parts of a prompt that another stream will soon send."""

    parts: tuple[Part, ...]


Step = Submission | Hint | Node


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a run.

    Attributes:
        returns: the Return nodes of nested programs.
        reads: see `Graph.reads`.
        result: see `Graph.result`.
    """

    steps: tuple[Step, ...]
    returns: tuple[Return, ...]
    reads: tuple[int, ...]
    result: Value
    _params: dict[SamplingParams, dict[int, SamplingParams]] = field(default_factory=dict)

    def params(self, part: Part, node: ir.Expr, defaults: SamplingParams) -> SamplingParams:
        """Return the sampling parameters of a part, given the `defaults` of the run; cached."""
        known = self._params.setdefault(defaults, {})
        if part.id not in known:
            known[part.id] = interpreter.params_of(node, defaults)
        return known[part.id]


def plan_of(graph: Graph) -> Plan:
    """Make the plan of a graph without loops; `unroll` removes them."""
    nodes = [node for node in graph if not isinstance(node, (Return, Break))]
    returns = tuple(node for node in graph if isinstance(node, Return))
    return Plan(tuple(_steps(nodes)), returns, graph.reads, graph.result)


def speculative(graph: Graph) -> Graph:
    """Reduce a graph that ends early (in a Break) to the nodes that may run ahead of the body.

    Nested programs are left out, since they would run twice, and so are all nodes that depend on a
    nested program.
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
        return isinstance(node, Append), node.stream

    for (submits, stream), group in groupby(nodes, run):
        if submits:
            yield Submission(stream, tuple(_parts(group)))
        else:
            for node in group:
                yield Hint(tuple(_parts(node.body))) if isinstance(node, Prefetch) else node


def _parts(nodes: Iterable[Node]) -> Iterator[Part]:
    def kind(node: Append) -> int:
        # Texts and roles in a row become one part; nodes that ask or wait get a part of their own.
        text = text_of(node)
        alone = any(variables_in(text)) if text is not None else not appends(node, *_ROLES)
        return node.id + 1 if alone else 0

    for alone, group in groupby((n for n in nodes if isinstance(n, Append)), kind):
        together = list(group)
        yield _part(together[0]) if alone else _written(together)


def _written(nodes: list[Append]) -> Part:
    """Join neighbouring texts and roles, which need no variables, to one part."""
    site = site_of(nodes[0].line)
    exprs: list[ir.Expr] = []
    for node in nodes:
        last = exprs[-1] if exprs else None
        if isinstance(last, ir.Text) and isinstance(node.expr, ir.Text):
            exprs[-1] = ir.Text(plain(concat(valued(last.value), valued(node.expr.value))))
        else:
            exprs.append(node.expr)
    if any(map(any, map(values_of, nodes))):
        return Part(nodes[0].id, site, make=partial(_put_together, tuple(exprs)))
    return Part(nodes[0].id, site, ready=exprs[0] if len(exprs) == 1 else ir.ExprList(tuple(exprs)))


def _put_together(exprs: tuple[ir.Expr, ...], known: Known) -> ir.Expr:
    made = tuple([_in_run(expr, known) for expr in exprs])
    return made[0] if len(made) == 1 else ir.ExprList(made)


def _in_run(expr: ir.Expr, known: Known) -> ir.Expr:
    """Make an expression with its texts evaluated. Plain text, the common case, has a fast path."""
    if isinstance(expr, ir.Text):
        return ir.Text(known(valued(expr.value)))
    made: ir.Expr = map_values(expr, known)
    return made


def _part(node: Append) -> Part:
    site, variables = site_of(node.line), len(interpreter.names_of(node.expr))
    text = text_of(node)
    if text is not None:
        sources = tuple(variables_in(text))
        return Part(node.id, site, make=partial(_in_run, node.expr), sources=sources, text=text)
    part = Part(node.id, site, node.expr, variables=variables, asks=node.expr.asks)
    if any(values_of(node)):
        return replace(part, ready=None, make=partial(_in_run, node.expr))
    return part


def variables_in(value: Value) -> Iterator[Variable]:
    """Iterate over the variables that a text needs."""
    for part in parts_of(value):
        inner = getattr(part, "text", None)
        if isinstance(part, Variable):
            yield part
        elif isinstance(inner, Value):
            yield from variables_in(inner)


def site_of(line: Line | None) -> Site:
    """Return a line as a place in the program, for errors; `Site("graph", "", 0)` for None."""
    return Site(line.function, line.file, line.number) if line else Site("graph", "", 0)
