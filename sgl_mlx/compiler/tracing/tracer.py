"""The tracer, which holds the state of one trace.

This state is the names in scope, the values captured from outside, and the data that the program
has made.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from sgl_mlx.compiler.graph.nodes import Line
from sgl_mlx.compiler.tracing.breaks import GraphBreak, NeedsLength, needs_run
from sgl_mlx.compiler.tracing.plain import CONTAINERS, key_of
from sgl_mlx.compiler.tracing.recorder import Recorder
from sgl_mlx.compiler.tracing.symbols import Left

_MISSING = object()
_MOST_STEPS = 1_000_000
_DEEPEST = 40


@dataclass(frozen=True)
class Capture:
    """A value from outside the arguments that a trace depends on, such as a global."""

    read: Callable[[], Any]
    key: Hashable
    value: Any

    def holds(self) -> bool:
        """Tell whether the value is still the same."""
        value = self.read()
        unchanged = value is self.value and type(value) not in CONTAINERS
        return unchanged or key_of(value) == self.key


@dataclass(eq=False)
class Scope:
    """The names of a function or comprehension, and their values.

    Attributes:
        function: the name of the function.
        file: the path of its source file.
        outer: the enclosing scope, or the function whose closure and globals are searched next.
        own: names that belong to this scope even before they have a value.
        names: the values so far, by name.
        comprehension: True if the scope belongs to a comprehension.
    """

    function: str
    file: str
    outer: Scope | FunctionType
    own: frozenset[str] = frozenset()
    names: dict[str, Any] = field(default_factory=dict)
    comprehension: bool = False

    def inner(self) -> Scope:
        """Make the scope of a comprehension inside this scope."""
        return Scope(self.function, self.file, self, comprehension=True)

    def line(self, node: ast.AST) -> Line:
        return Line(self.function, self.file, getattr(node, "lineno", 0))


class Tracer:
    """One trace of a program.

    `evaluate`, `execute` and `call` are passed in, because their modules depend on one another and
    on this one.

    Attributes:
        recorder: the nodes recorded so far.
        captures: the outside values that the trace depends on.
    """

    def __init__(
        self,
        evaluate: Callable[[Tracer, ast.expr, Scope], Any],
        execute: Callable[[Tracer, list[ast.stmt], Scope], None],
        call: Callable[[Tracer, Any, list[Any], dict[str, Any]], Any],
    ) -> None:
        self.recorder = Recorder()
        self._evaluate, self._execute, self._call = evaluate, execute, call
        self._captures: dict[Hashable, tuple[Any, Capture]] = {}
        self._own: dict[int, Any] = {}
        self._steps = self._depth = 0

    @property
    def captures(self) -> tuple[Capture, ...]:
        return tuple(capture for _, capture in self._captures.values())

    # -- the program goes on --------------------------------------------------------------------

    def evaluate(self, node: ast.expr, scope: Scope) -> Any:
        try:
            self._step()
            return self._evaluate(self, node, scope)
        except (GraphBreak, NeedsLength) as stop:
            stop.locate(scope.line(node))
            raise

    def execute(self, body: list[ast.stmt], scope: Scope) -> None:
        self._execute(self, body, scope)

    def call(self, function: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
        """Trace a call and return its result. Calls nested deeper than `_DEEPEST` end the trace."""
        self._depth += 1
        if self._depth > _DEEPEST:
            needs_run(f"calls are nested more than {_DEEPEST} deep")
        try:
            return self._call(self, function, list(args), dict(kwargs))
        finally:
            self._depth -= 1

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            needs_run("the program is too long to be traced")

    # -- names ----------------------------------------------------------------------------------

    def lookup(self, name: str, scope: Scope) -> Any:
        where: Scope | FunctionType = scope
        while isinstance(where, Scope):
            if name in where.names:
                return self._usable(where.names[name], name)
            if name in where.own:
                needs_run(f"{name} is read before it has a value")
            where = where.outer
        return self._outside(name, where)

    def _usable(self, thing: Any, name: str) -> Any:
        if isinstance(thing, Left):
            raise NeedsLength(thing.argument, f"{name} depends on the turns of the loop")
        return thing

    def _outside(self, name: str, function: FunctionType) -> Any:
        free = function.__code__.co_freevars
        if name in free:
            cell = (function.__closure__ or ())[free.index(name)]
            return self.capture((id(cell),), partial(_in_cell, cell), name, cell)
        names = function.__globals__
        return self.capture((id(names), name), partial(_global, names, name), name, names)

    def attribute(self, thing: Any, name: str) -> Any:
        """Read and capture an attribute from the thing's own dictionary, or from a module.

        Raises:
            GraphBreak: there is no such attribute.
        """
        names = vars(thing)
        if is_module(thing):
            read = partial(getattr, thing, name, _MISSING)
            return self.capture((id(names), name), read, name, thing)
        return self.capture((id(names), name), partial(_member, names, name), name, thing)

    def capture(self, where: Hashable, read: Callable[[], Any], name: str, keep: Any) -> Any:
        """Read a value that may change between runs, and make the trace depend on it.

        Args:
            where: a key of the place that is read.
            read: reads the value; called again before each run.
            name: the name in the program, for errors.
            keep: an object to keep alive, so that the ids in `where` stay unique.

        Raises:
            GraphBreak: there is no such value.
        """
        value = read()
        if value is _MISSING:
            needs_run(f"there is no {name}")
        self._captures.setdefault(where, (keep, Capture(read, key_of(value), value)))
        return value

    # -- data of the trace's own ----------------------------------------------------------------

    def own(self, thing: Any) -> Any:
        """Mark a container as made by the program, which may then change it; return the thing."""
        if type(thing) in CONTAINERS:
            self._own[id(thing)] = thing
        return thing

    def changing(self, thing: Any) -> None:
        """Check that the program may change this container.

        Raises:
            GraphBreak: the container existed before the program ran, or a generator changes it.
            NeedsLength: a loop over a list argument is being traced.
        """
        if id(thing) not in self._own:
            needs_run("changes something that was there before the program ran")
        self.recorder.inside_loop("changes a list or dictionary")
        if self.recorder.pure:
            needs_run("changes something inside a generator expression")


def _in_cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _global(names: dict[str, Any], name: str) -> Any:
    return names[name] if name in names else getattr(builtins, name, _MISSING)


def _member(names: Mapping[str, Any], name: str) -> Any:
    return names.get(name, _MISSING)


def is_module(thing: Any) -> bool:
    """Tell whether a value is a module; an instance of a subclass of `ModuleType` is one, too."""
    return isinstance(thing, ModuleType)
