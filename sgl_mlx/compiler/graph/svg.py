"""A graph as a picture: streams are columns, time runs downwards."""

from __future__ import annotations

from itertools import pairwise
from textwrap import TextWrapper
from typing import NamedTuple
from xml.etree import ElementTree

from sgl_mlx.compiler.graph.graph import ROOT, Call, Graph, Node, body_of
from sgl_mlx.compiler.graph.show import COLOURS, label

# All in pixels, but for the letters of a line.
_LETTERS = 38
_LETTER = 6.7
_LINE = 15
_PADDING = 8
_BOX = _LETTERS * _LETTER + 2 * _PADDING
_GAP_X, _GAP_Y = 44, 30

_LONGEST = 2 * _LETTERS - 16
_WRAP = TextWrapper(width=_LETTERS, subsequent_indent="  ", max_lines=3, placeholder=" …")


def svg(graph: Graph) -> str:
    """The graph as an SVG document.

    Each stream is a frame, each node a box below all it waits for. Edges between streams are
    dashed. A stream that begins after another has ended may stand under it.
    """
    layout = _layout(graph)
    width = _GAP_X + (1 + max(layout.columns.values())) * (_BOX + _GAP_X)
    height = sum(layout.heights) + _GAP_Y * (len(layout.heights) + 1)
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
            "font-family": "ui-monospace, Menlo, monospace",
            "font-size": "11",
        },
    )
    ElementTree.SubElement(root, "title").text = graph.program
    _rectangle(root, 0, 0, width, height, fill="white", stroke="none")
    for stream in graph.streams:
        _frame(root, stream, layout)
    for edge in graph.edges():
        _arrow(root, layout.boxes[edge.before], layout.boxes[edge.after], edge.between_streams)
    for node in graph:
        _node(root, node, layout.boxes[node.id])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


# -- where things stand -------------------------------------------------------------------------


class _Box(NamedTuple):
    x: float
    y: float
    height: float


class _Layout(NamedTuple):
    columns: dict[int, int]
    """Of each stream."""
    members: dict[int, list[_Box]]
    """Of each stream."""
    boxes: dict[int, _Box]
    """Of each node, by id."""
    heights: list[float]
    """Of each row."""


def _layout(graph: Graph) -> _Layout:
    rows = _rows(graph)
    heights = [0.0] * (1 + max(rows.values(), default=0))
    for node in graph:
        row = rows[node.id]
        heights[row] = max(heights[row], len(_lines(node)) * _LINE + 2 * _PADDING)
    columns = _columns(graph, rows)
    boxes = {
        node.id: _Box(
            _GAP_X + columns[node.stream] * (_BOX + _GAP_X),
            sum(heights[: rows[node.id]]) + _GAP_Y * (rows[node.id] + 1),
            len(_lines(node)) * _LINE + 2 * _PADDING,
        )
        for node in graph
    }
    members = {s: [boxes[node.id] for node in graph.nodes_of(s)] for s in graph.streams}
    return _Layout(columns, members, boxes, heights)


def _rows(graph: Graph) -> dict[int, int]:
    """Each node below all it waits for, and below the one before it in its stream."""
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    edges = {(edge.before, edge.after) for edge in graph.edges()}
    for stream in graph.streams:
        edges.update(pairwise(node.id for node in graph.nodes_of(stream)))
    for first, second in edges:
        before.setdefault(second, []).append(first)
        after.setdefault(first, []).append(second)
    rows: dict[int, int] = {}
    for node in graph:
        rows[node.id] = 1 + max((rows[i] for i in before.get(node.id, ())), default=-1)
    # A nested program waits for nothing, but is best seen next to its first text.
    for node in graph:
        if isinstance(node, Call) and node.id in after:
            rows[node.id] = max(rows[node.id], min(rows[i] for i in after[node.id]) - 1)
    return rows


def _columns(graph: Graph, rows: dict[int, int]) -> dict[int, int]:
    """The first column that is free from the stream's first row on; the first is the program's."""
    columns: dict[int, int] = {ROOT: 0}
    ends: list[int] = [len(graph) + 1]
    spans = {s: [rows[n.id] for n in graph.nodes_of(s)] for s in graph.streams if s != ROOT}
    for stream, span in sorted(spans.items(), key=lambda item: (min(item[1]), item[0])):
        free = next((c for c, end in enumerate(ends) if end < min(span)), len(ends))
        columns[stream] = free
        ends[free : free + 1] = [max(span)]
    return columns


def _lines(node: Node) -> list[str]:
    """The node's label, cut into lines of a box; bodies of loops and hints are set in."""
    texts = [label(node, _LONGEST), *(f"  {label(inner, _LONGEST)}" for inner in body_of(node))]
    return [line for text in texts for line in _WRAP.wrap(text)]


# -- drawing ------------------------------------------------------------------------------------


def _rectangle(
    parent: ElementTree.Element, x: float, y: float, width: float, height: float, **style: str
) -> None:
    place = {"x": x, "y": y, "width": width, "height": height}
    ElementTree.SubElement(
        parent, "rect", {name: f"{number:.0f}" for name, number in place.items()} | style
    )


def _text(parent: ElementTree.Element, x: float, y: float, text: str, colour: str) -> None:
    place = {"x": f"{x:.0f}", "y": f"{y:.0f}", "fill": colour, "xml:space": "preserve"}
    ElementTree.SubElement(parent, "text", place).text = text


def _frame(root: ElementTree.Element, stream: int, layout: _Layout) -> None:
    boxes = layout.members[stream]
    top, bottom = boxes[0].y - 18, boxes[-1].y + boxes[-1].height + 6
    x = boxes[0].x - 8
    _rectangle(root, x, top, _BOX + 16, bottom - top, fill="#f6f8fa", stroke="#d0d7de", rx="8")
    _text(root, x + 8, top + 12, "s" if stream == ROOT else f"stream {stream}", "#57606a")


def _arrow(root: ElementTree.Element, start: _Box, end: _Box, dashed: bool) -> None:
    x1, y1 = start.x + _BOX / 2, start.y + start.height
    x2, y2 = end.x + _BOX / 2, end.y
    bend = min(40.0, (y2 - y1) / 2)
    curve = [(x1, y1 + bend), (x2, y2 - bend), (x2, y2)]
    path = f"M{x1:.0f} {y1:.0f} C" + " ".join(f"{x:.0f} {y:.0f}" for x, y in curve)
    style = {"d": path, "fill": "none", "stroke": "#57606a"}
    ElementTree.SubElement(
        root, "path", style | ({"stroke-dasharray": "4 3"} if dashed else {"stroke-width": "1.5"})
    )


def _node(root: ElementTree.Element, node: Node, box: _Box) -> None:
    fill = COLOURS.get(type(node).__name__, "white")
    _rectangle(root, box.x, box.y, _BOX, box.height, fill=fill, stroke="#57606a", rx="5")
    for i, line in enumerate(_lines(node)):
        _text(root, box.x + _PADDING, box.y + _PADDING + 11 + i * _LINE, line, "#1f2328")
