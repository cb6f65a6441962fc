"""Graphs for people: as a tree of text, and as a Graphviz drawing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from sgl_mlx.compiler.graph.choice_methods import CHOICES_METHODS
from sgl_mlx.compiler.graph.graph import ROOT, Graph, Parameter
from sgl_mlx.compiler.graph.nodes import (
    Call,
    Fork,
    GetForkItem,
    Node,
    body_of,
    kind_of,
)
from sgl_mlx.compiler.graph.values import (
    NONE,
    Argument,
    Concat,
    Constant,
    DictOf,
    Element,
    Joined,
    ListOf,
    LoopIndex,
    LoopItem,
    Method,
    StateOf,
    Texts,
    TupleOf,
    Value,
    Variable,
    valued,
)
from sgl_mlx.lang import ir

_LONGEST = 60


def written(value: Value) -> str:
    """Write a value as in an f-string: `Hello {name}, {%3.answer}`."""
    if isinstance(value, Constant):
        return value.value if isinstance(value.value, str) else repr(value.value)
    if isinstance(value, Concat):
        return "".join(map(written, value.parts))
    if isinstance(value, (TupleOf, ListOf)):
        opening, closing = "()" if isinstance(value, TupleOf) else "[]"
        return opening + ", ".join(map(written, value.items)) + closing
    if isinstance(value, DictOf):
        return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items) + "}"
    return "{" + _named(value) + "}"


def _named(value: Value) -> str:
    match value:
        case Argument(name):
            return name
        case Texts(argument):
            return argument
        case Element(argument, index):
            return f"{argument}[{index}]"
        case LoopItem(loop):
            return f"%{loop}.item"
        case LoopIndex(loop, start):
            return f"%{loop}.index" + (f"+{start}" if start else "")
        case Variable(source, name):
            return f"%{source}.{name or 'text'}"
        case Joined(separator, argument):
            return f"{separator!r}.join({argument})"
        case Method(name, text, arguments):
            return f"{_named(text)}.{name}({', '.join(map(repr, arguments))})"
        case StateOf(stream):
            return f"state {stream}"
    return written(value)


def label(node: Node, longest: int = _LONGEST) -> str:
    """Describe a node in one line: its kind, and its fields cut to about `longest` characters."""
    return " ".join([kind_of(node), *_fields(node, longest)])


def _fields(thing: Any, longest: int) -> Iterator[str]:
    for field in fields(thing):
        content = getattr(thing, field.name)
        if isinstance(content, ir.Expr):
            yield from _fields(content, longest)
        elif field.name not in ("id", "stream", "line", "body"):
            yield from filter(None, [_shown(field.name, content, longest)])


def _shown(name: str, content: Any, longest: int) -> str:
    if name == "sampling":
        return " ".join(f"{k}={_cut(repr(v), longest)}" for k, v in content.items())
    if name == "choices":
        return "[" + ", ".join(written(valued(choice)) for choice in content) + "]"
    if name == "choices_method":
        return next((k for k, known in CHOICES_METHODS.items() if known is content), "")
    if content == NONE or content is None or (name == "offsets" and not any(content)):
        return f"{len(content)} branches" if name == "offsets" else ""
    if isinstance(content, Value) or name == "value":
        text = written(valued(content))
        return _cut(repr(text) if name == "value" else text, longest)
    if name in ("fork", "temperature"):
        return f"%{content}" if name == "fork" else ""
    return _cut(str(content), longest)


def _cut(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


# -- as a tree ----------------------------------------------------------------------------------


def pretty(graph: Graph) -> str:
    """Draw the graph as a tree of text: branches under their fork, loop bodies under their loop.

    Every node is shown as `%id Kind ...`; `{%3.answer}` is the value that node 3 gave to `answer`.
    """
    parameters = ", ".join(map(_parameter, graph.parameters))
    lines = [f"{graph.program}({parameters})", *_tree(graph, graph.nodes_of(ROOT), "")]
    for node in graph:
        if isinstance(node, Call):
            lines += ["", f"stream {node.stream}", *_tree(graph, graph.nodes_of(node.stream), "")]
    if graph.result != NONE:
        lines += ["", f"returns {written(graph.result)}"]
    return "\n".join(lines)


def _parameter(parameter: Parameter) -> str:
    if parameter.kind == "constant":
        return f"{parameter.name}={_cut(str(parameter.value), _LONGEST)}"
    length = "" if parameter.length is None else f"[{parameter.length}]"
    return f"{parameter.name}: {parameter.kind}{length}"


def _tree(graph: Graph, nodes: tuple[Node, ...], indent: str) -> Iterator[str]:
    for i, node in enumerate(nodes):
        last = i == len(nodes) - 1
        yield f"{indent}{'└─' if last else '├─'} %{node.id} {label(node)}"
        inner = indent + ("   " if last else "│  ")
        yield from _tree(graph, body_of(node), inner)
        if isinstance(node, Fork):
            for branch in _branches(graph, node):
                yield from _tree(graph, graph.nodes_of(branch), inner)


def _branches(graph: Graph, fork: Fork) -> list[int]:
    return [n.stream for n in graph if isinstance(n, GetForkItem) and n.fork == fork.id]


# -- for Graphviz -------------------------------------------------------------------------------

COLOURS = {
    "Gen": "#cfe8ff",
    "SeparateReasoning": "#cfe8ff",
    "Select": "#d9f2d9",
    "Score": "#d9f2d9",
    "Break": "#ffd6d6",
    "Prefetch": "#fff2cc",
}


def dot(graph: Graph) -> str:
    """Write the graph in Graphviz's language: a box per stream, dashed edges between streams."""
    lines = [f"digraph {_quoted(graph.program)} {{", "  rankdir=TB;"]
    lines.append('  node [shape=box, style="rounded,filled", fillcolor=white, fontname=monospace];')
    for stream in graph.streams:
        title = "s" if stream == ROOT else f"stream {stream}"
        lines += [f"  subgraph cluster_{stream} {{", f"    label={_quoted(title)};"]
        lines += [f"    {_dot_node(node)}" for node in graph.nodes_of(stream)]
        lines.append("  }")
    for edge in graph.edges():
        style = " [style=dashed]" if edge.between_streams else ""
        lines.append(f"  n{edge.before} -> n{edge.after}{style};")
    return "\n".join([*lines, "}", ""])


def _dot_node(node: Node) -> str:
    text = label(node)
    text = "\n".join([text, *(f"  {label(inner)}" for inner in body_of(node))])
    colour = COLOURS.get(kind_of(node))
    filled = f", fillcolor={_quoted(colour)}" if colour else ""
    where = f", tooltip={_quoted(f'line {node.line.number}')}" if node.line else ""
    return f"n{node.id} [label={_quoted(text)}{filled}{where}];"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\l")
    return f'"{escaped}"'
