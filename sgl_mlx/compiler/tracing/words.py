"""Expressions of the language, as nodes that have no place yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.graph import (
    Gen,
    Image,
    Node,
    RoleBegin,
    RoleEnd,
    Select,
    SeparateReasoning,
    Text,
    VarScopeBegin,
    VarScopeEnd,
)
from sgl_mlx.compiler.graph.values import Constant, LoopIndex, Texts, Value
from sgl_mlx.compiler.tracing.breaks import NeedsLength, needs_run
from sgl_mlx.compiler.tracing.symbols import Leaves, described, is_symbolic, is_text
from sgl_mlx.compiler.tracing.tracer import attempt
from sgl_mlx.core import SamplingParams
from sgl_mlx.lang import ir, words

_NOWHERE = (-1, -1)


def leaves_of(thing: Any) -> Leaves:
    """What `s += thing` appends."""
    if isinstance(thing, Leaves):
        return thing
    if type(thing) is str or is_text(thing):
        return Leaves((Text(*_NOWHERE, text_value(thing)),))
    if isinstance(thing, ir.Expr):
        return Leaves(tuple(_node(leaf) for leaf in ir.leaves(thing)))
    return needs_run(f"appends {described(thing)}, which is no text")


def text_value(thing: Any) -> Value:
    """A text, known or not, as a value."""
    if is_text(thing):
        return thing  # type: ignore[no-any-return]
    if type(thing) is str:
        return Constant(thing)
    return needs_run("uses something that is no text as text")


def written(thing: Any) -> Value:
    """`str(thing)`, of texts and of where a loop is."""
    return thing if isinstance(thing, LoopIndex) else text_value(thing)


def name_value(name: Any) -> Value:
    """A variable's name, or None."""
    return Constant(None) if name is None else text_value(name)


def add(left: Any, right: Any) -> Leaves:
    """`left + right`, at least one of them an expression."""
    return Leaves(leaves_of(left).nodes + leaves_of(right).nodes)


# -- nodes of the language --------------------------------------------------------------------


def _node(leaf: ir.Expr) -> Node:
    for kind, make in _NODES.items():
        if type(leaf) is kind:
            return make(leaf)
    return needs_run(f"appends {leaf!r}, which graphs do not have")


def _gen(leaf: ir.Gen) -> Node:
    return Gen(*_NOWHERE, name_value(leaf.name), sampling_of(leaf.sampling))


def _select(leaf: ir.Select) -> Node:
    options = tuple(map(text_value, leaf.choices))
    method = method_name(leaf.choices_method)
    return Select(*_NOWHERE, name_value(leaf.name), options, method, float(leaf.temperature))


def _reasoning(leaf: ir.SeparateReasoning) -> Node:
    gen = _gen(leaf.gen)
    assert isinstance(gen, Gen)
    return SeparateReasoning(*_NOWHERE, gen.name, gen.sampling, leaf.model_type)


def _image(leaf: ir.Image) -> Node:
    return Image(*_NOWHERE, text_value(leaf.source))


_NODES: dict[type[ir.Expr], Callable[[Any], Node]] = {
    ir.ConstantText: lambda leaf: Text(*_NOWHERE, text_value(leaf.value)),
    ir.Gen: _gen,
    ir.Select: _select,
    ir.SeparateReasoning: _reasoning,
    ir.Image: _image,
    ir.RoleBegin: lambda leaf: RoleBegin(*_NOWHERE, leaf.role),
    ir.RoleEnd: lambda leaf: RoleEnd(*_NOWHERE, leaf.role),
    ir.VarScopeBegin: lambda leaf: VarScopeBegin(*_NOWHERE, text_value(leaf.name)),
    ir.VarScopeEnd: lambda leaf: VarScopeEnd(*_NOWHERE, text_value(leaf.name)),
}


def sampling_of(given: Any) -> dict[str, Any]:
    """Sampling parameters in the form that `SamplingParams` keeps them: plain data."""
    params = attempt(SamplingParams().override, **given)
    return {name: getattr(params, name) for name, value in given.items() if value is not None}


def method_name(method: Any) -> str:
    """The name of one of the language's own choice methods."""
    for name, known in CHOICES_METHODS.items():
        if method is known:
            return name
    return needs_run("selects by a method of the program's own")


# -- words ------------------------------------------------------------------------------------


def gen(*args: Any, **kwargs: Any) -> Leaves:
    """`gen`, whose name and choices may depend on the run."""
    return _named_word(words.gen, args, kwargs)


def select(*args: Any, **kwargs: Any) -> Leaves:
    """`select`, whose name and choices may depend on the run."""
    return _named_word(words.select, args, kwargs)


def _named_word(word: Callable[..., Any], args: Any, kwargs: Any) -> Leaves:
    parameters = ("name",) if args else ()
    given = {**dict(zip(parameters, args[:1], strict=True)), **kwargs}
    rest = args[1:]
    name, options = given.pop("name", None), given.get("choices")
    if word is words.select and rest:
        options, rest = rest[0], rest[1:]
        given["choices"] = options
    if isinstance(options, Texts):
        raise NeedsLength(options.argument, "chooses among its texts")
    if isinstance(options, (list, tuple)):
        given["choices"] = [f"choice {i}" if is_text(o) else o for i, o in enumerate(options)]
    if any(map(is_symbolic, (*rest, *given.values()))):
        needs_run(f"a parameter of {word.__name__}() depends on the run")
    if word is words.select:
        made = attempt(word, None, given.pop("choices", None), *rest, **given)
    else:
        made = attempt(word, None, *rest, **given)
    (node,) = leaves_of(made).nodes
    if isinstance(node, Select):
        assert options is not None
        return Leaves((replace(node, name=name_value(name), choices=_texts(options)),))
    assert isinstance(node, Gen)
    return Leaves((replace(node, name=name_value(name)),))


def _texts(options: Any) -> tuple[Value, ...]:
    return tuple(map(text_value, options))


def role_turn(role: ir.Role, expr: Any = None) -> Leaves:
    """A whole turn of a role."""
    inner = () if expr is None else leaves_of(expr).nodes
    return Leaves((RoleBegin(*_NOWHERE, role), *inner, RoleEnd(*_NOWHERE, role)))


def separate_reasoning(expr: Any = None, model_type: str | None = None) -> Leaves:
    """Each `gen` of the expression with its reasoning split off."""
    if is_symbolic(model_type):
        needs_run("the marks of the reasoning depend on the run")
    nodes = () if expr is None else leaves_of(expr).nodes
    return Leaves(
        tuple(
            SeparateReasoning(*_NOWHERE, node.name, node.sampling, model_type)
            if type(node) is Gen
            else node
            for node in nodes
        )
    )


def image(source: Any) -> Leaves:
    return Leaves((Image(*_NOWHERE, text_value(source)),))


def _turn(role: ir.Role) -> Callable[..., Leaves]:
    return lambda expr=None: role_turn(role, expr)


WORDS: dict[Callable[..., Any], Callable[..., Leaves]] = {
    words.gen: gen,
    words.select: select,
    words.system: _turn("system"),
    words.user: _turn("user"),
    words.assistant: _turn("assistant"),
    words.separate_reasoning: separate_reasoning,
    words.image: image,
}
"""Words that take expressions or texts that only a run knows."""

PLAIN_WORDS = frozenset(
    {words.gen_int, words.gen_string, words.video}
    | {words.system_begin, words.user_begin, words.assistant_begin}
    | {words.system_end, words.user_end, words.assistant_end}
)
"""Words that are called as they are."""
