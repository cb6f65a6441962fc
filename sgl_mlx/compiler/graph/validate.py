"""Validation of graphs read from a file: each node may use only what comes before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.graph import ROOT, Graph
from sgl_mlx.compiler.graph.nodes import (
    Append,
    Break,
    Call,
    ForEach,
    Fork,
    GetForkItem,
    Join,
    Node,
    Prefetch,
    Score,
    appends,
    kind_of,
    sources_of,
    values_of,
)
from sgl_mlx.compiler.graph.values import (
    TEXT_METHODS,
    Argument,
    Element,
    Joined,
    LoopIndex,
    LoopItem,
    Method,
    StateOf,
    Texts,
    Value,
    Variable,
    walk,
)
from sgl_mlx.core import SamplingParams
from sgl_mlx.errors import GraphError, InvalidParamsError
from sgl_mlx.lang import ir
from sgl_mlx.lang.interpreter import names_of

_IN_HINTS = (ir.Text, ir.RoleBegin, ir.RoleEnd)
_STARTS = (Call, GetForkItem)


def check(graph: Graph) -> Graph:
    """Validate a graph and return it unchanged.

    Raises:
        GraphError: a node uses something that does not exist or comes later, or a field is invalid.
    """
    _Check(graph).run()
    return graph


class _Check:
    """One validation of a graph, from its first node to its last."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._parameters = {parameter.name: parameter for parameter in graph.parameters}
        self._streams = {ROOT}
        self._seen: dict[int, Node] = {}
        self._branches: dict[int, dict[int, int]] = {}

    def run(self) -> None:
        if len(self._parameters) != len(self._graph.parameters):
            names = ", ".join(parameter.name for parameter in self._graph.parameters)
            raise GraphError(f"two of the parameters have the same name: {names}")
        for i, node in enumerate(self._graph.nodes):
            if isinstance(node, Break) and i + 1 != len(self._graph.nodes):
                raise GraphError(f"node {node.id}: a Break is not the last node")
            self._node(node, loops=())
        self._values(walk(self._graph.result), (), "the result")
        for source in self._graph.reads:
            inner = {each.id: each for each in self._graph.all_nodes()}
            if not _variables(inner.get(source)):
                raise GraphError(f"the program reads node {source}, which gives no variable")

    def _node(self, node: Node, loops: tuple[int, ...]) -> None:
        where = f"node {node.id} ({kind_of(node)})"
        if node.id in self._seen or node.id < 0:
            raise GraphError(f"{where}: its id is negative or taken by another node")
        if isinstance(node, _STARTS) and node.stream in self._streams:
            raise GraphError(f"{where}: stream {node.stream} has begun already")
        if not isinstance(node, _STARTS) and node.stream not in self._streams:
            raise GraphError(f"{where}: stream {node.stream} has not begun")
        self._values(values_of(node), loops, where)
        self._own_fields(node, where)
        self._body(node, loops, where)
        self._streams.add(node.stream)
        self._seen[node.id] = node

    def _body(self, node: Node, loops: tuple[int, ...], where: str) -> None:
        if isinstance(node, ForEach):
            if loops or self._kind(node.argument) != "texts":
                raise GraphError(
                    f"{where}: it is inside a loop, or {node.argument!r} is no list of texts"
                )
            for inner in node.body:
                if isinstance(inner, (*_STARTS, Fork, Join, ForEach, Break)):
                    raise GraphError(f"{where}: a {type(inner).__name__} in a loop")
                self._node(inner, (node.id,))
            for inner in node.body:  # nodes after the loop may not read its variables
                del self._seen[inner.id]
                self._seen[inner.id] = Node(inner.id, inner.stream)
        if isinstance(node, Prefetch):
            if not all(appends(inner, *_IN_HINTS) for inner in node.body) or sources_of(node):
                raise GraphError(f"{where}: a hint holds text and roles only, and no variable")
            for inner in node.body:
                self._node(inner, loops)

    def _own_fields(self, node: Node, where: str) -> None:
        if isinstance(node, Append):
            _check_expr(node.expr, where)
        if isinstance(node, Score) and (node.method not in CHOICES_METHODS or not node.choices):
            raise GraphError(f"{where}: no choices, or an unknown method {node.method!r}")
        if isinstance(node, Call):
            _check_sampling(node.sampling, where)
        if isinstance(node, Fork):
            self._branches[node.id] = {}
            if not node.offsets:
                raise GraphError(f"{where}: no branches")
        if isinstance(node, (GetForkItem, Join)):
            self._fork_of(node, where)

    def _fork_of(self, node: GetForkItem | Join, where: str) -> None:
        fork = self._seen.get(node.fork)
        if not isinstance(fork, Fork):
            raise GraphError(f"{where}: node {node.fork} is no Fork before it")
        taken = self._branches[fork.id]
        if isinstance(node, GetForkItem):
            if not 0 <= node.index < len(fork.offsets) or node.index in taken:
                raise GraphError(
                    f"{where}: no branch {node.index} of node {fork.id} is left to take"
                )
            taken[node.index] = node.stream
        elif fork.stream != node.stream:
            raise GraphError(
                f"{where}: joins branches of stream {fork.stream} into stream {node.stream}"
            )

    def _kind(self, argument: str) -> str | None:
        parameter = self._parameters.get(argument)
        return parameter.kind if parameter else None

    def _values(self, found: Iterable[Value], loops: tuple[int, ...], where: str) -> None:
        for value in found:
            if not self._fits(value, loops):
                raise GraphError(f"{where}: uses {value!r}, which is not there")

    def _fits(self, value: Value, loops: tuple[int, ...]) -> bool:
        match value:
            case Argument(name):
                return self._kind(name) == "text"
            case Element(argument, index):
                length = self._parameters[argument].length if self._kind(argument) else None
                return length is not None and 0 <= index < length
            case Joined(_, argument) | Texts(argument):
                return self._kind(argument) == "texts"
            case LoopItem(loop) | LoopIndex(loop, _):
                return loop in loops
            case Variable(source, _, reasoning):
                return _variables(self._seen.get(source)) > reasoning
            case Method(name, _, _):
                return name in TEXT_METHODS
            case StateOf(stream):
                return stream in self._streams
        return True


def _variables(node: Node | None) -> int:
    """Count the variables that a node sets; 0 for None."""
    if isinstance(node, Append):
        return len(names_of(node.expr))
    return int(isinstance(node, Score))


def _check_expr(expr: ir.Expr, where: str) -> None:
    if isinstance(expr, ir.Select) and not expr.choices:
        raise GraphError(f"{where}: no choices")
    generator = expr.gen if isinstance(expr, ir.SeparateReasoning) else expr
    if isinstance(generator, ir.Gen):
        _check_sampling(generator.sampling, where)


def _check_sampling(sampling: Mapping[str, Any], where: str) -> None:
    try:
        SamplingParams().override(**sampling)
    except (InvalidParamsError, TypeError) as error:
        raise GraphError(f"{where}: {error}") from None
    for name, value in sampling.items():
        usual = getattr(SamplingParams(), name)
        kinds = (int, float) if isinstance(usual, float) else (type(usual),)
        if usual is not None and type(value) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise GraphError(f"{where}: {name} cannot be {value!r}, it must be {wanted}")
        if usual is None and not isinstance(value, (str, int)):
            raise GraphError(f"{where}: {name} cannot be {value!r}, it must be str or int")
