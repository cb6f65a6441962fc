"""Values: frozen expressions for the data that a program computes from arguments and variables.

A value is known only when a graph runs: `Argument("topic")` is that run's topic, `Variable(7, "x")`
the text that node 7 gave to `x`. Values are compared and hashed like any other data; nothing here
knows how they are evaluated (`sgl_mlx.compiler.running.evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from sgl_mlx.lang.ir import Symbol

TEXT_METHODS = frozenset({"capitalize", "casefold", "lower", "lstrip", "removeprefix"}) | frozenset(
    {"removesuffix", "replace", "rstrip", "strip", "swapcase", "title", "upper"}
)
"""Methods of `str` that only make text of text, so that a graph may call them by name."""


@dataclass(frozen=True)
class Constant:
    """Plain data that every run shares."""

    value: str | int | float | bool | None


class TextSymbol(Symbol):
    """A text that only a run knows: it may stand in the fields of a language's expression."""

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
    """The text that a `ForEach` (by its node's id) is at."""

    loop: int


@dataclass(frozen=True)
class LoopIndex:
    """Where a `ForEach` is, counted from `start`; a number, written in decimal."""

    loop: int
    start: int = 0


@dataclass(frozen=True)
class Variable(TextSymbol):
    """The text that the node `source` gave to the variable `name`.

    The source is a Gen, a Select, a SeparateReasoning (which gives values to two variables, and
    `reasoning` means the second), a VarScopeBegin, or a Score (its decision).
    """

    source: int
    name: str | None
    reasoning: bool = False


@dataclass(frozen=True)
class Concat(TextSymbol):
    """Texts one after another; see `concat`."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Joined(TextSymbol):
    """`separator.join(argument)`, of an argument that is a list of texts."""

    separator: str
    argument: str


@dataclass(frozen=True)
class Method(TextSymbol):
    """A method of `TEXT_METHODS`, called on a text with constant arguments."""

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
    """A dictionary, as its items in order."""

    items: tuple[tuple[Value, Value], ...]


@dataclass(frozen=True)
class Texts:
    """A whole argument that is a list (or, in Python, a tuple) of texts."""

    argument: str


@dataclass(frozen=True)
class StateOf:
    """A stream's `ProgramState`, which a program returned."""

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
"""The values that are text of a run."""

EMPTY = Constant("")
NONE = Constant(None)


def concat(*parts: Value | str) -> Value:
    """The parts as one text: nothing nested, no empty text, no two constant texts in a row."""
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
    """The form in which an expression of the language holds a value: a constant is itself."""
    return value.value if isinstance(value, Constant) else value


def valued(content: Any) -> Value:
    """The value of what an expression of the language holds; the reverse of `plain`."""
    return content if isinstance(content, Value) else Constant(content)


def parts_of(text: Value) -> tuple[Value, ...]:
    """The parts of a text in order; of anything but a concatenation, itself."""
    return text.parts if isinstance(text, Concat) else (text,)


def walk(value: Value) -> Iterator[Value]:
    """A value and all it is made of, outermost first."""
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
    """Whether the value is the same in every run."""
    return all(
        isinstance(v, (Constant, Concat, TupleOf, ListOf, DictOf, Method)) for v in walk(value)
    )
