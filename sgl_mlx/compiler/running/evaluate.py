"""Evaluation: a graph's symbolic values become Python values in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from sgl_mlx.compiler.graph.values import (
    Argument,
    Concat,
    Constant,
    DictOf,
    Element,
    Joined,
    ListOf,
    Method,
    StateOf,
    Texts,
    TupleOf,
    Value,
    Variable,
)
from sgl_mlx.errors import GraphError
from sgl_mlx.lang.binding import Binding
from sgl_mlx.lang.state import ProgramState
from sgl_mlx.waits import result_of


@dataclass
class RunValues:
    """The arguments, variables and states of one run.

    Attributes:
        arguments: the arguments, by name.
        bindings: the variables that a node sets, by the id of the node.
        states: the program states, by stream number.
    """

    arguments: Mapping[str, Any]
    bindings: dict[int, tuple[Binding, ...]] = field(default_factory=dict)
    states: dict[int, ProgramState] = field(default_factory=dict)

    def value(self, value: Value) -> Any:
        """Return the Python value of a symbolic value; wait for the variables in it.

        Raises:
            GraphError: a loop item stands outside its loop.
            Exception: the error of a variable that failed.
        """
        form = _FORMS.get(type(value))
        if form is None:
            raise GraphError(f"{value!r} stands outside the loop that gives it a value")
        return form(self, value)

    def binding(self, variable: Variable) -> Binding:
        return self.bindings[variable.source][variable.reasoning]

    def later(self, text: Value, variables: Sequence[Variable]) -> Future[str]:
        """Return a future of the text, which settles after all `variables` have settled."""
        made: Future[str] = Future()
        waiting = [self.binding(variable).value for variable in variables]
        left, lock = len(waiting), Lock()

        def one_more(_: Future[Any]) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                self._settle(made, text)

        for future in waiting:
            future.add_done_callback(one_more)
        return made

    def _settle(self, made: Future[str], text: Value) -> None:
        if not made.set_running_or_notify_cancel():
            return
        try:
            made.set_result(self.value(text))
        except BaseException as error:
            made.set_exception(error)


def _element(known: RunValues, value: Element) -> Any:
    return known.arguments[value.argument][value.index]


def _variable(known: RunValues, value: Variable) -> Any:
    return result_of(known.binding(value).value)


def _concat(known: RunValues, value: Concat) -> str:
    return "".join([known.value(part) for part in value.parts])


def _method(known: RunValues, value: Method) -> Any:
    return getattr(str, value.name)(known.value(value.text), *value.arguments)


def _dict(known: RunValues, value: DictOf) -> dict[Any, Any]:
    return {known.value(key): known.value(item) for key, item in value.items}


_FORMS: dict[type, Callable[[RunValues, Any], Any]] = {
    Constant: lambda known, value: value.value,
    Argument: lambda known, value: known.arguments[value.name],
    Element: _element,
    Variable: _variable,
    Concat: _concat,
    Joined: lambda known, value: value.separator.join(known.arguments[value.argument]),
    Method: _method,
    TupleOf: lambda known, value: tuple(map(known.value, value.items)),
    ListOf: lambda known, value: list(map(known.value, value.items)),
    DictOf: _dict,
    Texts: lambda known, value: known.arguments[value.argument],
    StateOf: lambda known, value: known.states[value.stream],
}
