"""Methods of states and branches in a program that is traced: they record nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sgl_mlx.compiler.graph.nodes import Score, Sync
from sgl_mlx.compiler.graph.values import Texts
from sgl_mlx.compiler.tracing.breaks import NeedsLength, needs_run
from sgl_mlx.compiler.tracing.plain import as_value, is_plain
from sgl_mlx.compiler.tracing.symbols import Context, Decision, Group, State, is_text
from sgl_mlx.compiler.tracing.tracer import Tracer
from sgl_mlx.compiler.tracing.words import (
    call_word,
    expression,
    method_name,
    name_value,
    text_value,
)
from sgl_mlx.lang import ir, words
from sgl_mlx.lang.choices import token_length_normalized

_NOWHERE = (-1, -1)


def append(tracer: Tracer, state: State, thing: Any) -> State:
    """Record `s += thing`, and return the state."""
    tracer.recorder.append(expression(thing), state)
    return state


def spread(tracer: Tracer, group: Group, thing: Any) -> Group:
    """Record `branches += thing`, and return the branches.

    A list gives one item to each branch, a function is called with each branch's index, and
    anything else goes to every branch.
    """
    count = len(group.states)
    if type(thing) in (list, tuple):
        if len(thing) != count:
            needs_run(f"{len(thing)} expressions for {count} branches")
        each: Sequence[Any] = thing
    elif isinstance(thing, (ir.Expr, str)) or is_text(thing):
        each = [thing] * count
    else:
        each = [tracer.call(thing, [i], {}) for i in range(count)]
    for state, item in zip(group.states, each, strict=True):
        append(tracer, state, item)
    return group


def set_variable(tracer: Tracer, state: State, name: Any, thing: Any) -> None:
    """Record `s[name] = thing`."""
    value = as_value(thing)
    if value is None or type(thing) in (list, dict):
        needs_run("keeps something in a variable that the program may still change")
    tracer.recorder.inside_loop("sets a variable")
    tracer.recorder.set(state, name_value(name), value, thing)


def fork(tracer: Tracer, state: State, size: Any = 1, position_ids_offset: Any = None) -> Group:
    """Record `s.fork(size, offsets)`, and return the branches."""
    if type(size) is not int or size < 1 or not is_plain(position_ids_offset):
        needs_run("how many branches there are depends on the run")
    offsets = [0] * size if position_ids_offset is None else list(position_ids_offset)
    if len(offsets) != size or any(type(offset) is not int for offset in offsets):
        needs_run("the position offsets are not one number for each branch")
    return tracer.recorder.fork(state, tuple(offsets))


def join(tracer: Tracer, group: Group, mode: Any = "gather_variable") -> None:
    """Record `branches.join(mode)`."""
    if mode not in ("gather_variable", "concate_and_append"):
        needs_run(f"unknown join mode {mode!r}")
    tracer.recorder.join(group, mode)


def score(
    tracer: Tracer, state: Any, choices: Any, choices_method: Any = token_length_normalized
) -> Decision:
    """Record `sgl.score(s, choices)`, and return its decision."""
    if isinstance(choices, Texts):
        raise NeedsLength(choices.argument, "scores its texts")
    if not isinstance(state, State) or type(choices) not in (list, tuple) or not choices:
        needs_run("scores something else than a list of choices")
    method = method_name(choices_method)
    leaf = Score(*_NOWHERE, tuple(map(text_value, choices)), method)
    tracer.recorder.inside_loop("scores")
    return tracer.recorder.score(state, leaf)


def _sync(tracer: Tracer, state: State) -> None:
    tracer.recorder.add(Sync(*_NOWHERE), state)


def _turn(role: ir.Role, tracer: Tracer, state: State, expr: Any = None) -> Any:
    if expr is not None:
        append(tracer, state, call_word(words.role_turn, role, expr))
        return ir.ExprList()
    return _enclosed(tracer, state, ir.RoleBegin(role), ir.RoleEnd(role))


def _var_scope(tracer: Tracer, state: State, name: Any) -> Context:
    text_value(name)
    return _enclosed(tracer, state, ir.VarScopeBegin(name), ir.VarScopeEnd(name))


def _enclosed(tracer: Tracer, state: State, begin: ir.Expr, end: ir.Expr) -> Context:
    def leave() -> None:
        append(tracer, state, end)

    def enter() -> None:
        append(tracer, state, begin)

    return Context(enter, leave)


def _copy(tracer: Tracer, state: State, position_ids_offset: Any = None) -> Context:
    groups: list[Group] = []

    def enter() -> State:
        groups.append(fork(tracer, state, 1, position_ids_offset))
        return groups[0].states[0]

    return Context(enter, lambda: join(tracer, groups[0]))


def _word(word: Callable[..., Any], tracer: Tracer, state: State, *args: Any, **kw: Any) -> Any:
    append(tracer, state, call_word(word, *args, **kw))
    return ir.ExprList()


def _read(tracer: Tracer, state: State, name: Any) -> Any:
    return tracer.recorder.read(state, name_value(name))


STATE_METHODS: dict[str, Callable[..., Any]] = {
    "gen": partial(_word, words.gen),
    "select": partial(_word, words.select),
    "system": partial(_turn, "system"),
    "user": partial(_turn, "user"),
    "assistant": partial(_turn, "assistant"),
    "extend": append,
    "var_scope": _var_scope,
    "fork": fork,
    "copy": _copy,
    "get_var": _read,
    "set_var": set_variable,
    "sync": _sync,
}
"""Methods of a state that can be traced. A call of any other method ends the trace."""

GROUP_METHODS: dict[str, Callable[..., Any]] = {"join": join}
