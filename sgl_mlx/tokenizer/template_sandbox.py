"""The sandbox in which chat templates run: Jinja's, with a budget of time and characters.

Jinja's own sandbox keeps a template from files, modules and the insides of objects, but not from
looping for ever or filling the memory. So the syntax tree of a template is changed before it is
compiled: loops, joined texts, slices and comparisons go through functions that ask the rendering's
`Budget`, as calls, filters and operations do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context, LoopContext, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from sgl_mlx.tokenizer.template_budget import Budget

BUDGET = " budget"
"""Variable with the rendering's `Budget`; a template cannot spell a name with a space."""

_LOOP, _JOINED, _MADE, _WEIGHED = " loop", " joined", " made", " weighed"
_SLOW_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters of web pages that take quadratic time; no chat template uses them."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A sandboxed Jinja environment, whose templates are rendered with a variable `BUDGET`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_output, **options)
        del self.globals["lipsum"]
        for name in _SLOW_FILTERS:
            del self.filters[name]

    def guard(self) -> None:
        """Put the budget before all filters and tests; call it once, after all were added."""
        self.filters = {name: _guarded(name, f) for name, f in self.filters.items()}
        self.tests = {name: _guarded(name, f) for name, f in self.tests.items()}
        self.filters |= {_LOOP: _loop, _JOINED: _joined, _MADE: _made, _WEIGHED: _weighed}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        budget.operation(operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(__context)
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps `str.format`
        receiver = getattr(method, "__self__", None)
        if isinstance(__obj, LoopContext):  # the next level of a recursive loop
            args = tuple(budget.each(x, budget.text) for x in args[:1])
        is_text = isinstance(receiver, (str, bytes, int))
        if is_text:
            args = tuple(list(budget.made(x)) if hasattr(x, "__next__") else x for x in args)
            budget.call(method.__name__, receiver, [*args, *kwargs.values()])
        budget.charge()
        result = super().call(__context, __obj, *args, **kwargs)
        is_new = is_text or not isinstance(receiver, Mapping)
        return budget.made(result) if is_new else result

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Guarded().visit(source), *args, **kwargs)


class _Guarded(NodeTransformer):
    """A transformer of a template's syntax tree, which puts in functions that ask the budget."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        weight = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _filter(node.iter, _LOOP, nodes.Const(weight))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        first, *others = node.nodes
        return _filter(first, _JOINED, *others)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, _MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filter(node.expr, _WEIGHED)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, _WEIGHED)
        return node


def _filter(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


def _guarded(name: str, function: Any) -> Callable[..., Any]:
    """Return a filter or test that asks the budget before it calls `function`."""
    kind = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        if name == "join" and hasattr(value, "__next__"):
            value = list(budget.made(value))
        budget.call(name, value, [*args, *kwargs.values()])
        first = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
        }
        result = function(*first.get(kind or "", ()), value, *args, **kwargs)
        return result if any(result is x for x in (value, *args)) else budget.made(result)

    return run


@pass_context
def _output(context: Context, value: Any) -> Any:
    """Charge for a value that is written, and return it."""
    _budget(context).charge(_budget(context).size(value))
    return value


@pass_context
def _loop(context: Context, values: Any, weight: int) -> Any:
    """Return the values that a loop runs over, each round charged; they keep their length."""
    budget = _budget(context)
    return _Rounds(budget, values, weight) if hasattr(values, "__len__") else budget.each(values)


@pass_context
def _joined(context: Context, *parts: Any) -> Any:
    """Join texts, as the operator `~` does."""
    budget = _budget(context)
    budget.room(sum(map(budget.size, parts)))
    join = markup_join if context.eval_ctx.autoescape else str_join
    return budget.made(join(parts))


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget(context).made(value)


@pass_context
def _weighed(context: Context, value: Any) -> Any:
    """Charge for reading a value once, to compare it, and return it."""
    budget = _budget(context)
    budget.charge(steps=1 + budget.size(value) // 1000)
    return value


class _Rounds:
    """A sequence or mapping whose rounds in a loop are charged."""

    def __init__(self, budget: Budget, values: Any, weight: int) -> None:
        self._budget = budget
        self._values = values
        self._weight = weight

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Any:
        return self._budget.each(self._values, self._weight)
