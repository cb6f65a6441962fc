"""The language's words (`gen`, `select` ...) in a program that is traced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.values import Constant, LoopIndex, Texts, Value
from sgl_mlx.compiler.tracing.breaks import NeedsLength, attempt, needs_run
from sgl_mlx.compiler.tracing.plain import is_json
from sgl_mlx.compiler.tracing.symbols import described, is_symbolic, is_text
from sgl_mlx.core import SamplingParams
from sgl_mlx.lang import ir, words
from sgl_mlx.lang.choices import ChoicesSamplingMethod

WORDS: frozenset[Any] = frozenset(
    word
    for word in vars(words).values()
    if inspect.isfunction(word) and word.__module__ == words.__name__
) - {words.checked_choices}
"""The functions of `lang/words.py` that make an expression."""

_MAY_BE_SYMBOLS = frozenset({"name", "choices", "expr"})
"""Parameters of words that may be symbolic texts; all other parameters have to be known."""


def call_word(word: Callable[..., Any], *args: Any, **kwargs: Any) -> ir.Expr:
    """Call a word of the language, and return its expression.

    Raises:
        GraphBreak: the word refuses its arguments, or a parameter depends on the run.
        NeedsLength: an argument is a whole list argument of the program.
    """
    name = word.__name__
    try:
        given = inspect.signature(word).bind(*args, **kwargs).arguments
    except TypeError as error:
        needs_run(f"raises TypeError: {error}")
    for parameter, thing in given.items():
        if isinstance(thing, Texts):
            raise NeedsLength(thing.argument, "chooses among its texts")
        if parameter not in _MAY_BE_SYMBOLS and is_symbolic(thing):
            needs_run(f"a parameter of {name}() depends on the run")
    made = attempt(word, *args, **kwargs)
    assert isinstance(made, ir.Expr)
    return made


def expression(thing: Any) -> ir.Expr:
    """Return the expression that `s += thing` appends.

    Raises:
        GraphBreak: the thing is neither text nor expression.
    """
    if type(thing) is str or is_text(thing) or isinstance(thing, ir.Expr):
        return ir.as_expr(thing)
    return needs_run(f"appends {described(thing)}, which is no text")


def graph_form(leaf: ir.Expr) -> ir.Expr:
    """Return the expression as graphs store it: with plain data, symbols and sampling parameters.

    Raises:
        GraphBreak: the expression holds something else, such as the bytes of a picture.
    """
    if isinstance(leaf, ir.Internal) or type(leaf).__module__ != ir.__name__:
        needs_run(f"appends {leaf!r}, which graphs do not have")
    held = {f.name: getattr(leaf, f.name) for f in fields(leaf)}  # type: ignore[arg-type]
    return replace(leaf, **{k: _field_form(leaf, v) for k, v in held.items()})  # type: ignore[type-var]


def _field_form(leaf: ir.Expr, content: Any) -> Any:
    if isinstance(content, ir.Expr):
        return graph_form(content)
    if isinstance(content, Mapping):
        return sampling_of(content)
    if isinstance(content, ChoicesSamplingMethod):
        method_name(content)
        return content
    texts = content if type(content) is tuple else (content,)
    if not all(is_text(text) or is_json(text) for text in texts):
        needs_run(f"appends {leaf!r}, which graphs do not have")
    return content


def text_value(thing: Any) -> Value:
    """Return a text, known or symbolic, as a value.

    Raises:
        GraphBreak: the thing is no text.
    """
    if is_text(thing):
        return thing  # type: ignore[no-any-return]
    if type(thing) is str:
        return Constant(thing)
    return needs_run("uses something that is no text as text")


def written(thing: Any) -> Value:
    """Return the value of `str(thing)`, for a text or a loop index."""
    return thing if isinstance(thing, LoopIndex) else text_value(thing)


def name_value(name: Any) -> Value:
    """Return a variable's name as a value; `Constant(None)` for None."""
    return Constant(None) if name is None else text_value(name)


def sampling_of(given: Any) -> dict[str, Any]:
    """Return the given sampling parameters as plain data, normalised by `SamplingParams`.

    Raises:
        GraphBreak: a parameter is invalid.
    """
    params = attempt(SamplingParams().override, **given)
    return {name: getattr(params, name) for name, value in given.items() if value is not None}


def method_name(method: Any) -> str:
    """Return the name of a choice method.

    Raises:
        GraphBreak: the method is not one of the language's own.
    """
    for name, known in CHOICES_METHODS.items():
        if method is known:
            return name
    return needs_run("selects by a method of the program's own")
