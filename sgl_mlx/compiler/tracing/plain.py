"""Plain data: values that a trace may compute with, and that can be compared between runs."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from sgl_mlx.compiler.graph.values import Constant, DictOf, ListOf, TupleOf, Value

SCALARS = (str, int, float, bool, bytes, complex, type(None), type(Ellipsis), range, slice)
_NOTHING: dict[str, str] = {}
_VIEWS = (type(_NOTHING.keys()), type(_NOTHING.values()), type(_NOTHING.items()))
_EMPTY: tuple[Any, ...] = ([], (), "", b"", range(0), {}, {}.keys(), {}.values(), {}.items())
ITERATORS = (zip, enumerate, reversed, type(reversed([])), *(type(iter(each)) for each in _EMPTY))
CONTAINERS = (list, tuple, dict, set, frozenset, *_VIEWS)


@dataclass(frozen=True, eq=False)
class Same:
    """A wrapper of any object; two wrappers are equal if they wrap the same object."""

    thing: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def key_of(value: Any) -> Hashable:
    """Return a key that changes whenever a program could notice that the value has changed.

    Plain data counts by content and type, any other object by identity.
    """
    kind = type(value)
    if kind is float:
        return kind, repr(value)
    if kind in (list, tuple):
        return kind, tuple(map(key_of, value))
    if kind is dict:
        return kind, tuple((key_of(k), key_of(v)) for k, v in value.items())
    if kind in (set, frozenset):
        return kind, tuple(map(key_of, value))  # in iteration order, which a program can observe
    return (kind, value) if kind in SCALARS and kind is not slice else Same(value)


def is_safe(value: Any) -> bool:
    """Tell whether a value's own type is builtin; the values inside a container are not checked.

    Operators on such a value run no user code, unless they look at values inside a container.
    """
    return type(value) in SCALARS or type(value) in CONTAINERS or type(value) in ITERATORS


def is_plain(value: Any) -> bool:
    """Tell whether a value consists of builtin types only, inside its containers too.

    Such a value holds no symbol, and its operators run no user code. A compiled regex is plain, an
    iterator is not; the ends of a slice are not looked at.
    """
    if type(value) in SCALARS or type(value) is re.Pattern:
        return True
    if type(value) is dict:
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    return type(value) in CONTAINERS and all(map(is_plain, value))


def has_fixed_keys(thing: Any) -> bool:
    """Tell whether all keys of a dictionary are plain; True for anything but a dictionary."""
    return type(thing) is not dict or all(map(is_plain, thing))


def is_json(value: Any) -> bool:
    """Tell whether a graph file can hold the value: JSON data, and tuples."""
    if type(value) in (str, int, float, bool, type(None)):
        return True
    if type(value) is dict:
        return all(type(k) is str and is_json(v) for k, v in value.items())
    return type(value) in (list, tuple) and all(map(is_json, value))


def as_value(thing: Any) -> Value | None:
    """Convert data that a program returns or stores; None if no value can represent the data."""
    if isinstance(thing, Value):
        return thing
    if type(thing) in (str, int, float, bool, type(None)):
        return Constant(thing)
    if type(thing) in (list, tuple):
        items = [as_value(item) for item in thing]
        made = ListOf if type(thing) is list else TupleOf
        return made(tuple(items)) if None not in items else None  # type: ignore[arg-type]
    if type(thing) is dict:
        pairs = [(as_value(k), as_value(v)) for k, v in thing.items()]
        known = all(k is not None and v is not None for k, v in pairs)
        return DictOf(tuple(pairs)) if known else None  # type: ignore[arg-type]
    return None
