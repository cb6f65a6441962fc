"""The recorder: nodes in the order of the program, and each stream's variables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sgl_mlx.compiler.graph.nodes import (
    Append,
    Call,
    ForEach,
    Fork,
    GetForkItem,
    Join,
    JoinMode,
    Line,
    Node,
    Score,
    SetVariable,
)
from sgl_mlx.compiler.graph.values import Constant, Value, Variable, parts_of
from sgl_mlx.compiler.tracing.breaks import NeedsLength, needs_run
from sgl_mlx.compiler.tracing.symbols import Decision, Group, Left, State, Unreadable
from sgl_mlx.compiler.tracing.words import graph_form, name_value
from sgl_mlx.lang import ir
from sgl_mlx.lang.interpreter import names_of

_MOST_NODES = 20_000


class Recorder:
    """A recorder of the nodes that a traced program has made so far.

    Attributes:
        nodes: the nodes of the graph, or of the body of the loop that is being traced.
        line: the current line of the program.
        reads: ids of the nodes whose variables the program has read, in order, as keys.
        pure: above 0 inside a generator expression, where appending ends the trace.
        root: the state of stream 0.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.line: Line | None = None
        self.pure = 0
        self.reads: dict[int, None] = {}
        self.root = State(0)
        self._streams = 1
        self._ids = 0
        self._loop: _Loop | None = None

    @property
    def next_id(self) -> int:
        return self._ids

    def add(self, node: Node, state: State) -> Node:
        """Add a node, and return it with its id, stream and line.

        Raises:
            GraphBreak: inside a generator expression, or after `_MOST_NODES` nodes.
        """
        if self.pure:
            needs_run("appends to a state inside a generator expression")
        if self._ids >= _MOST_NODES:
            needs_run(f"the program has more than {_MOST_NODES} steps")
        placed = replace(node, id=self._ids, stream=state.stream, line=self.line)
        self._ids += 1
        self.nodes.append(placed)
        return placed

    def append(self, expr: ir.Expr, state: State) -> None:
        """Record `s += expr`, and bind the variables that the expression sets."""
        for leaf in map(graph_form, ir.leaves(expr)):
            node = self.add(Append(-1, -1, leaf), state)
            for name, thing in _variables_of(node.id, leaf):
                self.bind(state, name, thing)

    # -- variables ------------------------------------------------------------------------------

    def bind(self, state: State, name: Value, thing: Any) -> None:
        """Make `s[name]` mean `thing` from now on."""
        state.bindings = {k: v for k, v in state.bindings.items() if not may_be(k, name)}
        if not isinstance(name, Constant):
            state.unknown |= {name}
        state.bindings[name] = thing
        if self._loop is not None:
            self._loop.bound.append((state, name))

    def read(self, state: State, name: Value) -> Any:
        """Return what `s[name]` means now.

        Raises:
            GraphBreak: there is no such variable, or its value depends on the run.
            NeedsLength: the variable was set in a loop, now ended, over a list argument.
        """
        if name not in state.bindings:
            needs_run(
                "which variable is meant depends on the arguments"
                if _fits_any(state.unknown, name) or not isinstance(name, Constant)
                else f"there is no variable {name.value!r}"
            )
        thing = state.bindings[name]
        if isinstance(thing, Unreadable):
            needs_run(thing.reason)
        if isinstance(thing, Left):
            raise NeedsLength(thing.argument, "reads a variable of the loop after it")
        if self._loop is not None and (state, name) not in self._loop.bound:
            self._loop.read.append((state, name))
        if isinstance(thing, Variable):
            self.reads[thing.source] = None
        return thing

    def set(self, state: State, name: Value, value: Value, thing: Any) -> None:
        """Record `s[name] = thing`, where `value` is `thing` as graphs store it."""
        self.add(SetVariable(-1, -1, name, value), state)
        self.bind(state, name, thing)

    # -- streams --------------------------------------------------------------------------------

    def fork(self, state: State, offsets: tuple[int, ...]) -> Group:
        self._not_in_loop("forks")
        fork = self.add(Fork(-1, -1, offsets), state)
        children = [self._stream(dict(state.bindings), state.unknown) for _ in offsets]
        for i, child in enumerate(children):
            self.add(GetForkItem(-1, -1, fork.id, i), child)
        return Group(fork.id, state, children)

    def join(self, group: Group, mode: JoinMode) -> None:
        self._not_in_loop("joins")
        self.add(Join(-1, -1, group.fork, mode), group.source)
        if mode == "gather_variable":
            self._gather(group)

    def _gather(self, group: Group) -> None:
        source = group.source
        unknown = frozenset.union(source.unknown, *(state.unknown for state in group.states))
        gathered: dict[Value, list[Any]] = {}
        for state in group.states:
            for name, thing in state.bindings.items():
                if name not in source.bindings and isinstance(name, Constant):
                    gathered.setdefault(name, []).append(thing)
        for name, things in gathered.items():
            lost = next((t for t in things if isinstance(t, Unreadable)), None)
            if _fits_any(unknown, name):
                lost = Unreadable("which variable is meant depends on the arguments")
            self.bind(source, name, lost or things)
        source.unknown = unknown

    def call(self, program: str, sampling: dict[str, Any]) -> State:
        self._not_in_loop("calls a program")
        state = self._stream({}, frozenset())
        self.add(Call(-1, -1, program, sampling), state)
        return state

    def score(self, state: State, leaf: Score) -> Decision:
        node = self.add(leaf, state)
        return Decision(Variable(node.id, "decision"))

    def _stream(self, bindings: dict[Value, Any], unknown: frozenset[Value]) -> State:
        self._streams += 1
        return State(self._streams - 1, bindings, unknown)

    # -- loops ----------------------------------------------------------------------------------

    @contextmanager
    def looping(self, argument: str, state: State) -> Iterator[int]:
        """Record one iteration of a loop over a list argument; yield the id of its ForEach.

        Raises:
            NeedsLength: an iteration depends on the one before it, or the loop is inside another.
        """
        self._not_in_loop("loops inside a loop")
        loop, outer = _Loop(argument), self.nodes
        id, self._ids = self._ids, self._ids + 1
        line, self._loop, self.nodes = self.line, loop, []
        try:
            yield id
            body = tuple(self.nodes)
        finally:
            self._loop, self.nodes = None, outer
        loop.check()
        self.nodes.append(ForEach(id, state.stream, argument, body, line=line))
        for bound, name in loop.bound:
            self.bind(bound, name, Left(argument))

    def _not_in_loop(self, what: str) -> None:
        if self._loop is not None:
            raise NeedsLength(self._loop.argument, f"{what} in the loop over it")

    def inside_loop(self, what: str) -> None:
        """Raise `NeedsLength` if a loop over a list argument is being traced."""
        self._not_in_loop(what)


class _Loop:
    """One iteration of a loop: the variables it has set, and those it read before it set them."""

    def __init__(self, argument: str) -> None:
        self.argument = argument
        self.bound: list[tuple[State, Value]] = []
        self.read: list[tuple[State, Value]] = []

    def check(self) -> None:
        for state, name in self.read:
            if any(s is state and may_be(n, name) for s, n in self.bound):
                raise NeedsLength(self.argument, "a turn of the loop reads what another wrote")


def may_be(one: Value, other: Value) -> bool:
    """Tell whether two names could be equal in some run, by their constant beginnings and ends."""
    if isinstance(one, Constant) and isinstance(other, Constant):
        return one == other
    begin, other_begin = _edge(one, 0), _edge(other, 0)
    end, other_end = _edge(one, -1), _edge(other, -1)
    begins = begin.startswith(other_begin) or other_begin.startswith(begin)
    return begins and (end.endswith(other_end) or other_end.endswith(end))


def _edge(name: Value, at: int) -> str:
    part = parts_of(name)[at]
    return str(part.value) if isinstance(part, Constant) else ""


def _fits_any(unknown: Iterable[Value], name: Value) -> bool:
    return any(may_be(each, name) for each in unknown)


def _variables_of(id: int, expr: ir.Expr) -> Iterator[tuple[Value, Any]]:
    generator = expr.gen if isinstance(expr, ir.SeparateReasoning) else expr
    several = isinstance(generator, ir.Gen) and generator.sampling.get("n", 1) != 1
    for at, name in enumerate(map(name_value, names_of(expr))):
        shown = _shown(name)
        if several:
            yield name, Unreadable(f"the variable {shown!r} is a list of samples")
        else:
            yield name, Variable(id, shown, reasoning=at > 0)


def _shown(name: Value) -> str | None:
    return name.value if isinstance(name, Constant) else "{...}"  # type: ignore[return-value]
