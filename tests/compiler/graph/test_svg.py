from __future__ import annotations

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings

from sgl_mlx.compiler.graph.graph import Call, Gen, Graph, Prefetch, Text
from sgl_mlx.compiler.graph.svg import svg
from sgl_mlx.compiler.graph.values import Constant, Variable
from tests.compiler.generated import load, programs

SVG = "{http://www.w3.org/2000/svg}"
WHITE = "#f6f8fa"
"""The frames of streams; all other rectangles but the first are nodes."""


def _rectangles(graph: Graph) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Frames and boxes, as left, top, right, bottom."""
    frames, boxes = [], []
    for found in list(ElementTree.fromstring(svg(graph)).iter(f"{SVG}rect"))[1:]:
        x, y, width, height = (float(found.attrib[k]) for k in ("x", "y", "width", "height"))
        into = frames if found.attrib["fill"] == WHITE else boxes
        into.append((x, y, x + width, y + height))
    return frames, boxes


def _apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _graph(drawn: tuple[str, dict[str, Any]]) -> Graph:
    source, arguments = drawn
    made: Graph = load(source)["program"].compile().graph(**arguments)
    return made


@settings(max_examples=50, deadline=None)
@given(programs().map(_graph))
def test_every_node_has_a_box_in_its_frame_and_none_overlap(graph: Graph) -> None:
    frames, boxes = _rectangles(graph)
    assert len(boxes) == len(graph)
    assert len(frames) == len(graph.streams)
    assert all(_apart(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(_apart(a, b) for i, a in enumerate(frames) for b in frames[:i])
    for node, box in zip(graph, boxes, strict=True):
        frame = frames[list(graph.streams).index(node.stream)]
        assert frame[0] < box[0]
        assert frame[1] < box[1]
        assert box[2] < frame[2]
        assert box[3] < frame[3]


@settings(max_examples=50, deadline=None)
@given(programs().map(_graph))
def test_edges_lead_downwards(graph: Graph) -> None:
    box = dict(zip((node.id for node in graph), _rectangles(graph)[1], strict=True))
    for edge in graph.edges():
        assert box[edge.before][3] < box[edge.after][1]


def test_a_hint_stands_below_what_it_follows_and_shows_its_text() -> None:
    hint = Prefetch(2, 0, (Text(3, 0, Constant("Rules & <laws>")),))
    graph = Graph("p", (), (Text(0, 0, Constant("a")), Gen(1, 0, Constant("b")), hint))
    tops = [box[1] for box in _rectangles(graph)[1]]
    assert all(a < b for a, b in pairwise(tops))
    assert "Rules &amp; &lt;laws&gt;" in svg(graph)


def test_a_nested_program_that_waits_stands_next_to_what_it_waits_for() -> None:
    main = [Text(0, 0, Constant("a")), Gen(1, 0, Constant("b"))]
    nested = [Call(2, 1, "other"), Text(3, 1, Variable(1, "b"))]
    tops = [box[1] for box in _rectangles(Graph("p", (), (*main, *nested)))[1]]
    assert tops[2] == tops[1] < tops[3]
