"""The state of one trace: names, captured outside values, and data that the trace made itself."""

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
    """Something outside the program's arguments that the trace depends on."""

    read: Callable[[], Any]
    key: Hashable
    value: Any

    def holds(self) -> bool:
        """Whether it is still what it was."""
        value = self.read()
        unchanged = value is self.value and type(value) not in CONTAINERS
        return unchanged or key_of(value) == self.key


@dataclass(eq=False)
class Scope:
    """Names and their values.

    Attributes:
        own: names that belong to this scope even before they have a value.
        outer: the scope around it, or the function whose globals and closure come next.
    """

    function: str
    file: str
    outer: Scope | FunctionType
    own: frozenset[str] = frozenset()
    names: dict[str, Any] = field(default_factory=dict)
    comprehension: bool = False

    def inner(self) -> Scope:
        """The scope of a comprehension."""
        return Scope(self.function, self.file, self, comprehension=True)

    def line(self, node: ast.AST) -> Line:
        return Line(self.function, self.file, getattr(node, "lineno", 0))


class Tracer:
    """One trace.

    `evaluate`, `execute` and `call` are given to it, so that the parts of tracing, which need
    one another, do not import one another.

    Attributes:
        recorder: what the program has done.
        captures: what the trace depends on besides the arguments.
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
        """Call what the program calls, at most `_DEEPEST` calls deep."""
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
        """Read an attribute from the thing's own dictionary; a module's also as it loads lazily."""
        names = vars(thing)
        if is_module(thing):
            read = partial(getattr, thing, name, _MISSING)
            return self.capture((id(names), name), read, name, thing)
        return self.capture((id(names), name), partial(_member, names, name), name, thing)

    def capture(self, where: Hashable, read: Callable[[], Any], name: str, keep: Any) -> Any:
        """Read something that may have changed when the program runs again."""
        value = read()
        if value is _MISSING:
            needs_run(f"there is no {name}")
        self._captures.setdefault(where, (keep, Capture(read, key_of(value), value)))
        return value

    # -- data of the trace's own ----------------------------------------------------------------

    def own(self, thing: Any) -> Any:
        """Something the traced program has just made, which it may therefore change."""
        if type(thing) in CONTAINERS:
            self._own[id(thing)] = thing
        return thing

    def changing(self, thing: Any) -> None:
        """The program is about to change this."""
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
    """True for modules of any class: packages that load names lazily have their own."""
    return isinstance(thing, ModuleType)
