"""Operations on symbolic texts: f-strings, `%`, `.format`, `.join` and methods of `str`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

from sgl_mlx.compiler.graph.values import (
    TEXT_METHODS,
    Constant,
    LoopIndex,
    Method,
    Value,
    concat,
)
from sgl_mlx.compiler.tracing.breaks import attempt, needs_run
from sgl_mlx.compiler.tracing.plain import is_plain
from sgl_mlx.compiler.tracing.symbols import described, is_text
from sgl_mlx.compiler.tracing.words import text_value, written

_PERCENT = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<spec>[-#0 +]*\d*(?:\.\d+)?)(?P<kind>.)", re.S)
_CONVERSIONS: Mapping[str, Callable[[object], str]] = {"s": str, "r": repr, "a": ascii}


def formatted(thing: Any, spec: str = "", conversion: str | None = None) -> Value:
    """Return `format(thing, spec)` after an optional conversion, as in `f"{thing!s:spec}"`.

    Raises:
        GraphBreak: a symbol has a format or conversion that graphs cannot express.
    """
    if is_text(thing) or isinstance(thing, LoopIndex):
        if spec or conversion not in (None, "s"):
            needs_run(f"formats {described(thing)} by {conversion or spec!r}")
        return written(thing)
    if not is_plain(thing):
        needs_run(f"writes {described(thing)} as text")
    converted = _CONVERSIONS[conversion](thing) if conversion else thing
    return Constant(attempt(format, converted, spec))


def as_symbol(value: Value) -> Any:
    """Return the Python value of a `Constant`; return any other value unchanged."""
    return value.value if isinstance(value, Constant) else value


def percent(template: str, given: Any) -> Any:
    """Return `template % given`, where `given` may hold symbols.

    Raises:
        GraphBreak: the template does not fit, or formats a symbol in a way that graphs cannot
            express.
    """
    parts: list[Value | str] = []
    by_key = type(given) is dict
    waiting = list(given) if type(given) is tuple else [given]
    end = 0
    for found in _PERCENT.finditer(template):
        parts.append(template[end : found.start()])
        end = found.end()
        if found["kind"] == "%":
            parts.append("%")
            continue
        if (found["key"] is not None) != by_key or (not by_key and not waiting):
            needs_run("a % template does not fit what it is given")
        thing = attempt(given.__getitem__, found["key"]) if by_key else waiting.pop(0)
        parts.append(_percent_item(found, thing))
    if (waiting and not by_key) or "%" in template[end:]:
        needs_run("a % template does not fit what it is given")
    return as_symbol(concat(*parts, template[end:]))


def _percent_item(found: re.Match[str], thing: Any) -> Value:
    if is_text(thing) or isinstance(thing, LoopIndex):
        number = isinstance(thing, LoopIndex) and found["kind"] == "d"
        if found["spec"] or not (found["kind"] == "s" or number):
            needs_run(f"formats {described(thing)} by {found[0]!r}")
        return written(thing)
    if not is_plain(thing):
        needs_run(f"writes a {type(thing).__name__} as text")
    return Constant(attempt(f"%{found['spec']}{found['kind']}".__mod__, (thing,)))


def format_method(template: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return `template.format(*args, **kwargs)`, where arguments may be symbols.

    Raises:
        GraphBreak: a field is missing, or is more than a name or a number.
    """
    if is_plain([*args, *kwargs.values()]):
        return attempt(template.format, *args, **kwargs)
    parts: list[Value | str] = []
    counted = iter(range(len(args)))
    for literal, name, spec, conversion in attempt(lambda: list(Formatter().parse(template))):
        parts.append(literal)
        if name is None:
            continue
        if "{" in spec or re.search(r"[.\[]", name):
            needs_run("a format template takes its fields apart")
        key = attempt(lambda: str(next(counted))) if name == "" else name
        thing = args[int(key)] if key.isdigit() and int(key) < len(args) else kwargs.get(key, ...)
        if thing is ...:
            needs_run(f"a format template lacks its field {key!r}")
        parts.append(formatted(thing, spec, conversion))
    return as_symbol(concat(*parts))


def join(separator: str, items: Sequence[Any]) -> Any:
    """Return `separator.join(items)`, where items may be symbols.

    Raises:
        GraphBreak: an item is no text.
    """
    parts: list[Value | str] = []
    for i, item in enumerate(items):
        parts += [separator] * (i > 0) + [text_value(item)]
    return as_symbol(concat(*parts))


def method(text: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the symbol for a method call on a symbolic text.

    Raises:
        GraphBreak: the method is not in `TEXT_METHODS`, or the arguments are not plain.
    """
    plain = all(type(arg) in (str, int, type(None)) for arg in args)
    if name not in TEXT_METHODS or not plain or kwargs:
        needs_run(f"calls .{name}() of {described(text)}")
    attempt(getattr(str, name), "", *args)
    return Method(name, text, tuple(args))
