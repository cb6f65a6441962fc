"""Values: frozen expressions for data that a program computes from arguments and variables.

A value is symbolic until a graph runs: `Argument("topic")` stands for that run's topic,
`Variable(7, "x")` for the text that node 7 stores in `x`. Values compare and hash by content.
`sgl_mlx.compiler.running.evaluate` evaluates them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from sgl_mlx.lang.ir import Symbol

TEXT_METHODS = frozenset({"capitalize", "casefold", "lower", "lstrip", "removeprefix"}) | frozenset(
    {"removesuffix", "replace", "rstrip", "strip", "swapcase", "title", "upper"}
)
"""Methods of `str` that return a `str` without side effects; a graph may call them by name."""


@dataclass(frozen=True)
class Constant:
    """A plain value that is the same in every run."""

    value: str | int | float | bool | None


class TextSymbol(Symbol):
    """Base class of placeholders for text that is computed when the program runs.

    A field of an expression in `lang.ir` may hold a placeholder in place of a `str`.
    """

    def __add__(self, other: str) -> Any:
        return plain(concat(self, other))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Argument(TextSymbol):
    """A text argument of the program."""

    name: str


@dataclass(frozen=True)
class Element(TextSymbol):
    """One text of an argument that is a list of texts."""

    argument: str
    index: int


@dataclass(frozen=True)
class LoopItem(TextSymbol):
    """The current text of the `ForEach` node with id `loop`."""

    loop: int


@dataclass(frozen=True)
class LoopIndex:
    """The index of the current text in the `ForEach` node with id `loop`, counted from `start`."""

    loop: int
    start: int = 0


@dataclass(frozen=True)
class Variable(TextSymbol):
    """The text that the node `source` stores in the variable `name`.

    The source is a Gen, a Select, a VarScopeBegin, a Score (its decision) or a SeparateReasoning. A
    SeparateReasoning sets two variables, and `reasoning` selects the one with the reasoning.
    """

    source: int
    name: str | None
    reasoning: bool = False


@dataclass(frozen=True)
class Concat(TextSymbol):
    """A concatenation of texts, made by `concat`."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Joined(TextSymbol):
    """A call of `separator.join(argument)`; the argument is a list of texts."""

    separator: str
    argument: str


@dataclass(frozen=True)
class Method(TextSymbol):
    """A call of a method named in `TEXT_METHODS` on a text, with constant arguments."""

    name: str
    text: Value
    arguments: tuple[str | int | None, ...] = ()


@dataclass(frozen=True)
class TupleOf:
    items: tuple[Value, ...]


@dataclass(frozen=True)
class ListOf:
    items: tuple[Value, ...]


@dataclass(frozen=True)
class DictOf:
    """A dictionary, as its (key, value) pairs in order."""

    items: tuple[tuple[Value, Value], ...]


@dataclass(frozen=True)
class Texts:
    """A whole argument that is a list or a tuple of texts."""

    argument: str


@dataclass(frozen=True)
class StateOf:
    """The `ProgramState` of a stream, as a return value of a program."""

    stream: int


Value = (
    Constant
    | Argument
    | Element
    | LoopItem
    | LoopIndex
    | Variable
    | Concat
    | Joined
    | Method
    | TupleOf
    | ListOf
    | DictOf
    | Texts
    | StateOf
)

SymbolicText = Argument | Element | LoopItem | Variable | Concat | Joined | Method
"""The values that stand for a text."""

EMPTY = Constant("")
NONE = Constant(None)


def concat(*parts: Value | str) -> Value:
    """Concatenate texts into one flat value, without empty parts or neighbouring constants."""
    flat: list[Value] = []
    for part in _flattened(parts):
        last = flat[-1] if flat else None
        if part == EMPTY:
            continue
        if isinstance(part, Constant) and isinstance(last, Constant):
            flat[-1] = Constant(f"{last.value}{part.value}")
        else:
            flat.append(part)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat)) if flat else EMPTY


def _flattened(parts: tuple[Value | str, ...]) -> Iterator[Value]:
    for part in parts:
        if isinstance(part, Concat):
            yield from part.parts
        else:
            yield Constant(part) if isinstance(part, str) else part


def plain(value: Value) -> Any:
    """Unwrap a `Constant`; return any other value unchanged."""
    return value.value if isinstance(value, Constant) else value


def valued(content: Any) -> Value:
    """Wrap a bare Python value in a `Constant`; return a value as it is. The reverse of `plain`."""
    return content if isinstance(content, Value) else Constant(content)


def parts_of(text: Value) -> tuple[Value, ...]:
    """Return the parts of a concatenation in order; for any other value, the value alone."""
    return text.parts if isinstance(text, Concat) else (text,)


def walk(value: Value) -> Iterator[Value]:
    """Iterate over a value and all values inside it, outermost first."""
    yield value
    for field in fields(value):
        yield from _inner(getattr(value, field.name))


def _inner(content: object) -> Iterator[Value]:
    if isinstance(content, tuple):
        for item in content:
            yield from _inner(item)
    elif isinstance(content, Value):
        yield from walk(content)


def is_constant(value: Value) -> bool:
    """Tell whether a value is the same in every run."""
    return all(
        isinstance(v, (Constant, Concat, TupleOf, ListOf, DictOf, Method)) for v in walk(value)
    )
